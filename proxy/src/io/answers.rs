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
use tulle_runtime::limits::{InterimAllowance, MAX_INTERIM};

/// A server sent more interim answers than it may.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more interim answers to one request than {MAX_INTERIM} and what its time is worth")]
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
    left: InterimAllowance,
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
    /// Another request was sent.
    fn begin() -> Self {
        Self {
            at: At::Status(0),
            left: InterimAllowance::default(),
        }
    }

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
                    if !self.left.take() {
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
            this.heads = Heads::begin();
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
    use tokio::io::AsyncReadExt as _;
    use tokio::time::advance;
    use tulle_runtime::limits::INTERIM_EVERY;

    use super::*;

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// Whether these bytes, cut in pieces of each size, may come.
    fn fits(answer: &[u8]) -> bool {
        let mut all = (1..=answer.len()).map(|size| {
            let mut heads = Heads::begin();
            answer.chunks(size).all(|piece| heads.follow(piece))
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "it depends on the pieces");
        first
    }

    /// How many interim answers are found in what ends with none too many.
    fn found(answer: &[u8]) -> Option<u32> {
        let more = (0..=MAX_INTERIM).find(|more| {
            let hints = HINT.repeat(*more as usize + 1);
            !fits(&[hints.as_bytes(), answer].concat())
        })?;
        Some(MAX_INTERIM - more)
    }

    #[tokio::test(start_paused = true)]
    async fn interim_answers_are_found_however_they_are_cut() {
        let most = MAX_INTERIM as usize;
        for (answer, expected) in [
            (OK.to_owned(), Some(0)),
            ([HINT, OK].concat(), Some(1)),
            ([&HINT.repeat(most - 1), OK].concat(), Some(MAX_INTERIM - 1)),
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
        for interim in [
            HINT,
            "HTTP/1.1 100 C\n\n",
            "\r\nHTTP/1.0 199\r\n\r\n",
            "HTTP/1.1 110 x\r\na: b\n\r\n",
        ] {
            assert!(fits(interim.repeat(most).as_bytes()), "{interim}");
            assert!(fits([&interim.repeat(most), OK].concat().as_bytes()));
            assert!(!fits(interim.repeat(most + 1).as_bytes()), "{interim}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_its_time_may_send_more_and_each_request_has_its_own() {
        let (mut server, io) = tokio::io::duplex(1_024);
        let (mut answers, asked) = Answers::new(io);
        let mut read = async || {
            tokio::io::AsyncWriteExt::write_all(&mut server, HINT.as_bytes())
                .await
                .unwrap();
            answers.read_exact(&mut vec![0; HINT.len()]).await
        };
        for _ in 0..3 {
            asked.again();
            for _ in 0..100 {
                read().await.unwrap();
                advance(INTERIM_EVERY).await;
            }
            for _ in 0..MAX_INTERIM {
                read().await.unwrap();
            }
        }
        let error = read().await.unwrap_err();
        assert!(error.get_ref().unwrap().is::<TooManyInterim>());
        // Another one begins anew.
        asked.again();
        read().await.unwrap();
    }
}
