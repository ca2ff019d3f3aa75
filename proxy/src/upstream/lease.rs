//! The right to send one request on a connection.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use http::{HeaderMap, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::pool::{Freed, Idle, Shelf};
use super::{SendError, UpstreamError};
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
    pub(super) streams: Rc<Cell<usize>>,
    pub(super) freed: Freed,
    pub(super) reused: bool,
}

impl Lease {
    /// Sends a request.
    ///
    /// # Errors
    ///
    /// When no response head came.
    pub async fn send(
        &mut self,
        head: Head,
        body: RequestBody,
    ) -> Result<Response<Incoming>, SendError> {
        let Head {
            method,
            uri,
            headers,
        } = head;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let sent = match self {
            Self::Http1(lease) => lease.sender()?.try_send_request(request).await,
            Self::Http2(lease) => {
                *request.version_mut() = Version::HTTP_2;
                lease.sender.try_send_request(request).await
            }
        };
        sent.map_err(SendError::from)
    }

    /// Whether the connection comes from the pool and is not fresh.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.reused,
            Self::Http2(lease) => lease.reused,
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

impl Http1Lease {
    fn sender(&mut self) -> Result<&mut http1::SendRequest<RequestBody>, SendError> {
        let error = SendError {
            error: UpstreamError::NotSent,
            head: None,
        };
        self.idle.as_mut().map(|idle| &mut idle.sender).ok_or(error)
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let left = self.streams.get() - 1;
        self.streams.set(left);
        self.freed.stream(left == 0);
    }
}

impl From<TrySendError<Request<RequestBody>>> for SendError {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => {
                let (parts, _body) = request.into_parts();
                let head = Box::new(Head {
                    method: parts.method,
                    uri: parts.uri,
                    headers: parts.headers,
                });
                Self {
                    error: UpstreamError::NotSent,
                    head: Some(head),
                }
            }
            None => Self {
                error: UpstreamError::from_sent(error.into_error()),
                head: None,
            },
        }
    }
}
