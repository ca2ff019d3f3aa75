//! Closes a client's connection without destroying the last answer on it.
//!
//! A socket that is closed with unread bytes in it sends a reset, which can overtake an answer that the peer has not
//! read yet. So the write side is closed first, and what the peer still sends is read and thrown away until it closes
//! its side too, or for long enough. Whether a client takes what is written is noted here too, since everything passes.
//! A connection whose end would be that of an answer, which is not whole, is reset.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::io::Abrupt;
use crate::overload::{Giving, Taking};

/// How long a peer may take to close its side.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of what it still sends is read.
const APPETITE: usize = 256 * 1024;

/// A stream whose shutdown lingers, and of which is known whether its client takes what is written.
#[derive(Debug)]
pub(super) struct Linger<I: Abrupt> {
    io: I,
    giving: Giving,
    lingering: Option<Lingering>,
}

/// The write side is closed.
#[derive(Debug)]
struct Lingering {
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl<I: Abrupt> Linger<I> {
    pub(super) fn new(io: I, taking: Taking) -> Self {
        Self {
            io,
            giving: Giving::to(taking),
            lingering: None,
        }
    }

    /// The stream.
    pub(super) fn get_ref(&self) -> &I {
        &self.io
    }
}

impl<I: AsyncRead + AsyncWrite + Abrupt + Unpin> Linger<I> {
    /// Reads until there is nothing left, or no patience.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(lingering) = &mut self.lingering else {
            return Poll::Ready(());
        };
        let mut scratch = [0; 4096];
        while lingering.left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    lingering.left = lingering.left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return lingering.until.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<I: AsyncRead + Abrupt + Unpin> AsyncRead for Linger<I> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncRead + AsyncWrite + Abrupt + Unpin> AsyncWrite for Linger<I> {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.giving.note(&written);
        written
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.giving.note(&written);
        written
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.giving.note(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            let until = Box::pin(tokio::time::sleep(PATIENCE));
            self.lingering = Some(Lingering {
                left: APPETITE,
                until,
            });
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl<I: Abrupt> Drop for Linger<I> {
    fn drop(&mut self) {
        if self.giving.is_partial() {
            self.io.abrupt();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_the_peer_but_not_for_ever() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = Linger::new(ours, Taking::default());
        let closing = async {
            ours.shutdown().await.unwrap();
            tokio::time::Instant::now()
        };
        let peer = async {
            assert_eq!(
                theirs.read(&mut [0; 8]).await.unwrap(),
                0,
                "it sees the end at once"
            );
            theirs.write_all(&[0; 1000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(theirs);
        };
        let started = tokio::time::Instant::now();
        let (closed, ()) = tokio::join!(closing, peer);
        assert_eq!(closed - started, Duration::from_millis(300));

        let (ours, _theirs) = tokio::io::duplex(64);
        let started = tokio::time::Instant::now();
        Linger::new(ours, Taking::default())
            .shutdown()
            .await
            .unwrap();
        assert_eq!(started.elapsed(), PATIENCE);
    }
}
