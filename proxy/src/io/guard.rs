//! The strict layer under hyper's HTTP/1 server.
//!
//! hyper accepts messages on whose framing two readers may disagree, which is how requests are smuggled past a proxy.
//! [`Guard`] looks at what is read, in place and once, and follows the framing of messages. Instead of a head that is
//! refused it gives hyper a request of its own, which no client can send ([`REFUSED`]): so it is answered like any other,
//! after the answers to earlier requests, and the answer can say why. Where a part of the message has gone on already,
//! hyper gets bytes that no state of its parsers accepts, and then the end of the stream: it answers 400 or 431 itself and
//! closes in order. That answer says nothing, so to a head [`Guard`] writes one that says why in its place, unless earlier
//! answers are still on their way.
//!
//! After a request that may switch protocols nothing more is given to hyper until its answer is known, because only the
//! answer says what the bytes that follow are. [`Gate`] is where the answer is announced.
//!
//! A head that has begun has to end in time; an idle connection may stay idle. hyper's own timer does not tell the two
//! apart.

mod scan;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

pub(crate) use scan::is_port;
use scan::{Scan, Scanner, TOO_LARGE, TOO_LONG, TOO_MANY};

/// Method of the request that takes the place of a refused one.
pub const REFUSED: &str = "TULLE-REFUSED";
/// All of that request.
const INSTEAD: &[u8] = b"TULLE-REFUSED / HTTP/1.1\r\nhost: -\r\n\r\n";
/// What hyper gets instead of a refused byte. Its head parser refuses the first, and looks at a head that came in pieces
/// only when two line feeds seem to end it; its parser of chunk lines ignores the first inside an extension and refuses
/// the second.
const POISON: &[u8] = b"\0\n\n";
/// What a client gets whose head took too long (RFC 9110, 15.5.9).
const TOO_LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// Bytes kept while an answer decides what they are; the client has to wait with more.
const MAX_HELD: usize = 16 * 1024;

const UNDECIDED: u8 = 0;
const DECLINED: u8 = 1;
const SWITCHED: u8 = 2;

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is wrong, and how.
    Malformed(&'static str),
    /// The target of a request is longer than a head may be.
    TargetTooLong,
    /// A head is longer than it may be.
    HeadTooLarge,
    /// A head has more fields than it may have.
    TooManyFields,
}

impl Refusal {
    fn of(why: &'static str) -> Self {
        match why {
            TOO_LONG => Self::TargetTooLong,
            TOO_LARGE => Self::HeadTooLarge,
            TOO_MANY => Self::TooManyFields,
            why => Self::Malformed(why),
        }
    }
}

/// A message that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// Whether it was a head, so that there never was a request.
    pub head: bool,
}

/// What a head may be, and what is said of one that is not.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// How long one may take, from its first byte to its last.
    pub patience: Duration,
    /// Its bytes. hyper has to buffer [`Heads::MORE`].
    pub longest: usize,
    /// Its fields.
    pub most: usize,
    /// Makes an answer.
    pub answer: fn(Refusal) -> Bytes,
}

impl Heads {
    /// What hyper must have room for beyond the longest head, so that it is refused here and not there.
    pub const MORE: usize = 64;
}

/// Announces answers to requests that asked for another protocol, and tells whether a head was too late.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    answer: AtomicU8,
    reader: AtomicWaker,
    late: AtomicBool,
    refused: OnceLock<Refused>,
}

impl Gate {
    /// A request with an `Upgrade` header or the method `CONNECT` is about to be answered. To be called for each of
    /// them, before the answer is given to hyper.
    pub fn answered(&self, switched: bool) {
        self.0.answer.store(
            if switched { SWITCHED } else { DECLINED },
            Ordering::Release,
        );
        self.0.reader.wake();
    }

    /// Whether the connection was given up because a head took too long.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.0.late.load(Ordering::Relaxed)
    }

    /// Why a message was refused here, if one was.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.0.refused.get().copied()
    }
}

/// A byte stream of which hyper sees only HTTP/1 messages that leave no doubt.
#[derive(Debug)]
pub struct Guard<I> {
    inner: I,
    scanner: Scanner,
    state: State,
    /// Read, but not given on yet.
    held: BytesMut,
    gate: Gate,
    heads: Heads,
    wait: Option<Wait>,
    /// What is written in the place of hyper's own answer, which is its last.
    answer: Option<Bytes>,
    /// Whether something was written that is perhaps not on the wire yet.
    unflushed: bool,
}

/// The wait for the rest of a head.
#[derive(Debug)]
struct Wait {
    head: u32,
    until: Pin<Box<Sleep>>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Messages.
    Scanning,
    /// An answer decides what comes next.
    Waiting,
    /// Another protocol.
    Switched,
    /// A message was refused; the rest of the poison is still to be given on.
    Refused(Bytes),
    /// A head was refused; the rest of what takes its place is still to be given on.
    Replaced(Bytes),
}

impl<I> Guard<I> {
    /// Guards a stream that begins with an HTTP/1 request.
    #[must_use]
    pub fn new(inner: I, heads: Heads) -> (Self, Gate) {
        let shared = Shared {
            answer: AtomicU8::new(UNDECIDED),
            reader: AtomicWaker::new(),
            late: AtomicBool::new(false),
            refused: OnceLock::new(),
        };
        let gate = Gate(Arc::new(shared));
        let guard = Self {
            inner,
            scanner: Scanner::new(heads.longest, heads.most),
            state: State::Scanning,
            held: BytesMut::new(),
            gate: gate.clone(),
            heads,
            wait: None,
            answer: None,
            unflushed: false,
        };
        (guard, gate)
    }

    /// The stream that is guarded.
    #[must_use]
    pub fn get_ref(&self) -> &I {
        &self.inner
    }

    /// Looks at the bytes of `buf` from `start` on, and takes back what must not go on.
    fn scan(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        match self.scanner.scan(&buf.filled()[start..]) {
            Scan::Pass => {}
            Scan::Refuse { at, head, why } => {
                let refused = Refused {
                    why: Refusal::of(why),
                    head: self.scanner.in_head(),
                };
                self.gate.0.refused.get_or_init(|| refused);
                if refused.head && head.is_none() && !self.unflushed {
                    self.answer = Some((self.heads.answer)(refused.why));
                }
                self.held = BytesMut::new();
                buf.set_filled(start + head.unwrap_or(at));
                let instead = head.map_or(POISON, |_| INSTEAD);
                let mut rest = Bytes::from_static(instead);
                give(&mut rest, buf);
                self.state = match head {
                    Some(_) => State::Replaced(rest),
                    None => State::Refused(rest),
                };
            }
            Scan::Wait { at } => {
                // In front of what is held already: these bytes came first.
                let mut held = BytesMut::from(&buf.filled()[start + at..]);
                held.unsplit(std::mem::take(&mut self.held));
                self.held = held;
                buf.set_filled(start + at);
                self.state = State::Waiting;
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Guard<I> {
    fn poll_scanned(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        if self.held.is_empty() {
            let read = Pin::new(&mut self.inner).poll_read(cx, buf)?;
            if read.is_pending() {
                return self.poll_late(cx);
            }
        } else {
            give(&mut self.held, buf);
        }
        self.scan(buf, start);
        Poll::Ready(Ok(()))
    }

    /// There is nothing to read: for how much longer, if a head is open. hyper reads on after the beginning of a head only
    /// once the answers before it are made, so none is under way when the time is up, except one that the client does
    /// not take.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(head) = self.scanner.open_head() else {
            self.wait = None;
            return Poll::Pending;
        };
        let wait = match &mut self.wait {
            Some(wait) if wait.head == head => wait,
            wait => wait.insert(Wait {
                head,
                until: Box::pin(tokio::time::sleep(self.heads.patience)),
            }),
        };
        ready!(wait.until.as_mut().poll(cx));
        self.gate.0.late.store(true, Ordering::Relaxed);
        self.state = State::Refused(Bytes::new());
        if !self.unflushed {
            // A few bytes to an idle socket: what it does not take at once is not worth waiting for.
            let _ = Pin::new(&mut self.inner).poll_write(cx, TOO_LATE);
            let _ = Pin::new(&mut self.inner).poll_flush(cx);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for the answer; holds on to what the client sends meanwhile, and notices if it leaves.
    /// True: the client has left.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let shared = &self.gate.0;
        shared.reader.register(cx.waker());
        match shared.answer.swap(UNDECIDED, Ordering::AcqRel) {
            DECLINED => self.state = State::Scanning,
            SWITCHED => self.state = State::Switched,
            _ => {
                while self.held.len() < MAX_HELD {
                    let mut piece = [0; 1024];
                    let mut piece = ReadBuf::new(&mut piece);
                    ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece))?;
                    if piece.filled().is_empty() {
                        return Poll::Ready(Ok(true));
                    }
                    self.held.extend_from_slice(piece.filled());
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(false))
    }
}

/// Where each message of a stream ends in which nobody switches protocols, up to where it is refused.
#[cfg(feature = "fuzz")]
pub(crate) fn message_ends(stream: &[u8]) -> Vec<usize> {
    let mut scanner = Scanner::new(usize::MAX, usize::MAX);
    let mut ends = Vec::new();
    for (at, byte) in stream.iter().enumerate() {
        if let Scan::Refuse { .. } = scanner.scan(&[*byte]) {
            break;
        }
        if scanner.messages() as usize > ends.len() {
            ends.push(at + 1);
        }
    }
    ends
}

/// Moves as much as there is room for.
fn give(from: &mut impl Buf, to: &mut ReadBuf<'_>) {
    let length = from.remaining().min(to.remaining());
    to.put_slice(&from.chunk()[..length]);
    from.advance(length);
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = buf.filled().len();
        loop {
            match &mut this.state {
                State::Scanning => ready!(this.poll_scanned(cx, buf))?,
                State::Switched if this.held.is_empty() => {
                    return Pin::new(&mut this.inner).poll_read(cx, buf);
                }
                State::Switched => {
                    give(&mut this.held, buf);
                    return Poll::Ready(Ok(()));
                }
                State::Waiting => {
                    if ready!(this.poll_answer(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                State::Refused(poison) => {
                    give(poison, buf);
                    return Poll::Ready(Ok(()));
                }
                // The answer closes the connection; an end before that would cost it.
                State::Replaced(rest) if rest.is_empty() => return Poll::Pending,
                State::Replaced(rest) => {
                    give(rest, buf);
                    return Poll::Ready(Ok(()));
                }
            }
            // Nothing left to give on, although the stream has not ended: only if everything read is held back.
            if buf.filled().len() > start || this.state != State::Waiting {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Writes the answer in the place of hyper's, of which `length` bytes count as written then.
#[cold]
fn poll_instead(
    inner: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
    answer: &mut Bytes,
    length: usize,
) -> Poll<io::Result<usize>> {
    while answer.has_remaining() {
        let written = ready!(Pin::new(&mut *inner).poll_write(cx, answer))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        answer.advance(written);
    }
    Poll::Ready(Ok(length))
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guard<I> {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.unflushed = true;
        if let Some(answer) = &mut this.answer {
            return poll_instead(&mut this.inner, cx, answer, buf.len());
        }
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.unflushed = true;
        if let Some(answer) = &mut this.answer {
            let length = bufs.iter().map(|buf| buf.len()).sum();
            return poll_instead(&mut this.inner, cx, answer, length);
        }
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.unflushed = flushed.is_pending();
        flushed
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
