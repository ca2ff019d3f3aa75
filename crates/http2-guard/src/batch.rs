//! Frames that leave together.
//!
//! h2 hands over each frame of data by itself, and asks for a flush whenever it has nothing more to say: with many
//! streams on a connection that makes a record and a system call of every message. So small writes are gathered, and a
//! flush waits for one turn of the scheduler: by then every task that was ready has said what it had to say.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What is gathered at most: what one TLS record takes (RFC 8446, 5.1).
const SIZE: usize = 16 * 1024;

thread_local! {
    /// A worker's buffer that no connection uses now. A connection has one only while it holds something.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes that are written but not handed down yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// How many of them have been handed down.
    sent: usize,
    /// Whether the flush of these bytes has waited for its turn.
    waited: bool,
}

impl Batch {
    /// Takes bytes in, as many as there is room for. Zero: none, they are to be written by themselves, or later.
    #[inline]
    pub(super) fn take(&mut self, bufs: &[IoSlice<'_>]) -> usize {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.bytes.is_empty() {
            if total >= SIZE {
                return 0;
            }
            self.bytes = SPARE.take();
            self.bytes.reserve_exact(SIZE);
        }
        let before = self.bytes.len();
        for buf in bufs {
            let room = SIZE - self.bytes.len();
            self.bytes.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        self.bytes.len() - before
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a flush should wait until every task that is ready now has run; it is asked for again then.
    #[inline]
    pub(super) fn waits(&mut self, cx: &Context<'_>) -> bool {
        if self.bytes.is_empty() || self.waited {
            return false;
        }
        self.waited = true;
        cx.waker().wake_by_ref();
        true
    }

    /// Hands bytes down. Ready: it took some, or there are none.
    #[inline]
    pub(super) fn poll_some<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let sent = ready!(Pin::new(io).poll_write(cx, &self.bytes[self.sent..]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += sent;
        if self.sent == self.bytes.len() {
            self.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn clear(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        SPARE.set(bytes);
        (self.sent, self.waited) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use futures_util::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::super::{FrameBounds, Frames, Whose};
    use super::*;

    /// Takes what is written in pieces of some size, and nothing at every third attempt.
    #[derive(Debug, Default)]
    struct Sink {
        largest: usize,
        attempts: usize,
        falters: bool,
        writes: Vec<usize>,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.attempts += 1;
            if self.falters && self.attempts.is_multiple_of(3) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let taken = buf.len().min(self.largest);
            self.bytes.extend_from_slice(&buf[..taken]);
            self.writes.push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frames(sink: Sink) -> Frames<Sink> {
        let bounds = FrameBounds {
            control_frames: 1_000,
            header_list: 16_384,
            patience: std::time::Duration::from_secs(60),
        };
        Frames::new(sink, Whose::Server, bounds).0
    }

    #[tokio::test]
    async fn frames_of_one_turn_leave_together_and_a_flush_waits_for_one_turn() {
        let mut frames = frames(Sink {
            largest: usize::MAX,
            ..Sink::default()
        });
        let mut cx = Context::from_waker(Waker::noop());
        for turn in 1..=3 {
            frames.write_all(&[0; 1_000]).await.unwrap();
            assert!(Pin::new(&mut frames).poll_flush(&mut cx).is_pending());
            frames.write_all(&[0; 2_000]).await.unwrap();
            assert!(Pin::new(&mut frames).poll_flush(&mut cx).is_ready());
            assert_eq!(frames.inner.writes, vec![3_000; turn]);
            assert_eq!(frames.batch.bytes.capacity(), 0, "it holds a buffer");
        }
        assert!(frames.flush().now_or_never().is_some(), "nothing is left");
    }

    #[tokio::test]
    async fn what_is_large_is_not_copied() {
        let mut frames = frames(Sink {
            largest: usize::MAX,
            ..Sink::default()
        });
        frames.write_all(&[0; 100_000]).await.unwrap();
        assert_eq!(frames.inner.writes, [100_000]);
    }

    #[tokio::test]
    async fn nothing_is_lost_or_moved_however_it_is_written_and_taken() {
        let mut random = fastrand::Rng::with_seed(1);
        for largest in [1, 700, SIZE, usize::MAX] {
            let mut frames = frames(Sink {
                largest,
                falters: true,
                ..Sink::default()
            });
            let mut all = Vec::new();
            for _ in 0..100 {
                let length = [0, 9, 1_024, SIZE - 1, SIZE, SIZE + 9][random.usize(..6)];
                let piece: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                    .take(length)
                    .collect();
                let (head, tail) = piece.split_at(random.usize(..=length));
                let mut at = 0;
                while at < length {
                    let bufs = [
                        IoSlice::new(&head[at.min(head.len())..]),
                        IoSlice::new(&tail[at.saturating_sub(head.len())..]),
                    ];
                    at += poll_fn(|cx| Pin::new(&mut frames).poll_write_vectored(cx, &bufs))
                        .await
                        .unwrap();
                }
                all.extend(piece);
                if random.bool() {
                    frames.flush().await.unwrap();
                    assert_eq!(frames.inner.bytes.len(), all.len());
                }
            }
            frames.shutdown().await.unwrap();
            assert!(frames.inner.bytes == all, "in pieces of {largest}");
        }
    }
}
