//! Heads that are refused before there is a request: what is answered, and who is told.
//!
//! Of each one line of the access log tells, as it tells of requests, and a metric: `tulle_limits_reached_total` of what is
//! too large, `tulle_downstream_connections_refused_total` of what is wrong or late. A stream of HTTP/2 that its library has
//! reset for what came on it counts as `tulle_downstream_streams_malformed_total`, and has no line of the access log: there may have been a request, which has one. [`crate::io::Guard`] finds most of it,
//! hyper the rest, which has answered then.

use http::{Response, StatusCode};

use super::body::ResponseBody;
use super::exchange::Connection;
use super::headers;
use super::local_reply::{self, Failure};
use crate::conn::Direction;
use crate::io::{Calm, Gate, Heads, Refusal};
use crate::net;
use crate::telemetry::{Limit, RefusedHead, ResponseFlag};

/// What heads may be on a connection.
pub(super) fn heads(connection: &Connection) -> Heads {
    let settings = &connection.worker.settings;
    Heads {
        patience: settings.patience.head,
        longest: settings.bounds.head,
        most: settings.bounds.fields,
        answer: match connection.downstream.direction {
            Direction::Outbound => |why| local_reply::written(why, Direction::Outbound),
            Direction::Inbound => |why| local_reply::written(why, Direction::Inbound),
        },
    }
}

/// Answers what the guard has not let through.
pub(super) fn answer(connection: &Connection, why: Refusal) -> Response<ResponseBody> {
    let direction = connection.downstream.direction;
    let mut answer = local_reply::answer(&Failure::from(why), direction, false);
    headers::close(answer.response.headers_mut());
    answer.response
}

/// Tells of what was refused on a connection, if anything was; it has been answered.
pub(super) fn tell(connection: &Connection, gate: &Gate, error: Option<&hyper::Error>) {
    if gate.is_late() {
        late(connection);
    } else if let Some(refused) = gate.refused() {
        match refused.why {
            Refusal::Malformed(why) => malformed(connection, Some(why), error),
            _ => large(connection),
        }
        if refused.head {
            let answer = Failure::from(refused.why);
            let direction = connection.downstream.direction;
            let answer = local_reply::answer(&answer, direction, false);
            log(
                connection,
                answer.response.status(),
                answer.flag,
                answer.reason,
            );
        }
    } else if error.is_some_and(hyper::Error::is_parse_too_large) {
        large(connection);
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let details = "the head of the request is too large";
        log(
            connection,
            status,
            ResponseFlag::DownstreamProtocolError,
            details,
        );
    } else if error.is_some_and(hyper::Error::is_parse) {
        malformed(connection, None, error);
        let (flag, details) = (ResponseFlag::DownstreamProtocolError, "malformed request");
        log(connection, StatusCode::BAD_REQUEST, flag, details);
    }
}

/// Tells of what HTTP/2's library has refused by itself: streams beyond those that may be open, heads, with 431 whatever
/// of them is too large, and what was malformed.
pub(super) fn tell_http2(connection: &Connection, calm: &Calm) {
    for _ in 0..calm.take_refused_streams() {
        let what = "a stream is refused, because as many are open as may be";
        connection.reached(Limit::H2Streams, what);
    }
    for _ in 0..calm.take_refused() {
        let what = "a head is refused that is too large for HTTP/2";
        connection.reached(Limit::H2HeaderList, what);
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let details = "the head of the request is too large";
        let flag = ResponseFlag::DownstreamProtocolError;
        log(connection, status, flag, details);
    }
    for _ in 0..calm.take_malformed() {
        malformed_stream(connection);
    }
}

/// Tells who sent a message on a stream of HTTP/2 that its library has reset for that.
fn malformed_stream(connection: &Connection) {
    let downstream = &connection.downstream;
    let connections = &connection.worker.connections;
    let Some(unsaid) = connections.malformed_stream(downstream.direction, downstream.peer) else {
        return;
    };
    tracing::info!(
        client.addr = %downstream.peer,
        client.id = downstream.peer_id().map(tracing::field::display),
        server.addr = %downstream.original_dst,
        unsaid,
        "refused: a stream of malformed HTTP/2; correct the client"
    );
}

/// Tells who sent what is no HTTP, and what is wrong with it.
pub(super) fn malformed(
    connection: &Connection,
    why: Option<&'static str>,
    error: Option<&hyper::Error>,
) {
    let downstream = &connection.downstream;
    let connections = &connection.worker.connections;
    let Some(unsaid) = connections.refuse_and_tell(
        downstream.direction,
        net::Refusal::MalformedHttp,
        downstream.peer,
    ) else {
        return;
    };
    tracing::info!(
        client.addr = %downstream.peer,
        client.id = downstream.peer_id().map(tracing::field::display),
        server.addr = %downstream.original_dst,
        why,
        error = error.map(tracing::field::display),
        cause = error.and_then(std::error::Error::source).map(tracing::field::display),
        unsaid,
        "refused: malformed HTTP; correct the client, or declare the port as TCP if it speaks something else"
    );
}

/// Tells who holds a connection with a head that does not end.
fn late(connection: &Connection) {
    let what = "a head is refused that does not end in time";
    connection.reached(Limit::HeadTime, what);
    let connections = &connection.worker.connections;
    connections.refuse(connection.downstream.direction, net::Refusal::SlowHead);
    let (status, flag) = (StatusCode::REQUEST_TIMEOUT, ResponseFlag::StreamIdleTimeout);
    log(
        connection,
        status,
        flag,
        "the head of the request took too long",
    );
}

/// Tells who sent a head that is too large.
fn large(connection: &Connection) {
    let bounds = connection.worker.settings.bounds;
    let what = format_args!(
        "a head with more than {} bytes or {} fields is refused",
        bounds.head, bounds.fields
    );
    connection.reached(Limit::Head, what);
}

fn log(connection: &Connection, status: StatusCode, flag: ResponseFlag, details: &'static str) {
    connection.worker.telemetry.refused(&RefusedHead {
        downstream: &connection.downstream,
        status,
        flag,
        details,
    });
}
