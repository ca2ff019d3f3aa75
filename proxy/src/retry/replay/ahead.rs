//! What a client has sent of a body before anybody asked for it.
//!
//! On a connection where too many small pieces wait, they are taken out of h2's hands and put together, so that others go
//! on. What one body may have waiting so is bounded; one that has more is given up.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};

use super::{RequestFailure, Shared, State, Waiting};

/// Bytes of a body that may wait, if they came in small pieces ...
const SMALL_PIECES: usize = 64 << 10;
/// ... or anyhow.
const MOST: usize = 512 << 10;
/// A piece with fewer bytes is small.
const SMALL: usize = 256;
/// So many small pieces are what anybody may send.
const FEW: usize = 64;
/// Bytes that small pieces are put together to, if so many have come.
const TOGETHER: usize = 16 << 10;

/// What a body says when it is asked for more.
pub(super) type Said = Option<Result<Frame<Bytes>, hyper::Error>>;

/// What comes next, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Pieces put together.
    data: BytesMut,
    /// Small ones among them.
    small: usize,
    /// What came after them.
    then: Option<Said>,
}

impl Ahead {
    /// What comes next; `None`: nothing is left.
    pub(super) fn next(&mut self) -> Option<Said> {
        self.small = 0;
        if self.data.is_empty() {
            return self.then.take();
        }
        Some(Some(Ok(Frame::data(self.data.split().freeze()))))
    }

    /// Adds what the body has said. How many bytes it was, if any.
    fn add(&mut self, said: Said) -> Option<usize> {
        self.then = Some(match said.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                self.data.extend_from_slice(&data);
                self.small += usize::from(data.len() < SMALL);
                return Some(data.len());
            }
            Some(Ok(Err(trailers))) => Some(Ok(trailers)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        });
        None
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.then.is_none()
    }

    fn is_too_much(&self) -> bool {
        let bytes = self.data.len();
        bytes > MOST || (bytes > SMALL_PIECES && self.small > FEW)
    }
}

impl Waiting {
    /// Takes all that has come. False: so much waits of this body that it is given up, just now.
    #[must_use]
    pub fn take(&self) -> bool {
        let shared = self.0.upgrade();
        shared.is_none_or(|shared| shared.borrow_mut().take_ahead())
    }

    /// Whether it is the body of an exchange that is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let shared = self.0.upgrade();
        shared.is_none_or(|shared| shared.borrow().source.is_none())
    }
}

impl Shared {
    /// Puts small pieces that have come already behind the first of them, so that the next hop has fewer to handle.
    #[inline]
    pub(super) fn together(&mut self, first: Frame<Bytes>, cx: &mut Context<'_>) -> Frame<Bytes> {
        let small = first.data_ref().is_some_and(|data| data.len() < SMALL);
        if !small || self.has_come() {
            return first;
        }
        match self.poll_taking(cx) {
            Poll::Pending => first,
            Poll::Ready(second) => self.gather(first, second, cx),
        }
    }

    #[cold]
    fn gather(&mut self, first: Frame<Bytes>, second: Said, cx: &mut Context<'_>) -> Frame<Bytes> {
        let mut ahead = Box::<Ahead>::default();
        ahead.add(Some(Ok(first)));
        ahead.add(second);
        while ahead.then.is_none()
            && ahead.data.len() < TOGETHER
            && let Poll::Ready(said) = self.poll_taking(cx)
        {
            ahead.add(said);
        }
        let gathered = Frame::data(ahead.data.split().freeze());
        if !ahead.is_empty() {
            self.ahead = Some(ahead);
        }
        gathered
    }

    pub(super) fn poll_taking(&mut self, cx: &mut Context<'_>) -> Poll<Said> {
        let Some(source) = &mut self.source else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(source).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let (Some(data), Some(calm)) = (frame.data_ref(), &self.calm)
        {
            calm.pieces().taken(data.len());
        }
        polled
    }

    /// Takes all that has come. False: it is too much.
    fn take_ahead(&mut self) -> bool {
        let waits = matches!(self.state, State::Kept | State::Streamed);
        let given_up = self.failure == Some(RequestFailure::Crowd);
        if !waits && !given_up {
            return true;
        }
        // Whoever waits for more goes on waiting.
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(waker.as_ref().unwrap_or(Waker::noop()));
        let mut ahead = self.ahead.take().unwrap_or_default();
        while ahead.then.is_none()
            && let Poll::Ready(said) = self.poll_taking(&mut cx)
        {
            ahead.add(said);
            if given_up || ahead.is_too_much() {
                // It is read on all the same: h2 would remember what nobody takes.
                ahead.data.clear();
                if !given_up && self.failure.is_none() {
                    self.fail(RequestFailure::Crowd);
                }
            }
        }
        if self.failure.is_some() {
            return given_up;
        }
        if !ahead.is_empty() {
            self.ahead = Some(ahead);
        }
        true
    }
}
