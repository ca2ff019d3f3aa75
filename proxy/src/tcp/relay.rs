//! Moves bytes both ways until both ends have said all they had to say.
//!
//! A read lands in a buffer that all connections of a thread share, and what the other end takes at once is never
//! copied again. Only what it does not take is kept with the connection, so idle connections hold no buffer. What can be
//! read at once is written at once: records of TLS come by 16 KiB, and each write may wake its reader.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::io::PIECE;
use crate::telemetry::ResponseFlag;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// Why a relay ended before both ends had said all they had to say.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The client's side broke.
    #[error("the client's connection broke")]
    Client(#[source] io::Error),
    /// The server's side broke.
    #[error("the server's connection broke")]
    Server(#[source] io::Error),
    /// Nothing moved for too long.
    #[error("nothing moved for too long")]
    Idle,
    /// It was told to end.
    #[error("{0}")]
    Stopped(&'static str),
}

impl RelayError {
    /// How telemetry calls it.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Client(_) => ResponseFlag::DownstreamConnectionTermination,
            Self::Server(_) => ResponseFlag::UpstreamConnectionTermination,
            Self::Idle => ResponseFlag::StreamIdleTimeout,
            Self::Stopped(_) => ResponseFlag::Unauthorized,
        }
    }

    /// Why, in one word, for the access log.
    #[must_use]
    pub fn details(&self) -> &'static str {
        match self {
            Self::Client(_) => "downstream_connection_broke",
            Self::Server(_) => "upstream_connection_broke",
            Self::Idle => "idle_timeout",
            Self::Stopped(why) => why,
        }
    }
}

/// Bytes that were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client to the server.
    pub sent: u64,
    /// From the server to the client.
    pub received: u64,
}

/// Moves bytes between a client and a server until both have ended, either fails, nothing moves for as long as `idle`, or
/// `stop` comes. `tally` is told live how many bytes came from the client, and how many from the server.
///
/// # Errors
///
/// Why it ended early; what was moved until then is told either way.
pub async fn relay<C, S>(
    client: &mut C,
    server: &mut S,
    tally: impl Fn(u64, u64),
    idle: Duration,
    stop: impl Future<Output = &'static str>,
) -> (Moved, Result<(), RelayError>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Way::default();
    let mut back = Way::default();
    let moving = move_all(client, server, tally, idle, &mut there, &mut back);
    let result = tokio::select! {
        biased;
        result = moving => result,
        why = stop => Err(RelayError::Stopped(why)),
    };
    (
        Moved {
            sent: there.moved,
            received: back.moved,
        },
        result,
    )
}

async fn move_all<C, S>(
    client: &mut C,
    server: &mut S,
    tally: impl Fn(u64, u64),
    idle: Duration,
    there: &mut Way,
    back: &mut Way,
) -> Result<(), RelayError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut idle_since = Instant::now();
    let mut moved = 0;
    loop {
        let both = poll_fn(|cx| {
            let (before_there, before_back) = (there.moved, back.moved);
            let there_done = there.poll(cx, client, server);
            let back_done = back.poll(cx, server, client);
            tally(there.moved - before_there, back.moved - before_back);
            let there =
                there_done.map_err(|broke| broke.into(RelayError::Client, RelayError::Server))?;
            let back =
                back_done.map_err(|broke| broke.into(RelayError::Server, RelayError::Client))?;
            if there.is_ready() && back.is_ready() {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        });
        match timeout_at(idle_since + idle, both).await {
            Ok(result) => return result,
            Err(_) if there.moved + back.moved == moved => {
                return Err(RelayError::Idle);
            }
            Err(_) => {
                moved = there.moved + back.moved;
                idle_since = Instant::now();
            }
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read, but not written yet.
    pending: Bytes,
    /// Written, but perhaps not on the wire yet.
    unflushed: bool,
    /// How reading ended, after what was read before.
    broken: Option<io::Error>,
    state: State,
    moved: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reading side has ended; the writing side has to learn of it.
    Ending,
    Ended,
}

/// Where one direction broke.
enum Broke {
    Reading(io::Error),
    Writing(io::Error),
}

impl Broke {
    fn into(
        self,
        reading: fn(io::Error) -> RelayError,
        writing: fn(io::Error) -> RelayError,
    ) -> RelayError {
        match self {
            Self::Reading(error) => reading(error),
            Self::Writing(error) => writing(error),
        }
    }
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), Broke>> {
        let (mut from, mut to) = (Pin::new(from), Pin::new(to));
        loop {
            while !self.pending.is_empty() {
                let written =
                    ready!(to.as_mut().poll_write(cx, &self.pending)).map_err(Broke::Writing)?;
                self.wrote(written)?;
                self.pending.advance(written);
            }
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    // TLS says goodbye and flushes; TCP sends its FIN.
                    ready!(to.as_mut().poll_shutdown(cx)).map_err(Broke::Writing)?;
                    self.state = State::Ended;
                }
                State::Open => {
                    if self
                        .poll_piece(cx, from.as_mut(), to.as_mut())?
                        .is_pending()
                    {
                        if self.unflushed {
                            let flushed = to.as_mut().poll_flush(cx).map_err(Broke::Writing)?;
                            self.unflushed = flushed.is_pending();
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Moves one piece. Ready: look at the state again.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut impl AsyncRead>,
        mut to: Pin<&mut impl AsyncWrite>,
    ) -> Poll<Result<(), Broke>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(Broke::Reading(error)));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::new(scratch);
            let read = self.poll_fill(cx, from, &mut piece);
            let mut left = piece.filled();
            while !left.is_empty() {
                match to.as_mut().poll_write(cx, left).map_err(Broke::Writing)? {
                    Poll::Ready(written) => {
                        self.wrote(written)?;
                        left = &left[written..];
                    }
                    Poll::Pending => {
                        self.pending = Bytes::copy_from_slice(left);
                        return Poll::Pending;
                    }
                }
            }
            read.map(Ok)
        })
    }

    /// Reads what there is, as far as there is room. Pending: and there is no more now.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut impl AsyncRead>,
        piece: &mut ReadBuf<'_>,
    ) -> Poll<()> {
        while piece.remaining() > 0 {
            let before = piece.filled().len();
            match ready!(from.as_mut().poll_read(cx, piece)) {
                Ok(()) if piece.filled().len() > before => {}
                Ok(()) => {
                    self.state = State::Ending;
                    break;
                }
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        Poll::Ready(())
    }

    fn wrote(&mut self, written: usize) -> Result<(), Broke> {
        if written == 0 {
            return Err(Broke::Writing(io::ErrorKind::WriteZero.into()));
        }
        self.moved += written as u64;
        self.unflushed = true;
        Ok(())
    }
}
