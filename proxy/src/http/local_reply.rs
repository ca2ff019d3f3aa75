//! What the client gets when a request ends here: the one place that turns an error into an answer.
//!
//! Every answer made here carries [`FAILED_HOP_HEADER`], so that whoever reads it knows which sidecar refused and
//! why, and a body that says so in a sentence. gRPC clients get the same as `grpc-status` and `grpc-message`.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tracing::Level;
use tulle_runtime::names::UNPROCESSED_HEADER;

use super::body::ResponseBody;
use crate::conn::{Direction, Downstream};
use crate::fields;
use crate::io::Refusal;
use crate::net;
use crate::route::{RedirectError, RewriteError};
use crate::telemetry::ResponseFlag;
use crate::upstream::{ConnectError, UpstreamError};

/// Names the sidecar that answered instead of the app, and why.
pub const FAILED_HOP_HEADER: HeaderName = HeaderName::from_static(fields::FAILED_HOP);
/// Why an answer is refused, or cut behind its head.
pub(super) const TOO_MANY_INTERIM: &str = "the upstream sent too many interim responses";

/// Why a request was not answered by the app.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The request is not one that a proxy can pass on.
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    /// The target of the request is longer than a head may be.
    #[error("the target of the request is too long")]
    TargetTooLong,
    /// The head of the request is more than it may be.
    #[error("{0}")]
    HeadTooLarge(&'static str),
    /// `CONNECT`, which has no meaning between services.
    #[error("CONNECT is not supported")]
    Connect,
    /// The control plane did not say what the destination is.
    #[error("the control plane did not say what is behind the destination")]
    Undiscovered,
    /// The destination is declared opaque meanwhile.
    #[error("the destination no longer speaks HTTP; connect again")]
    NotHttp,
    /// Plaintext where mutual TLS is required.
    #[error("mutual TLS is required")]
    Plaintext,
    /// No route matches.
    #[error("no route matches the request")]
    NoRoute,
    /// The route names a cluster that is not there.
    #[error("the route's cluster is not known")]
    NoCluster(StatusCode),
    /// The cluster has no endpoints.
    #[error("the service has no endpoint that could take the request")]
    NoEndpoint,
    /// The route's rewrite made no valid request.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The route's redirect made no valid response.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// The request took too long.
    #[error("the request took longer than its route allows")]
    Timeout,
    /// There is too much going on; nothing was sent.
    #[error("the sidecar has too much to do")]
    Overload,
    /// Memory ran short while the request was on its way: its app may have got some of it.
    #[error("the request is large, and memory is short")]
    Cut,
    /// The client paused for too long.
    #[error("the client paused for too long in its request")]
    SlowBody,
    /// Too much of the request waited for its app in small pieces.
    #[error("too many small pieces of the request were waiting")]
    Crowd,
    /// The client left, or stopped sending its body.
    #[error("the client did not send the whole request")]
    ClientGone,
    /// The last attempt failed.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// An answer, before it takes the form that the client understands.
struct Reply {
    status: StatusCode,
    grpc: u16,
    flag: ResponseFlag,
    level: Level,
    reason: &'static str,
}

impl Failure {
    fn reply(&self) -> Reply {
        use Level as L;
        use ResponseFlag as F;
        use StatusCode as S;
        // gRPC codes: 3 invalid argument, 4 deadline exceeded, 7 permission denied, 8 resource exhausted,
        // 12 unimplemented, 13 internal, 14 unavailable.
        let (status, grpc, flag, level, reason) = match self {
            Self::BadRequest(reason) => (
                S::BAD_REQUEST,
                3,
                F::DownstreamProtocolError,
                L::DEBUG,
                *reason,
            ),
            Self::TargetTooLong => (
                S::URI_TOO_LONG,
                3,
                F::DownstreamProtocolError,
                L::DEBUG,
                "the target of the request is too long",
            ),
            Self::HeadTooLarge(reason) => (
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                8,
                F::DownstreamProtocolError,
                L::DEBUG,
                *reason,
            ),
            Self::Connect => (
                S::NOT_IMPLEMENTED,
                12,
                F::DownstreamProtocolError,
                L::DEBUG,
                "CONNECT is not supported",
            ),
            Self::Undiscovered => (
                S::SERVICE_UNAVAILABLE,
                14,
                F::NoRoute,
                L::WARN,
                "the control plane did not say what is behind the destination",
            ),
            Self::NotHttp => (
                S::SERVICE_UNAVAILABLE,
                14,
                F::NoRoute,
                L::DEBUG,
                "the destination no longer speaks HTTP; connect again",
            ),
            Self::Plaintext => (
                S::FORBIDDEN,
                7,
                F::Unauthorized,
                L::INFO,
                "mutual TLS is required",
            ),
            Self::NoRoute => (
                S::NOT_FOUND,
                12,
                F::NoRoute,
                L::DEBUG,
                "no route matches the request",
            ),
            Self::NoCluster(status) => (
                *status,
                14,
                F::NoCluster,
                L::WARN,
                "the route's cluster is not known",
            ),
            Self::NoEndpoint => (
                S::SERVICE_UNAVAILABLE,
                14,
                F::NoHealthyUpstream,
                L::DEBUG,
                "the service has no endpoint that could take the request",
            ),
            Self::Rewrite(RewriteError::Path(_)) => (
                S::INTERNAL_SERVER_ERROR,
                13,
                F::NoRoute,
                L::WARN,
                "the route rewrites the path to something that is no path",
            ),
            Self::Rewrite(RewriteError::Host(_)) => (
                S::INTERNAL_SERVER_ERROR,
                13,
                F::NoRoute,
                L::WARN,
                "the route rewrites the host to something that is no host",
            ),
            Self::Redirect(_) => (
                S::INTERNAL_SERVER_ERROR,
                13,
                F::NoRoute,
                L::WARN,
                "the route redirects to something that is no location",
            ),
            Self::Timeout => (
                S::GATEWAY_TIMEOUT,
                4,
                F::UpstreamRequestTimeout,
                L::DEBUG,
                "the request took longer than its route allows",
            ),
            Self::Overload => (
                S::SERVICE_UNAVAILABLE,
                14,
                F::Overload,
                L::DEBUG,
                "the sidecar has too much to do",
            ),
            Self::Cut => (
                S::SERVICE_UNAVAILABLE,
                8,
                F::Overload,
                L::DEBUG,
                "the request is large, and memory is short",
            ),
            Self::SlowBody => (
                S::REQUEST_TIMEOUT,
                4,
                F::StreamIdleTimeout,
                L::DEBUG,
                "the client paused for too long in its request",
            ),
            Self::Crowd => (
                S::SERVICE_UNAVAILABLE,
                8,
                F::Overload,
                L::DEBUG,
                "too many small pieces of the request were waiting",
            ),
            Self::ClientGone => (
                S::BAD_REQUEST,
                3,
                F::DownstreamConnectionTermination,
                L::DEBUG,
                "the client did not send the whole request",
            ),
            Self::Upstream(error) => return upstream(error),
        };
        Reply {
            status,
            grpc,
            flag,
            level,
            reason,
        }
    }
}

fn upstream(error: &UpstreamError) -> Reply {
    use ResponseFlag as F;
    use UpstreamError as E;
    let (status, grpc) = (StatusCode::SERVICE_UNAVAILABLE, 14);
    let (flag, reason) = match error {
        E::Connect(ConnectError::Io(_)) => (
            F::UpstreamConnectionFailure,
            "connecting to the upstream failed",
        ),
        E::Connect(ConnectError::Timeout) => (
            F::UpstreamConnectionFailure,
            "connecting to the upstream took too long",
        ),
        E::Connect(ConnectError::Tls(_)) => (
            F::UpstreamConnectionFailure,
            "the TLS handshake with the upstream failed",
        ),
        E::Connect(ConnectError::Handshake(_) | ConnectError::Shared) => (
            F::UpstreamConnectionFailure,
            "the upstream did not accept the connection",
        ),
        E::Overflow(_) => {
            let (grpc, flag) = (8, F::UpstreamOverflow);
            return Reply {
                status,
                grpc,
                flag,
                level: Level::INFO,
                reason: "a limit of the service is reached",
            };
        }
        E::NotSent => (
            F::UpstreamConnectionTermination,
            "the upstream closed the connection before the request was sent",
        ),
        E::Refused(_) => (F::UpstreamRemoteReset, "the upstream refused the stream"),
        E::Unprocessed => (
            F::UpstreamConnectionFailure,
            "the upstream's sidecar could not reach its app",
        ),
        E::Reset(_) => (F::UpstreamRemoteReset, "the upstream reset the stream"),
        E::Closed(_) => (
            F::UpstreamConnectionTermination,
            "the upstream closed the connection before it answered",
        ),
        E::TooLarge { target } => {
            let (status, reason) = match target {
                true => (
                    StatusCode::URI_TOO_LONG,
                    "the target of the request is too long for HTTP/2",
                ),
                false => (
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "the head of the request is too large for HTTP/2",
                ),
            };
            let (grpc, flag) = (8, F::DownstreamProtocolError);
            return Reply {
                status,
                grpc,
                flag,
                level: Level::INFO,
                reason,
            };
        }
        E::Malformed(_) | E::Coded | E::UnwantedUpgrade | E::AnswerTooLarge(_) | E::Interim(_) => {
            let (status, flag) = (StatusCode::BAD_GATEWAY, F::UpstreamProtocolError);
            return Reply {
                status,
                grpc,
                flag,
                level: Level::INFO,
                reason: match error {
                    E::AnswerTooLarge(_) => "the head of the upstream's response is too large",
                    E::Interim(_) => TOO_MANY_INTERIM,
                    _ => "the upstream sent a malformed response",
                },
            };
        }
    };
    Reply {
        status,
        grpc,
        flag,
        level: Level::DEBUG,
        reason,
    }
}

impl From<Refusal> for Failure {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::Malformed(why) => Self::BadRequest(why),
            Refusal::TargetTooLong => Self::TargetTooLong,
            Refusal::HeadTooLarge => Self::HeadTooLarge("the head of the request is too large"),
            Refusal::TooManyFields => {
                Self::HeadTooLarge("the head of the request has too many fields")
            }
        }
    }
}

/// Says why a request fails here. What an operator sees at ordinary times goes through a gate: whoever makes such a request
/// can make many.
pub(super) fn tell(failure: &Failure, client: &Downstream, connections: &net::Metrics) {
    let reply = failure.reply();
    let direction = client.direction;
    /// One line, whatever its level.
    macro_rules! line {
        ($level:ident, $unsaid:expr) => {
            tracing::$level!(
                ?direction,
                client.addr = %client.peer,
                client.id = client.peer_id().map(tracing::field::display),
                server.addr = %client.original_dst,
                flag = reply.flag.as_str(),
                error = %failure,
                cause = std::error::Error::source(failure).map(tracing::field::display),
                unsaid = $unsaid,
                "request failed"
            )
        };
    }
    if reply.level > Level::INFO {
        return line!(debug, None::<u64>);
    }
    let Some(unsaid) = connections.may_tell(direction, reply.reason, client.peer) else {
        return;
    };
    match reply.level {
        Level::WARN => line!(warn, unsaid),
        _ => line!(info, unsaid),
    }
}

/// What a local reply says about itself, for the record.
pub(super) struct Answer {
    pub(super) response: Response<ResponseBody>,
    pub(super) flag: ResponseFlag,
    pub(super) reason: &'static str,
    pub(super) grpc_status: Option<u16>,
}

/// Answers a request that failed here.
pub(super) fn answer(failure: &Failure, direction: Direction, grpc: bool) -> Answer {
    let reply = failure.reply();
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    headers.insert(FAILED_HOP_HEADER, hop(direction));
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(reply.grpc));
        headers.insert("grpc-message", HeaderValue::from_static(reply.reason));
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        *response.body_mut() = ResponseBody::full(Bytes::from_static(reply.reason.as_bytes()));
        *response.status_mut() = reply.status;
    }
    if matches!(
        failure,
        Failure::Connect
            | Failure::BadRequest(_)
            | Failure::TargetTooLong
            | Failure::HeadTooLarge(_)
            | Failure::NotHttp
            | Failure::Plaintext
            | Failure::SlowBody
    ) {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Answer {
        response,
        flag: reply.flag,
        reason: reply.reason,
        grpc_status: grpc.then_some(reply.grpc),
    }
}

/// Answers a head that hyper cannot hand over: all bytes of the answer, after which the connection closes.
pub(super) fn written(why: Refusal, direction: Direction) -> Bytes {
    let answer = answer(&Failure::from(why), direction, false);
    let (head, body) = (answer.response.into_parts().0, answer.reason);
    let mut written = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            written.extend_from_slice(part);
        }
    }
    let length = format!("content-length: {}\r\n\r\n{body}", body.len());
    written.extend_from_slice(length.as_bytes());
    written.into()
}

/// Marks an HTTP/1 answer as "the app never got it", for a mesh peer.
pub(super) fn mark_unprocessed(response: &mut Response<ResponseBody>) {
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(
        HeaderName::from_static(UNPROCESSED_HEADER),
        HeaderValue::from_static("1"),
    );
}

fn hop(direction: Direction) -> HeaderValue {
    HeaderValue::from_static(match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    })
}
