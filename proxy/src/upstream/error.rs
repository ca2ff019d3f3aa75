//! What can go wrong on the way upstream, and what it says about the request.

use std::error::Error as _;
use std::io;

use crate::io::TooManyInterim;
use crate::tls::TlsError;

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network said no.
    #[error("connecting to the upstream failed")]
    Io(#[from] io::Error),
    /// TCP and TLS together took longer than the cluster allows.
    #[error("connecting to the upstream took too long")]
    Timeout,
    /// The peer did not prove to be who it must be, or TLS failed otherwise.
    #[error("the TLS handshake with the upstream failed")]
    Tls(#[from] TlsError),
    /// The HTTP/2 preface was refused.
    #[error("the upstream did not accept an HTTP/2 connection")]
    Handshake(#[source] hyper::Error),
    /// Another request was connecting, and that connection failed.
    #[error("a connection that this request waited for could not be made")]
    Shared,
}

/// An attempt that ended without a response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There was no connection, so nothing was sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A limit of the cluster was reached, so nothing was sent.
    #[error("the cluster's limit of {0} is reached")]
    Overflow(&'static str),
    /// The connection ended before the request was written to it: hyper gave it back.
    #[error("the pooled connection closed before the request was sent")]
    NotSent,
    /// The peer said that it did not process the stream: `REFUSED_STREAM` or a GOAWAY below its id.
    #[error("the upstream refused the stream")]
    Refused(#[source] hyper::Error),
    /// A sidecar of the mesh said that its app never got the request.
    #[error("the upstream's sidecar could not hand the request to its app")]
    Unprocessed,
    /// The peer reset the stream; it may have processed the request.
    #[error("the upstream reset the stream")]
    Reset(#[source] hyper::Error),
    /// The connection ended; the peer may have processed the request.
    #[error("the upstream closed the connection before it answered")]
    Closed(#[source] hyper::Error),
    /// The upstream coded its body for the hop in a way that nobody asked for.
    #[error("the upstream's transfer-encoding is not chunked")]
    Coded,
    /// The request's head is larger than it may be on HTTP/2; nothing was sent.
    #[error("the head of the request is too large for HTTP/2")]
    TooLarge {
        /// Whether its target alone is.
        target: bool,
    },
    /// The head of the answer is larger than it may be.
    #[error("the head of the upstream's answer is too large")]
    AnswerTooLarge(#[source] hyper::Error),
    /// The peer sent more interim answers to a request than it may.
    #[error("the upstream sent too many interim answers")]
    Interim(#[source] hyper::Error),
    /// The peer switched protocols though nobody asked it to.
    #[error("the upstream switched protocols unasked")]
    UnwantedUpgrade,
    /// What the peer sent was no HTTP.
    #[error("the upstream sent a malformed response")]
    Malformed(#[source] hyper::Error),
}

/// An error with the request's head, if the connection gave it back unsent.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub error: UpstreamError,
    /// The head, to be sent elsewhere; boxed because it is rarely there.
    pub head: Option<Box<super::Head>>,
}

impl UpstreamError {
    /// Whether the app provably never got the request: any method may be tried again.
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Connect(_) | Self::NotSent | Self::Refused(_) | Self::Unprocessed => true,
            Self::Overflow(_)
            | Self::Reset(_)
            | Self::Closed(_)
            | Self::Coded
            | Self::TooLarge { .. }
            | Self::AnswerTooLarge(_)
            | Self::Interim(_)
            | Self::UnwantedUpgrade
            | Self::Malformed(_) => false,
        }
    }

    /// Whether the connection or the stream ended after the request may have reached the app.
    #[must_use]
    pub fn may_be_processed(&self) -> bool {
        matches!(self, Self::Reset(_) | Self::Closed(_))
    }

    /// The same error, unless an HTTP/2 stream was reset for its interim answers, which is only known if one was.
    pub(super) fn or_interim(self, was_one: impl FnOnce() -> bool) -> Self {
        match self {
            Self::Reset(source) if is_own_reset(&source) && was_one() => Self::Interim(source),
            other => other,
        }
    }

    /// Reads hyper's error for a request that was not given back.
    pub(super) fn from_sent(error: hyper::Error) -> Self {
        if let Some(h2) = h2_error(&error) {
            let refused = h2.is_reset() && is_refused(&error);
            return match () {
                () if h2.is_remote() && (refused || h2.is_go_away()) => Self::Refused(error),
                () if h2.is_reset() => Self::Reset(error),
                () => Self::Closed(error),
            };
        }
        if is_interim(&error) {
            Self::Interim(error)
        } else if error.is_parse_too_large() {
            Self::AnswerTooLarge(error)
        } else if error.is_parse() {
            Self::Malformed(error)
        } else {
            Self::Closed(error)
        }
    }
}

/// Whether an HTTP/1 connection was broken for its interim answers.
fn is_interim(error: &hyper::Error) -> bool {
    let io = error
        .source()
        .and_then(|error| error.downcast_ref::<io::Error>());
    io.and_then(io::Error::get_ref)
        .is_some_and(|error| error.is::<TooManyInterim>())
}

/// Whether the library has reset the stream for what the peer sent on it.
pub(super) fn is_own_reset(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|h2| {
        h2.is_library() && h2.is_reset() && h2.reason() == Some(h2::Reason::PROTOCOL_ERROR)
    })
}

/// Whether the peer said `REFUSED_STREAM`.
#[must_use]
pub fn is_refused(error: &hyper::Error) -> bool {
    h2_error(error).and_then(h2::Error::reason) == Some(h2::Reason::REFUSED_STREAM)
}

/// Whether the stream was reset with a code that says that what was sent on it was at fault.
#[must_use]
pub fn is_fault(error: &hyper::Error) -> bool {
    let reason = h2_error(error).and_then(h2::Error::reason);
    reason.is_some_and(|reason| {
        [
            h2::Reason::PROTOCOL_ERROR,
            h2::Reason::FLOW_CONTROL_ERROR,
            h2::Reason::STREAM_CLOSED,
        ]
        .contains(&reason)
    })
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}
