//! The layer under the library of HTTP/2: on both sides of a sidecar, and where the control plane is spoken to.
//!
//! h2 bounds most of what a peer can make grow, but answers control frames for as long as they come, and waits for ever
//! for a peer that reads nothing. [`Frames`] follows the frames of both directions by their heads, in place. A peer that
//! sends more control frames than its work is worth, or a head that is too large by far, is made to stop: h2 gets a head in
//! more pieces than it takes, and so says `ENHANCE_YOUR_CALM` itself and closes in order. A server that sends too many interim
//! answers (1xx) on one stream has that stream reset by h2, in the same way. A peer that takes no byte for too long is given
//! up. Frames that are sent at about the same time leave together.
//!
//! [`Calm`] is the other end of it: whoever serves the connection can have it ended so, and learns why it ended. [`Pieces`]
//! keeps count of small pieces of bodies that nobody has taken, for which h2 would end the connection.

mod batch;
mod budget;
mod calm;
mod codes;
mod interim;
mod pieces;
mod put_in;
mod refusals;
mod scan;
mod stall;
mod trailers;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use tulle_runtime::limits::{Http2, MAX_HEADER_LIST};

use batch::Batch;
use budget::Budget;
use calm::Shared;
pub use calm::{Calm, Ended};
use interim::{Interim, Verdict, fault};
pub use pieces::Pieces;
use put_in::PutIn;
use refusals::{Refusals, STATUS};
use scan::{
    ACK, CONTINUATION, DATA, END_STREAM, Frame, GOAWAY, HEAD, HEADERS, PADDED, RST_STREAM,
    SETTINGS, Scanner,
};
use stall::Stall;

/// What a client sends before its first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Pieces of a head that are more than h2 takes for the largest head that can be allowed.
const PIECES: usize = 128;
/// h2 takes a quarter more pieces than such a head fills.
const _: () = assert!(PIECES > MAX_HEADER_LIST as usize / 16_384 * 5 / 4);
/// How many times larger than it may be a head is refused; beyond that, its connection ends. h2 has the same limit for what
/// the fields of a head come to, but takes six frames of them whatever their size.
const ABUSE: usize = 4;
/// Bytes of a GOAWAY frame before its text.
const GOAWAY_FIXED: usize = 8;

/// What h2 says of a head in too many pieces.
const CONTINUATIONS: &str = "too_many_continuations";
/// What h2 says beside `ENHANCE_YOUR_CALM`.
const SAID: [&str; 5] = [
    "too_many_resets",
    "too_many_internal_resets",
    CONTINUATIONS,
    "header_list_way_too_large",
    "too_many_data_frames",
];

/// Whose frames are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A client's, after its preface.
    Client,
    /// A server's.
    Server,
}

/// What a peer may do.
#[derive(Clone, Copy, Debug)]
pub struct FrameBounds {
    /// Control frames beyond what its work is worth.
    pub control_frames: u32,
    /// Bytes that the fields of a head may be; a head of four times as many ends the connection.
    pub header_list: u32,
    /// For how long it may take nothing of what is written.
    pub patience: Duration,
}

impl FrameBounds {
    /// What these limits say.
    #[must_use]
    pub fn new(limits: &Http2, patience: Duration) -> Self {
        Self {
            control_frames: limits.control_frames,
            header_list: limits.max_header_list,
            patience,
        }
    }
}

/// A byte stream of HTTP/2 frames that keeps its peer within limits.
#[derive(Debug)]
pub struct Frames<I> {
    inner: I,
    received: Scanner,
    sent: Scanner,
    batch: Batch,
    budget: Budget,
    /// Of a server.
    interim: Option<Interim>,
    /// A stream that is reset behind the head that is coming.
    resets: Option<u32>,
    /// What h2 is given between what the peer has sent before and after it.
    put_in: Option<Box<PutIn>>,
    /// The stream of a head whose fields go on in the next frame.
    open_head: Option<u32>,
    /// Bytes of the head that came last, and how many may come.
    head: usize,
    most: usize,
    /// A piece of a body whose first byte, which says how long its padding is, comes with the next read.
    padded: Option<Frame>,
    /// Whether the peer is to be stopped at its next frame.
    stop: bool,
    /// What is given to h2 instead of what the peer sends.
    instead: Option<Bytes>,
    stall: Stall,
    refusals: Refusals,
    /// The stream whose head h2 refused last.
    refused: u32,
    /// The newest stream of a client; `None`: these are a server's frames.
    newest: Option<u32>,
    /// The stream whose peer has said last that it sends no more on it.
    ended: u32,
    shared: Arc<Shared>,
}

impl<I> Frames<I> {
    /// Follows a stream from its beginning.
    #[must_use]
    pub fn new(inner: I, whose: Whose, bounds: FrameBounds) -> (Self, Calm) {
        let shared = Arc::<Shared>::default();
        let preface = |side| if side == whose { PREFACE } else { 0 };
        let frames = Self {
            inner,
            received: Scanner::after(preface(Whose::Client)),
            sent: Scanner::after(preface(Whose::Server)),
            batch: Batch::default(),
            budget: Budget::new(bounds.control_frames),
            interim: (whose == Whose::Server).then(Interim::default),
            resets: None,
            put_in: None,
            open_head: None,
            head: 0,
            most: ABUSE * bounds.header_list as usize,
            padded: None,
            stop: false,
            instead: None,
            stall: Stall::new(bounds.patience),
            refusals: Refusals::default(),
            refused: 0,
            newest: (whose == Whose::Client).then_some(0),
            ended: 0,
            shared: shared.clone(),
        };
        (frames, Calm(shared))
    }

    /// Follows the bytes of `buf` from `start` on, and takes back what the peer may not send.
    #[inline]
    fn follow(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let bytes = &mut buf.filled_mut()[start..];
        let mut at = 0;
        if bytes.is_empty() {
            return;
        }
        if let Some(frame) = self.padded.take() {
            self.shared.pieces.arrived(frame.unpadded(bytes[0]));
        }
        if self.shared.asked.load(Relaxed) {
            self.end(Ended::Asked);
        }
        loop {
            // A head that came in pieces is in h2's hands already: what stops then is what follows its frame.
            if self.stop
                && let Some(end) = self.received.end(bytes, at)
            {
                return self.replace(buf, start + end);
            }
            if let Some(stream) = self.resets
                && self.open_head.is_none()
                && let Some(end) = self.received.end(bytes, at)
            {
                return self.reset(stream, buf, start + end);
            }
            let Some((frame, next)) = self.received.next(bytes, at) else {
                return;
            };
            if frame.kind == DATA {
                self.piece(frame, bytes.get(next));
            }
            if let Some(interim) = &mut self.interim {
                match frame.kind {
                    HEADERS => match interim.received(frame, bytes.get(next)) {
                        Verdict::Fine => {}
                        Verdict::Reset => self.resets = Some(frame.stream),
                        Verdict::End => self.end(Ended::Interim),
                    },
                    DATA | RST_STREAM => interim.forget(frame.stream),
                    _ => {}
                }
            }
            if !self.budget.received(frame) {
                self.end(Ended::ControlFrames);
            }
            if frame.is_of_a_head() && !self.has_room(frame) {
                self.end(Ended::Said(CONTINUATIONS));
            }
            let whole = next.checked_sub(HEAD).filter(|begin| *begin >= at);
            if self.stop
                && let Some(begin) = whole
            {
                return self.replace(buf, start + begin);
            }
            if matches!(frame.kind, DATA | HEADERS)
                && self.are_trailers(frame)
                && let Some(begin) = whole
            {
                trailers::spoil(frame, &mut bytes[begin..]);
            }
            self.open_head = frame.leaves_open();
            at = next;
        }
    }

    /// Counts a piece of a body, of which this is the first byte, if it has come.
    #[inline]
    fn piece(&mut self, frame: Frame, first: Option<&u8>) {
        let length = match first {
            _ if frame.flags & PADDED == 0 || frame.length == 0 => frame.length,
            Some(first) => frame.unpadded(*first),
            None => {
                self.padded = Some(frame);
                return;
            }
        };
        self.shared.pieces.arrived(length);
    }

    /// Whether these are trailers of a client: fields on a stream that is not new, nor the one that has ended last.
    #[inline]
    fn are_trailers(&mut self, frame: Frame) -> bool {
        let ended = self.ended;
        if frame.flags & END_STREAM != 0 {
            self.ended = frame.stream;
        }
        if frame.kind != HEADERS {
            return false;
        }
        let Some(newest) = &mut self.newest else {
            return false;
        };
        let before = std::mem::replace(newest, frame.stream.max(*newest));
        frame.stream <= before && frame.stream != ended
    }

    /// Counts the bytes of a head. False: they are too many.
    #[inline]
    fn has_room(&mut self, frame: Frame) -> bool {
        let before = match frame.kind {
            HEADERS => 0,
            _ => self.head,
        };
        self.head = before + frame.length;
        self.head <= self.most
    }

    fn end(&mut self, why: Ended) {
        self.stop = true;
        self.shared.ended.get_or_init(|| why);
    }

    #[cold]
    fn replace(&mut self, buf: &mut ReadBuf<'_>, at: usize) {
        buf.set_filled(at);
        let mut instead = Bytes::from(pieces(self.open_head));
        give(&mut instead, buf);
        self.instead = Some(instead);
    }

    /// Has h2 reset a stream between the frame that ends there and what follows it, which is looked at when h2 gets it.
    #[cold]
    fn reset(&mut self, stream: u32, buf: &mut ReadBuf<'_>, at: usize) {
        let before = self.put_in.take();
        self.put_in = Some(Box::new(PutIn::new(&fault(stream), buf, at, before)));
        self.resets = None;
        self.received.forget();
        self.shared.interim.fetch_add(1, Relaxed);
    }

    /// Gives h2 the next part of what was put in, or of what came behind it. False: there is nothing any more.
    #[cold]
    fn poll_put_in(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<bool> {
        let Some(put_in) = &mut self.put_in else {
            return Poll::Ready(false);
        };
        if put_in.pauses() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if put_in.is_over() {
            self.put_in = None;
            return Poll::Ready(false);
        }
        let start = buf.filled().len();
        if put_in.give(buf) {
            self.follow(buf, start);
        }
        Poll::Ready(true)
    }

    /// Follows what was written of several pieces.
    #[inline]
    fn wrote_all(&mut self, bufs: &[IoSlice<'_>], written: usize) {
        let mut left = written;
        for buf in bufs {
            let part = &buf[..left.min(buf.len())];
            self.wrote(part);
            left -= part.len();
        }
    }

    /// Follows what was written.
    #[inline]
    fn wrote(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some((frame, next)) = self.sent.next(bytes, at) {
            self.budget.sent(frame);
            let looks = || self.refusals.follow() || bytes.get(next) == Some(&STATUS);
            if frame.kind == HEADERS && looks() && self.refusals.is_one(frame, &bytes[next..]) {
                self.refused = frame.stream;
                self.shared.refused.fetch_add(1, Relaxed);
                self.shared.pieces.call();
            }
            if frame.kind == SETTINGS && frame.flags & ACK != 0 {
                self.shared.awaited.store(false, Relaxed);
                self.shared.settings.wake();
            }
            if frame.kind == RST_STREAM {
                // h2 resets the stream of a head that it refuses, if that has not ended.
                let told = frame.stream == self.refused;
                self.shared.resets(bytes[next..].get(..4), !told);
                if let Some(interim) = &mut self.interim {
                    interim.gave_up(frame.stream);
                }
            }
            if frame.kind == GOAWAY && frame.length > GOAWAY_FIXED {
                self.says(&bytes[next..]);
            }
            at = next;
        }
    }

    /// What h2 tells the peer beside that it goes away.
    #[cold]
    fn says(&self, payload: &[u8]) {
        let text = payload.get(GOAWAY_FIXED..).unwrap_or_default();
        let said = SAID.iter().find(|said| text.starts_with(said.as_bytes()));
        if let Some(said) = said {
            self.shared.ended.get_or_init(|| Ended::Said(said));
        }
    }

    /// Something could not be written. For how long it may stay so.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.stall.poll(cx));
        self.shared.ended.get_or_init(|| Ended::Stalled);
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

/// The head of this stream, or else one of no fields at all, going on and on.
fn pieces(open: Option<u32>) -> Vec<u8> {
    let piece = |kind| {
        let [a, b, c, d] = open.unwrap_or(1).to_be_bytes();
        [0, 0, 0, kind, 0, a, b, c, d]
    };
    let begins = open.is_none().then(|| piece(HEADERS));
    let goes_on = std::iter::repeat_n(piece(CONTINUATION), PIECES);
    begins.into_iter().chain(goes_on).flatten().collect()
}

/// Moves as much as there is room for.
fn give(from: &mut Bytes, to: &mut ReadBuf<'_>) {
    let length = from.len().min(to.remaining());
    to.put_slice(&from[..length]);
    from.advance(length);
}

impl<I: AsyncRead + Unpin> AsyncRead for Frames<I> {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(instead) = &mut this.instead {
            give(instead, buf);
            return Poll::Ready(Ok(()));
        }
        if this.shared.pieces.are_too_many() {
            // Whoever runs this connection sees to them before it is read on.
            this.shared.pieces.wait(cx.waker());
            return Poll::Pending;
        }
        if this.put_in.is_some() && ready!(this.poll_put_in(cx, buf)) {
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.follow(buf, start);
        Poll::Ready(Ok(()))
    }
}

/// What an attempt to write came to: progress, or a wait that may be too long.
macro_rules! writing {
    ($this:ident, $cx:ident, $polled:expr) => {
        match $polled {
            Poll::Ready(done) => {
                $this.stall.end();
                done
            }
            Poll::Pending => return $this.poll_stalled($cx).map(Err),
        }
    };
}

impl<I: AsyncWrite + Unpin> Frames<I> {
    /// Hands down everything that was gathered.
    #[inline]
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            writing!(self, cx, self.batch.poll_some(&mut self.inner, cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Frames<I> {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut written = this.batch.take(bufs);
        if written == 0 {
            ready!(this.poll_batch(cx))?;
            written = this.batch.take(bufs);
        }
        if written == 0 {
            let inner = Pin::new(&mut this.inner);
            written = writing!(this, cx, inner.poll_write_vectored(cx, bufs))?;
        }
        this.wrote_all(bufs, written);
        Poll::Ready(Ok(written))
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.batch.waits(cx) {
            return Poll::Pending;
        }
        ready!(this.poll_batch(cx))?;
        let inner = Pin::new(&mut this.inner);
        Poll::Ready(writing!(this, cx, inner.poll_flush(cx)))
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_batch(cx))?;
        let inner = Pin::new(&mut this.inner);
        Poll::Ready(writing!(this, cx, inner.poll_shutdown(cx)))
    }
}

#[cfg(test)]
mod tests;
