//! Sends requests through routes as the data path does, and holds what comes out to what a client or an upstream can use.

use http::request::Parts;
use http::{HeaderValue, Request, Uri, header};
use tulle_proxy::config::RouteTable;
use tulle_proxy::config::route::{Forward, PathMatch, Redirect, Route, RouteAction};
use tulle_proxy::route::{change_headers, find, location, pick_cluster, rewrite};

/// The longest target that `http` can hold.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// A request as hyper and the outbound listener hand it on: with a path and `Host`, or (HTTP/2) with an authority.
#[must_use]
pub fn request(target: &str, host: &str, http2: bool) -> Option<Parts> {
    let http2 = http2 && target != "*";
    let uri = if http2 {
        format!("http://{host}{target}")
    } else {
        target.to_owned()
    };
    let host: HeaderValue = host.parse().ok()?;
    if !host.is_empty() {
        http::uri::Authority::try_from(host.as_bytes()).ok()?;
    }
    let uri: Uri = uri
        .parse()
        .ok()
        .filter(|uri: &Uri| uri.path_and_query().is_some())?;
    let mut request = Request::builder().uri(uri);
    if !http2 {
        request = request.header(header::HOST, host);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// Sends requests that have a good chance to match through all routes of a table.
pub fn exercise(table: &RouteTable) {
    let mut targets = vec!["/".to_owned(), "*".to_owned(), "/a/b?c=d&e=%20#".to_owned()];
    for route in &table.routes {
        match &route.matches.path {
            PathMatch::Exact(path) => targets.push(path.to_string()),
            PathMatch::Prefix(path) | PathMatch::SegmentPrefix(path) => {
                targets.push(path.to_string());
                targets.push(format!("{path}/x?y=z"));
            }
            PathMatch::Regex(regex) => targets.push(format!("/{}", regex.as_str())),
        }
    }
    for target in &targets {
        for (host, http2) in [
            ("a:8080", false),
            ("[::1]", true),
            ("me@b", true),
            ("", false),
            (":80", false),
        ] {
            if let Some(parts) = request(target, host, http2) {
                send(table, &parts);
            }
        }
    }
    for host in table.hosts.iter().flat_map(|hosts| hosts.all()) {
        for domain in &host.domains {
            if let Some(parts) = request("/", &domain.replace('*', "x"), false) {
                send(table, &parts);
            }
        }
    }
}

/// Sends one request; says which route took it.
pub fn send(table: &RouteTable, parts: &Parts) -> Option<usize> {
    let route = find(table, parts)?;
    let mut headers = parts.headers.clone();
    change_headers(&route.request_headers, &mut headers);
    change_headers(&route.response_headers, &mut headers);
    match &route.action {
        RouteAction::Forward(forward) => self::forward(forward, route, parts),
        RouteAction::Redirect(redirect) => self::redirect(redirect, route, parts),
        RouteAction::Respond(status) => assert!(status.as_u16() >= 200, "no final answer"),
    }
    table
        .routes
        .iter()
        .position(|other| std::sync::Arc::ptr_eq(other, route))
}

fn forward(forward: &Forward, route: &Route, parts: &Parts) {
    let sum: u64 = forward.clusters.iter().map(|it| u64::from(it.weight)).sum();
    assert_eq!(sum, u64::from(forward.total_weight));
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..4 {
        let cluster = &forward.clusters[pick_cluster(forward, &mut rng)];
        assert!(cluster.weight > 0, "a share of nothing");
        assert!(!cluster.name.is_empty());
    }
    let mut upstream = parts.clone();
    let path = forward.path_rewrite.as_ref();
    let host = forward.host_rewrite.as_ref();
    let rewritten = rewrite(&route.matches, path, host, &mut upstream);
    if let Err(error) = rewritten {
        assert!(too_long(parts, path), "{error}: {error:?}");
        return;
    }
    let target = upstream.uri.path_and_query().expect("a target").to_string();
    assert_eq!(upstream.uri.query(), parts.uri.query(), "the query");
    assert!(
        target.starts_with('/') || parts.uri.path() == "*",
        "{target}"
    );
    let again: Uri = upstream
        .uri
        .to_string()
        .parse()
        .expect("what it says is a URI");
    assert_eq!(again, upstream.uri);
    if let Some(host) = host {
        let authority = upstream.uri.authority().map(|it| it.as_str().as_bytes());
        let written = authority.or(upstream
            .headers
            .get(header::HOST)
            .map(HeaderValue::as_bytes));
        assert_eq!(written, Some(host.as_bytes()));
    }
}

fn redirect(redirect: &Redirect, route: &Route, parts: &Parts) {
    assert!((301..=308).contains(&redirect.status.as_u16()));
    let Ok(location) = location(redirect, &route.matches, parts, 8080) else {
        panic!("the redirect leads nowhere");
    };
    let text = location.to_str().expect("visible characters");
    if text.len() > MAX_TARGET {
        return;
    }
    if text.starts_with('/') {
        assert!(!text.starts_with("//"), "{text:?} leads to another server");
        let host = parts.headers.get(header::HOST);
        let host = host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
        let mut asked = parts.uri.authority().into_iter().chain(&host);
        assert!(redirect.host.is_none() && asked.all(|it| it.host().is_empty()));
        return;
    }
    let uri: Uri = text
        .parse()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let scheme = redirect
        .scheme
        .as_ref()
        .map_or("http", http::uri::Scheme::as_str);
    assert_eq!(uri.scheme_str(), Some(scheme));
    let authority = uri.authority().expect("a host");
    assert!(
        !authority.host().is_empty() && !authority.as_str().contains('@'),
        "{text:?}"
    );
    if let Some(port) = redirect.port {
        let known = if scheme == "https" { 443 } else { 80 };
        assert_eq!(uri.port_u16().unwrap_or(known), port, "{text:?}");
    }
    assert!(uri.path().starts_with('/'), "{text:?}");
    let query = parts.uri.query().map(visible);
    assert_eq!(uri.query(), query.as_deref(), "the query");
}

/// As a location has it: bytes beyond ASCII by their numbers.
fn visible(query: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    query.bytes().map(byte).collect()
}

/// Whether the rewritten target may be longer than any can be.
fn too_long(parts: &Parts, path: Option<&tulle_proxy::config::route::PathRewrite>) -> bool {
    use tulle_proxy::config::route::PathRewrite;
    let new = match path {
        None => 0,
        Some(PathRewrite::Full(new) | PathRewrite::Prefix(new)) => new.len(),
    };
    new + parts.uri.to_string().len() >= MAX_TARGET
}
