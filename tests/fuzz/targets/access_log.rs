//! The access log.
//!
//! The input is what strangers choose of a request and of a connection: method, path, header values, server name, and
//! names of route and cluster. Each becomes exactly one line that is a JSON object with the same keys, in which no value
//! has left its string, and on which a terminal does nothing but print.

#![no_main]

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method, StatusCode, Uri, Version};
use serde_json::Value;
use tulle_fuzz::input::{Cursor, seed};
use tulle_proxy::config::route::{PathMatch, Route, RouteAction, RouteMatch};
use tulle_proxy::conn::{Direction, Downstream, Security};
use tulle_proxy::grpc::Messages;
use tulle_proxy::telemetry::{ConnectionRecord, RequestRecord, ResponseFlags};

/// Longest value that is written whole; escaped, a byte is six at most.
const MAX_VALUE: usize = 2_048;
/// Values in a line that come from strangers.
const VALUES: usize = 10;

tulle_fuzz::target!(|data: &[u8]| {
    let mut input = Cursor(data);
    let sni = String::from_utf8_lossy(input.line()).into_owned();
    let downstream = Rc::new(Downstream {
        direction: Direction::Inbound,
        peer: "[fe80::1%7]:1"
            .parse()
            .unwrap_or_else(|_| ([10, 0, 0, 1], 1).into()),
        original_dst: ([10, 0, 0, 2], 80).into(),
        security: Security::Plaintext,
        sni: Some(sni.as_str().into()),
    });
    let mut connection = ConnectionRecord::new(downstream.clone());
    connection.start_time = moment(data);
    let request = request(downstream, &mut input, data);
    let agent = request.user_agent.clone();
    let lines = tulle_proxy::fuzz::access_log(&[request], &[connection]);
    let text = String::from_utf8(lines).expect("UTF-8");
    let text = text.strip_suffix('\n').expect("the last line has an end");
    let lines: Vec<_> = text.split('\n').collect();
    let [of_request, of_connection] = lines[..] else {
        panic!("{} lines", lines.len());
    };
    let (request, connection) = (object(of_request), object(of_connection));
    let keys = |value: &Value| {
        value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&request), keys(&connection));
    assert_eq!(request["response_code"], 200);
    assert!(
        written(&connection["requested_server_name"], sni.as_bytes()),
        "{connection}"
    );
    if let Some(agent) = agent {
        assert!(
            written(&request["user_agent"], agent.as_bytes()),
            "{request}"
        );
    }
});

fn request(downstream: Rc<Downstream>, input: &mut Cursor<'_>, data: &[u8]) -> RequestRecord {
    let method = Method::from_bytes(input.line()).unwrap_or(Method::GET);
    let uri = Uri::try_from(input.line()).unwrap_or_default();
    let mut value = || HeaderValue::from_bytes(input.line()).ok();
    let (authority, user_agent, request_id, forwarded_for) = (value(), value(), value(), value());
    let route = Route {
        name: String::from_utf8_lossy(input.0).into(),
        matches: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
        },
        action: RouteAction::Respond(StatusCode::OK),
        request_headers: Default::default(),
        response_headers: Default::default(),
    };
    RequestRecord {
        downstream,
        start_time: moment(data),
        started: Instant::now(),
        duration: Duration::from_millis(seed(data)),
        method,
        uri,
        version: Version::HTTP_11,
        authority,
        user_agent,
        request_id,
        forwarded_for,
        grpc: false,
        status: StatusCode::OK,
        grpc_status: None,
        flags: ResponseFlags::default(),
        details: "",
        route: Some(Arc::new(route)),
        cluster: None,
        endpoint: None,
        upstream: None,
        upstream_time: None,
        attempts: 1,
        bytes_received: seed(data),
        bytes_sent: u64::MAX,
        messages_received: Messages::default(),
        messages_sent: Messages::default(),
    }
}

/// Any time that a clock can show.
fn moment(data: &[u8]) -> SystemTime {
    let seconds = seed(data) >> (seed(data) % 64);
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn object(line: &str) -> Value {
    assert!(
        line.len() < VALUES * (MAX_VALUE * 6 + 100),
        "{} bytes",
        line.len()
    );
    let prints = |c: char| !c.is_control() && !['\u{2028}', '\u{2029}'].contains(&c);
    assert!(line.chars().all(prints), "{line:?}");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

/// Whether a value says what was given, as far as it is text and not too long.
fn written(value: &Value, given: &[u8]) -> bool {
    let text = value.as_str().expect("a string");
    match std::str::from_utf8(given) {
        Ok(given) if given.len() <= MAX_VALUE => text == given,
        Ok(_) => text.ends_with("..."),
        Err(_) => text.contains('\u{fffd}') || text.ends_with("..."),
    }
}
