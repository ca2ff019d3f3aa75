//! What an HTTP/1 server answers, of which hyper skips all interim answers (1xx), however many they are.
//!
//! [`Answers`] looks at the first bytes of each head since a request was sent, and on to its end where it is an interim one;
//! too many of them break the connection. Behind the final one it looks at nothing until [`Asked`] says that there is
//! another request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tulle_runtime::limits::MAX_INTERIM;

/// A server sent more interim answers than it may.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {MAX_INTERIM} interim answers to one request")]
pub struct TooManyInterim;

/// Says that the next head is the answer to another request.
#[derive(Debug)]
pub struct Asked(Arc<AtomicBool>);

impl Asked {
    /// A request is about to be sent; the answer to the one before it is complete.
    #[inline]
    pub fn again(&self) {
        self.0.store(true, Relaxed);
    }
}

/// A byte stream from an HTTP/1 server.
#[derive(Debug)]
pub struct Answers<I> {
    inner: I,
    asked: Arc<AtomicBool>,
    heads: Heads,
}

/// Follows the heads of one answer.
#[derive(Debug, Default)]
struct Heads {
    at: At,
    interim: u32,
}

/// Where in an answer.
#[derive(Debug, Default, PartialEq, Eq)]
enum At {
    /// Behind the head of the final one: nothing is looked at.
    #[default]
    Final,
    /// So far in a status line, up to the last digit of the status.
    Status(usize),
    /// In the rest of an interim one. Whether a line has just begun.
    Rest(bool),
}

/// What the line of an interim answer begins with; the digit of the version may be another one.
const INTERIM: &[u8] = b"HTTP/1.1 1";
const VERSION: usize = b"HTTP/1.".len();

impl Heads {
    /// Looks on. False: there have been too many.
    fn follow(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.at = match (&self.at, *byte) {
                (At::Final, _) => return true,
                // hyper takes empty lines before one.
                (At::Status(0), b'\r' | b'\n') => At::Status(0),
                (At::Status(at), byte) if *at < INTERIM.len() => {
                    if *at == VERSION || byte == INTERIM[*at] {
                        At::Status(at + 1)
                    } else {
                        At::Final
                    }
                }
                // After 101 comes another protocol.
                (At::Status(at), b'0') if *at == INTERIM.len() => At::Status(at + 1),
                (At::Status(at), b'1') if *at > INTERIM.len() => At::Final,
                (At::Status(_), _) => At::Rest(false),
                (At::Rest(true), b'\n') => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return false;
                    }
                    At::Status(0)
                }
                (At::Rest(_), b'\n') => At::Rest(true),
                (At::Rest(begun), b'\r') => At::Rest(*begun),
                (At::Rest(_), _) => At::Rest(false),
            };
        }
        true
    }
}

impl<I> Answers<I> {
    /// Follows a stream on which nothing was asked yet.
    #[must_use]
    pub fn new(inner: I) -> (Self, Asked) {
        let asked = Arc::new(AtomicBool::new(false));
        let answers = Self {
            inner,
            asked: asked.clone(),
            heads: Heads::default(),
        };
        (answers, Asked(asked))
    }

    /// The stream that is followed.
    #[must_use]
    pub fn get_ref(&self) -> &I {
        &self.inner
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Answers<I> {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if this.asked.load(Relaxed) {
            this.asked.store(false, Relaxed);
            this.heads = Heads {
                at: At::Status(0),
                interim: 0,
            };
        }
        if this.heads.at == At::Final || this.heads.follow(&buf.filled()[start..]) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::Error::other(TooManyInterim)))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Answers<I> {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many interim answers are found in these bytes, cut in pieces of each size; `None`: too many.
    fn found(answer: &[u8]) -> Option<u32> {
        let mut all = (1..=answer.len()).map(|size| {
            let mut heads = Heads {
                at: At::Status(0),
                interim: 0,
            };
            let mut pieces = answer.chunks(size);
            let fits = pieces.all(|piece| heads.follow(piece));
            fits.then_some(heads.interim)
        });
        let first = all.next().flatten();
        assert!(all.all(|other| other == first), "it depends on the pieces");
        first
    }

    #[test]
    fn interim_answers_are_found_however_they_are_cut() {
        const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let most = MAX_INTERIM as usize;
        for (answer, expected) in [
            (OK.to_owned(), Some(0)),
            ([HINT, OK].concat(), Some(1)),
            (HINT.repeat(most), Some(MAX_INTERIM)),
            ([&HINT.repeat(most), OK].concat(), Some(MAX_INTERIM)),
            (HINT.repeat(most + 1), None),
            ("HTTP/1.1 100 C\n\n".repeat(most + 1), None),
            ("\r\nHTTP/1.0 199\r\n\r\n".repeat(most + 1), None),
            ("HTTP/1.1 110 x\r\na: b\n\r\n".repeat(most + 1), None),
            ("HTTP/1.1 111 x\r\n\r\n".repeat(3), Some(3)),
            // Another protocol, or a body: whatever they say.
            (
                ["HTTP/1.1 101 S\r\n\r\n", &HINT.repeat(99)].concat(),
                Some(0),
            ),
            ([OK, &HINT.repeat(99)].concat(), Some(0)),
            (["no HTTP", &HINT.repeat(99)].concat(), Some(0)),
        ] {
            assert_eq!(found(answer.as_bytes()), expected, "{answer}");
        }
    }
}
