//! The body of a response on its way to the client, and what ends with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::exchange::Exchange;
use super::headers;
use super::local_reply::TOO_MANY_INTERIM;
use super::stalls::{self, Said};
use crate::balance::ActiveGuard;
use crate::conn::HttpVersion;
use crate::retry::{BudgetGuard, HEAVY};
use crate::telemetry::{Limit, ResponseFlag};
use crate::upstream::{Lease, is_refused};

/// A piece of so many bytes makes up for what it costs beside them.
const LARGE: usize = 256;

/// A response body. While it comes from upstream it keeps the connection, the counters and the record alive.
#[derive(Debug)]
pub(super) struct ResponseBody(Kind);

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Upstream { body: Incoming, tail: Option<Tail> },
}

/// What is held until the response is over.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) exchange: Exchange,
    pub(super) lease: Lease,
    pub(super) _active: ActiveGuard,
    pub(super) _budget: Option<BudgetGuard>,
    /// When the whole exchange has to be over; boxed because few have one.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

/// Why a response ends before its body does.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResponseBodyError {
    /// The upstream went away or sent garbage.
    #[error("the upstream did not send the whole response body")]
    Upstream(#[source] hyper::Error),
    /// The upstream says that it did not process the request, of which it has answered a part. Whoever believed that would
    /// send the request again.
    #[error("the upstream answered a part of what it says it did not process")]
    Refused,
    /// The upstream took its stream back before it was at the end, and called that no error.
    #[error("the upstream reset its response before the end of the body")]
    Reset,
    /// It is large, and memory is short.
    #[error("the response is large, and memory is short")]
    Overload,
    /// The request took too long.
    #[error("the response took longer than its route allows")]
    Timeout,
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub(super) fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(bytes))
    }

    /// A body from upstream.
    pub(super) fn upstream(body: Incoming, tail: Tail) -> Self {
        if body.is_end_stream() {
            // Nobody will poll it.
            tail.complete();
            return Self(Kind::Empty);
        }
        tail.note_partial(true);
        // It may never be asked for any: not if its client has no window for them.
        stalls::note(Said::Piece(tail.comes_by(0)));
        Self(Kind::Upstream {
            body,
            tail: Some(tail),
        })
    }
}

impl Tail {
    /// The response is complete: so is the exchange, and the connection may serve another one.
    fn complete(self) {
        self.note_partial(false);
        if self.exchange.replay.is_complete() {
            self.lease.release();
        }
        self.exchange.report();
    }

    /// To a client that knows no chunks the end of the connection may be that of the answer: until that is whole, it is a reset.
    fn note_partial(&self, partial: bool) {
        if self.exchange.record.version == Version::HTTP_10 {
            self.exchange.connection.taking.is_partial(partial);
        }
    }

    fn fail(mut self, flag: ResponseFlag, details: &'static str) {
        self.exchange.note_end(flag, details);
    }

    /// Whether it has moved much, while memory is all but used up.
    fn is_too_heavy(&self) -> bool {
        let exchange = &self.exchange;
        exchange.record.bytes_sent > HEAVY && exchange.worker().overload.cuts_transfers()
    }

    /// Number of the shared connection by which a piece of that length comes, or 0: large ones crowd none. Where the client
    /// has one answer at a time, what it may leave unread is known by it.
    fn comes_by(&self, length: usize) -> usize {
        let small = length < LARGE;
        let connection = if small { self.lease.number() } else { 0 };
        let client = &self.exchange.connection;
        if client.version == HttpVersion::Http1 {
            client.taking.comes_by(connection);
        }
        connection
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.lease.took(data.len());
            let record = &mut self.exchange.record;
            record.bytes_sent += data.len() as u64;
            if record.grpc {
                record.messages_sent.note(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.exchange.note_grpc_status(trailers);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self.get_mut();
        let polled = this.poll_next(cx);
        stalls::note(match &polled {
            Poll::Ready(Some(Ok(frame))) => Said::Piece(this.comes_by(frame)),
            _ => Said::Nothing,
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Kind::Upstream { tail: Some(_), .. } = &self.0 {
            self.abandon(|_| ());
        }
    }
}

impl ResponseBody {
    /// By which shared connection, if this is a small piece of more.
    fn comes_by(&self, frame: &Frame<Bytes>) -> usize {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match &self.0 {
            Kind::Upstream {
                tail: Some(tail), ..
            } => tail.comes_by(length),
            _ => 0,
        }
    }

    /// Ends here, before the answer does.
    #[cold]
    fn abandon(&mut self, note: impl FnOnce(&mut Exchange)) {
        if let Kind::Upstream {
            body,
            tail: Some(mut tail),
        } = std::mem::replace(&mut self.0, Kind::Empty)
        {
            note(&mut tail.exchange);
            tail.lease.abandon(body);
        }
    }

    /// As [`Self::abandon`], for a reason.
    fn cut(&mut self, flag: ResponseFlag, details: &'static str) {
        self.abandon(|exchange| exchange.note_end(flag, details));
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let (body, tail) = match &mut self.0 {
            Kind::Empty => return Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Kind::Upstream { body, tail } => (body, tail),
        };
        let polled = poll_piece(body, cx);
        let Some(open) = tail else {
            return polled.map_err(ResponseBodyError::from);
        };
        match polled {
            Poll::Pending => {
                let expired = open
                    .deadline
                    .as_mut()
                    .is_some_and(|at| at.as_mut().poll(cx).is_ready());
                if expired {
                    self.cut(ResponseFlag::UpstreamRequestTimeout, "response_timeout");
                    return Poll::Ready(Some(Err(ResponseBodyError::Timeout)));
                }
                ready!(open.exchange.replay.poll_given_up(cx));
                open.exchange
                    .reached(Limit::Memory, "a large request is cut");
                self.cut(ResponseFlag::Overload, "overload");
                Poll::Ready(Some(Err(ResponseBodyError::Overload)))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::prepare_trailers(trailers);
                }
                open.note(&frame);
                if open.is_too_heavy() {
                    open.exchange
                        .reached(Limit::Memory, "a large response is cut");
                    self.cut(ResponseFlag::Overload, "overload");
                    return Poll::Ready(Some(Err(ResponseBodyError::Overload)));
                }
                if (frame.is_trailers() || body.is_end_stream())
                    && let Some(open) = tail.take()
                {
                    open.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // hyper takes a stream that was reset without an error for one that is at its end.
            Poll::Ready(None) if matches!(open.lease, Lease::Http2(_)) && !body.is_end_stream() => {
                self.cut(
                    ResponseFlag::UpstreamConnectionTermination,
                    "upstream_body_cut",
                );
                Poll::Ready(Some(Err(ResponseBodyError::Reset)))
            }
            Poll::Ready(None) => {
                if let Some(open) = tail.take() {
                    open.complete();
                }
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(open) = tail.take() {
                    open.exchange.connection.passes_on(&error);
                    if open.lease.had_too_many_interim(&error) {
                        open.exchange.too_many_interim();
                        open.fail(ResponseFlag::UpstreamProtocolError, TOO_MANY_INTERIM);
                    } else {
                        open.fail(
                            ResponseFlag::UpstreamConnectionTermination,
                            "upstream_body_cut",
                        );
                    }
                }
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }
}

impl From<hyper::Error> for ResponseBodyError {
    fn from(error: hyper::Error) -> Self {
        // hyper tells the client what is found here.
        if is_refused(&error) {
            Self::Refused
        } else {
            Self::Upstream(error)
        }
    }
}

/// The next frame that has something to say. One without a byte in it would cost whoever it is passed on to as much as
/// any other, and too many of them the connection.
#[inline]
fn poll_piece(
    body: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    loop {
        let polled = Pin::new(&mut *body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame)))
                if frame.data_ref().is_some_and(Bytes::is_empty) && !body.is_end_stream() => {}
            _ => return polled,
        }
    }
}
