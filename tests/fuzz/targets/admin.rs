//! The admin server: which requests are answered, and the log filter that they may set.
//!
//! The input is a request: method, target and fields, a line each, an empty line, and a body. It is answered only if it names
//! an address or a name of the machine as its host, and nothing else besides; a browser's `POST` never is. A filter that is
//! taken is said back in words that mean the same; one that is not leaves the old one.

#![no_main]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use tokio::runtime::Runtime;
use tulle_fuzz::input::Cursor;
use tulle_runtime::admin::{AdminServer, text};
use tulle_runtime::trace::{self, Format, TraceHandle};

/// Bytes of a body.
const MAX_BODY: usize = 64 * 1024;

struct Rig {
    runtime: Runtime,
    server: AdminServer,
    trace: TraceHandle,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let trace = trace::init("off", Format::Text).expect("the only one here");
    let bind = AdminServer::bind(([127, 0, 0, 1], 0).into());
    let mut server = runtime.block_on(bind).expect("a port");
    server.allow_host("tulle-control.tulle-system.svc");
    server.get("/ready", |_| async { text(StatusCode::OK, "ready\n") });
    server.get("/app-health/*", |request| async {
        text(StatusCode::OK, request.path)
    });
    let handle = trace.clone();
    server.post("/logging", move |request| {
        let answer = set(&handle, &request.body);
        async { answer }
    });
    Rig {
        runtime,
        server,
        trace,
    }
});

tulle_fuzz::target!(|data: &[u8]| {
    let mut input = Cursor(data);
    let Some(request) = request(&mut input) else {
        return;
    };
    let (parts, body) = (request.clone(), Bytes::copy_from_slice(input.0));
    let before = RIG.trace.filter();
    let sent = Request::from_parts(request, Full::new(body.clone()));
    let answer = RIG.runtime.block_on(async {
        let (head, body) = RIG.server.answer(sent).await.into_parts();
        let body = body.collect().await.expect("it is there").to_bytes();
        (head.status, body)
    });
    let (status, said) = answer;
    assert!(!status.is_server_error(), "{status}");
    // A refusal of a filter repeats it, escaped.
    assert!(said.len() <= 10 * MAX_BODY + 4096, "{} bytes", said.len());
    if status == StatusCode::FORBIDDEN {
        assert!(!is_plain(&parts), "it was refused");
    } else {
        assert!(is_meant(&parts), "it was answered");
    }
    let path = parts.uri.path();
    let known = path == "/ready" || path == "/logging" || path.starts_with("/app-health/");
    assert!(known || [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status));
    if path == "/logging" && status == StatusCode::OK {
        set_anew(&said);
    } else {
        assert_eq!(RIG.trace.filter(), before, "nobody changed it");
    }
});

fn request(input: &mut Cursor<'_>) -> Option<Parts> {
    let mut parts = Request::new(()).into_parts().0;
    parts.method = Method::from_bytes(input.line()).ok()?;
    let target = input.line();
    let (target, old) = match target.strip_suffix(b" HTTP/1.0") {
        Some(target) => (target, true),
        None => (target, false),
    };
    parts.version = if old {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    parts.uri = http::Uri::try_from(target).ok()?;
    loop {
        let line = input.line();
        if line.is_empty() {
            return Some(parts);
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        parts.headers.append(
            HeaderName::from_bytes(&line[..colon]).ok()?,
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?,
        );
    }
}

/// As the sidecar does.
fn set(trace: &TraceHandle, body: &[u8]) -> tulle_runtime::admin::Answer {
    let filter = std::str::from_utf8(body).unwrap_or_default().trim();
    if filter.is_empty() {
        return text(StatusCode::BAD_REQUEST, "send the filter as the body\n");
    }
    match trace.set_filter(filter) {
        Ok(()) => text(StatusCode::OK, trace.filter()),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// What a filter is said to be can be set, and means the same.
fn set_anew(said: &[u8]) {
    let said = std::str::from_utf8(said).expect("it is text");
    let set = RIG.trace.set_filter(said);
    assert!(set.is_ok(), "{said}: {set:?}");
    let mut again: Vec<_> = RIG.trace.filter().split(',').map(str::to_owned).collect();
    let mut first: Vec<_> = said.split(',').map(str::to_owned).collect();
    again.sort();
    first.sort();
    assert_eq!(again, first);
    RIG.trace.set_filter("off").expect("a filter");
}

/// Whether each host that it names is an address, or a name of the machine.
fn is_meant(parts: &Parts) -> bool {
    let hosts = parts.headers.get_all(HOST).into_iter();
    let named: Vec<_> = hosts.map(HeaderValue::as_bytes).collect();
    let authority = parts.uri.authority();
    let all = named
        .iter()
        .copied()
        .chain(authority.map(|it| it.as_str().as_bytes()));
    let few = named.len() == 1 || named.is_empty() && parts.version == Version::HTTP_10;
    let from_browser =
        parts.headers.contains_key(ORIGIN) || parts.headers.contains_key("sec-fetch-site");
    few && all.into_iter().all(is_ours) && !(parts.method == Method::POST && from_browser)
}

fn is_ours(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if digits(port) => name,
        _ => host,
    };
    let six = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let names = ["localhost", "tulle-control.tulle-system.svc"];
    name.parse::<std::net::Ipv4Addr>().is_ok()
        || six.is_some_and(|six| six.parse::<Ipv6Addr>().is_ok())
        || names.iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// Whether it is one that nobody could have a reason to refuse.
fn is_plain(parts: &Parts) -> bool {
    let hosts: Vec<_> = parts.headers.get_all(HOST).into_iter().collect();
    let [host] = hosts[..] else {
        return false;
    };
    let plain = ["127.0.0.1", "127.0.0.1:15000", "localhost", "[::1]:15000"];
    plain.iter().any(|name| host == name)
        && parts.headers.len() == 1
        && parts.uri.authority().is_none()
}
