//! The right to send one request on a connection.

use std::rc::{Rc, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};

use super::crowd::Load;
use super::error::is_own_reset;
use super::pool::{Freed, Idle, Shelf};
use super::{SendError, UpstreamError};
use crate::fields;
use crate::retry::RequestBody;

/// A request without its body, as it goes upstream.
#[derive(Clone, Debug)]
pub struct Head {
    /// Method.
    pub method: Method,
    /// Target: origin form on HTTP/1, with scheme and authority on HTTP/2.
    pub uri: Uri,
    /// Headers.
    pub headers: HeaderMap,
}

impl Head {
    fn with(self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// A connection, for one exchange.
#[derive(Debug)]
pub enum Lease {
    /// All of an HTTP/1 connection.
    Http1(Http1Lease),
    /// One stream of an HTTP/2 connection.
    Http2(Http2Lease),
}

/// All of an HTTP/1 connection. Dropped before [`Lease::release`], it takes the connection with it.
#[derive(Debug)]
pub struct Http1Lease {
    pub(super) idle: Option<Idle>,
    pub(super) shelf: Weak<Shelf>,
    /// Whether the connection comes from the pool and may have been closed by its peer meanwhile.
    pub(super) reused: bool,
}

/// One stream of an HTTP/2 connection; counted until dropped.
#[derive(Debug)]
pub struct Http2Lease {
    pub(super) sender: http2::SendRequest<RequestBody>,
    pub(super) load: Rc<Load>,
    pub(super) freed: Freed,
    pub(super) reused: bool,
}

impl Lease {
    /// Sends a request. Everything that is large is in hyper's own future.
    ///
    /// # Errors
    ///
    /// When no response head came.
    pub fn send(
        &mut self,
        head: Head,
        body: RequestBody,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> {
        let mut request = head.with(body);
        let mut load = None;
        let sending = match self {
            Self::Http1(lease) => match &mut lease.idle {
                Some(idle) => {
                    idle.asked.again();
                    Either::Left(idle.sender.try_send_request(request))
                }
                None => return Either::Left(ready(Err(SendError::not_sent(None)))),
            },
            Self::Http2(lease) => {
                *request.version_mut() = Version::HTTP_2;
                load = Some(&lease.load);
                Either::Right(lease.sender.try_send_request(request))
            }
        };
        Either::Right(sending.map(move |answered| match (answered, load) {
            (Ok(mut response), Some(_)) => {
                // On HTTP/1 hyper does it.
                fields::trim(response.headers_mut());
                Ok(response)
            }
            (Ok(response), None) => Ok(response),
            (Err(error), load) => {
                let mut error = SendError::from(error);
                if let Some(load) = load {
                    error.error = error.error.or_interim(|| load.take_interim());
                }
                Err(error)
            }
        }))
    }

    /// Whether the connection comes from the pool and is not fresh.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.reused,
            Self::Http2(lease) => lease.reused,
        }
    }

    /// Number of the connection, if others share it; else 0.
    #[must_use]
    pub fn number(&self) -> usize {
        match self {
            Self::Http1(_) => 0,
            Self::Http2(lease) => lease.load.number(),
        }
    }

    /// So much of the answer was taken.
    #[inline]
    pub fn took(&self, length: usize) {
        if let Self::Http2(lease) = self {
            lease.load.took(length);
        }
    }

    /// Whether this is how an answer broke off because its head came behind too many interim ones; each is told once.
    #[must_use]
    pub fn had_too_many_interim(&self, error: &hyper::Error) -> bool {
        matches!(self, Self::Http2(lease) if is_own_reset(error) && lease.load.take_interim())
    }

    /// Nobody wants the rest of the answer.
    pub fn abandon(self, answer: Incoming) {
        if let Self::Http2(lease) = &self {
            lease.load.abandon(answer);
        }
    }

    /// The exchange is over and both messages were complete: the connection may serve another one.
    pub fn release(self) {
        if let Self::Http1(mut lease) = self
            && let Some(idle) = lease.idle.take()
            && let Some(shelf) = lease.shelf.upgrade()
        {
            shelf.put(idle);
        }
    }

    /// The connection has become something else (101): it belongs to whoever upgraded it.
    pub fn detach(self) {
        if let Self::Http1(mut lease) = self
            && let Some(mut idle) = lease.idle.take()
        {
            idle.task.keep();
        }
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let streams = &self.load.streams;
        let left = streams.get() - 1;
        streams.set(left);
        self.freed.stream(left == 0);
    }
}

impl From<http::request::Parts> for Head {
    fn from(parts: http::request::Parts) -> Self {
        Self {
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
        }
    }
}

impl SendError {
    fn not_sent(head: Option<Box<Head>>) -> Self {
        Self {
            error: UpstreamError::NotSent,
            head,
        }
    }
}

impl From<TrySendError<Request<RequestBody>>> for SendError {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => {
                let (parts, _body) = request.into_parts();
                Self::not_sent(Some(Box::new(Head::from(parts))))
            }
            None => Self {
                error: UpstreamError::from_sent(error.into_error()),
                head: None,
            },
        }
    }
}
