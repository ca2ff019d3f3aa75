//! A TCP socket with bytes in front of it.
//!
//! The bytes are either what detection has read already, or, under TLS, what one large read returned beyond the
//! 4 KiB that rustls asks for at a time. The buffer exists only while it holds something: an idle connection has none.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::probe::{Duplicate, Probe};

/// How much one read takes from the kernel under TLS: two full records.
const READ_AHEAD: usize = 32 * 1024;

thread_local! {
    /// Where reads land before it is known how much they return; one a worker.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_AHEAD].into_boxed_slice());
}

/// A TCP socket, the bytes that come before those still in the kernel, and whether to read ahead.
#[derive(Debug)]
pub struct Transport {
    tcp: TcpStream,
    pending: Bytes,
    read_ahead: bool,
    duplicate: Option<Arc<Duplicate>>,
}

impl Transport {
    /// A socket of which nothing has been read.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self::with_prefix(tcp, Bytes::new())
    }

    /// A socket from which `prefix` has been read already; readers get it first.
    #[must_use]
    pub fn with_prefix(tcp: TcpStream, prefix: Bytes) -> Self {
        Self {
            tcp,
            pending: prefix,
            read_ahead: false,
            duplicate: None,
        }
    }

    /// Reads more than is asked for, for readers that ask for little at a time.
    #[must_use]
    pub fn reading_ahead(mut self) -> Self {
        self.read_ahead = true;
        self
    }

    /// The socket.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Puts bytes back that were read from this transport, before everything still to come.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(
            self.pending.is_empty(),
            "bytes are unread in the order in which they came"
        );
        self.pending = bytes;
    }

    pub(super) fn probe(&mut self) -> io::Result<Probe> {
        let duplicate = match &self.duplicate {
            Some(duplicate) => duplicate,
            None => self.duplicate.insert(Arc::new(Duplicate::of(&self.tcp)?)),
        };
        Ok(Probe::of(duplicate))
    }

    /// Serves the reader from one large read and keeps the rest.
    fn poll_read_ahead(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut large = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut large))?;
            let filled = large.filled();
            let (now, later) = filled.split_at(filled.len().min(buf.remaining()));
            buf.put_slice(now);
            if !later.is_empty() {
                self.pending = Bytes::copy_from_slice(later);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncRead for Transport {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.pending.is_empty() {
            let length = this.pending.len().min(buf.remaining());
            buf.put_slice(&this.pending[..length]);
            this.pending.advance(length);
            if this.pending.is_empty() {
                this.pending = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        if this.read_ahead && buf.remaining() < READ_AHEAD {
            return this.poll_read_ahead(cx, buf);
        }
        Pin::new(&mut this.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn prefix_comes_first_and_nothing_is_lost_in_small_reads() {
        let (mut client, server) = pair().await;
        client.write_all(b" world").await.unwrap();
        drop(client);
        let mut transport =
            Transport::with_prefix(server, Bytes::from_static(b"hello")).reading_ahead();
        let mut seen = Vec::new();
        let mut three = [0; 3];
        loop {
            match transport.read(&mut three).await.unwrap() {
                0 => break,
                n => seen.extend_from_slice(&three[..n]),
            }
        }
        assert_eq!(seen, b"hello world");
    }

    #[tokio::test]
    async fn probe_tells_an_open_connection_from_a_closed_one() {
        let (client, server) = pair().await;
        let mut transport = Transport::new(server);
        let probe = transport.probe().unwrap();
        assert!(!probe.is_stale());
        drop(client);
        transport.tcp().readable().await.unwrap();
        assert!(probe.is_stale());
    }

    #[tokio::test]
    async fn probe_of_a_dropped_connection_is_stale_and_does_not_hold_it_open() {
        let (mut client, server) = pair().await;
        let mut transport = Transport::new(server);
        let probe = transport.probe().unwrap();
        drop(transport);
        assert!(probe.is_stale());
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
