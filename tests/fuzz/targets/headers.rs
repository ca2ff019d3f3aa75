//! What a sidecar makes of the headers that it sends on.
//!
//! The first byte of the input says how a message came, and from whom; then come a request's method and target and its
//! fields, or an answer's fields alone, a line each. What is sent on has nothing in it that belonged to the hop on which
//! it came, and all else is as it was. A request names one host, the one that it is for. An app hears who its client
//! is from its own sidecar alone: nobody else's word on it is left, except what another sidecar said of the way, and where the
//! pod is behind an ingress what that says of how it was reached.

#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use tulle_fuzz::input::Cursor;
use tulle_identity::SpiffeId;
use tulle_proxy::conn::HttpVersion;
use tulle_proxy::fuzz::headers;
use tulle_runtime::names::UNPROCESSED_HEADER;

/// Fields of a hop, whatever `Connection` says.
const OF_A_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    UNPROCESSED_HEADER,
];
/// What `Connection` cannot take away.
const FRAMING: [&str; 3] = ["host", "content-length", "transfer-encoding"];
/// What an ingress says of how it was reached.
const OF_INGRESS: [&str; 5] = [
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
];

static OWN: LazyLock<SpiffeId> = LazyLock::new(|| id("spiffe://mesh.test/ns/shop/sa/web"));
static PEER: LazyLock<SpiffeId> = LazyLock::new(|| id("spiffe://mesh.test/ns/shop/sa/front"));

tulle_fuzz::target!(|data: &[u8]| {
    let mut input = Cursor(data);
    let how = input.byte();
    if how & 1 == 1 {
        if let Some(headers) = fields(input) {
            answer(headers, how & 2 == 2);
        }
        return;
    }
    let Some(parts) = request(&mut input, how) else {
        return;
    };
    let version = match parts.version {
        Version::HTTP_2 => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    let mut sent = parts.clone();
    let destination = SocketAddr::from(([10, 0, 0, 1], 80));
    let Ok(upgrade) = headers::sent_on(&mut sent, version, destination) else {
        return;
    };
    match version {
        HttpVersion::Http1 => http1(&parts, &sent, upgrade, destination),
        HttpVersion::Http2 => http2(&parts, &sent),
    }
    vouched(&sent.headers, how);
});

/// A request as hyper hands it over, behind the guard.
fn request(input: &mut Cursor<'_>, how: u8) -> Option<Parts> {
    let version = match how >> 1 & 3 {
        0 => Version::HTTP_10,
        1 => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let (method, target) = (input.line(), input.line());
    let mut parts = Request::new(()).into_parts().0;
    parts.version = version;
    parts.method = http::Method::from_bytes(method).ok()?;
    parts.uri = http::Uri::try_from(target).ok()?;
    parts.headers = fields(*input)?;
    let hosts = parts.headers.get_all(HOST).iter().count();
    let lengths = parts.headers.get_all(CONTENT_LENGTH).iter().count();
    let codings: Vec<_> = parts.headers.get_all(TRANSFER_ENCODING).iter().collect();
    let guarded = hosts <= 1
        && (hosts == 1 || version == Version::HTTP_10)
        && lengths + codings.len() <= 1
        && codings
            .iter()
            .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    // HTTP/2 knows none of a hop's fields: h2 refuses them.
    let hop = |name: &&str| parts.headers.contains_key(*name);
    let named = OF_A_HOP[..6].iter().any(hop);
    (if version == Version::HTTP_2 {
        !named
    } else {
        guarded
    })
    .then_some(parts)
}

/// Lines of `name: value`.
fn fields(mut input: Cursor<'_>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    while !input.is_empty() {
        let line = input.line();
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = line[colon + 1..].trim_ascii();
        headers.append(
            HeaderName::from_bytes(&line[..colon]).ok()?,
            HeaderValue::from_bytes(value).ok()?,
        );
    }
    Some(headers)
}

fn http1(came: &Parts, sent: &Parts, upgrade: bool, destination: SocketAddr) {
    let hop = [
        "keep-alive",
        "proxy-connection",
        "expect",
        UNPROCESSED_HEADER,
    ];
    for name in hop {
        assert!(!sent.headers.contains_key(name), "{name}");
    }
    let said = values(&came.headers, TE.as_str());
    let mut words = said
        .iter()
        .flat_map(|line| line.split(|byte| b",;".contains(byte)));
    let wanted = words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    let te = values(&sent.headers, TE.as_str());
    assert!(
        te.is_empty() || te == [b"trailers"] && wanted && !upgrade,
        "{te:?}"
    );
    let coding: &[&[u8]] = match came.headers.contains_key(TRANSFER_ENCODING) {
        true => &[b"chunked"],
        false => &[],
    };
    assert_eq!(values(&sent.headers, "transfer-encoding"), coding);
    let expected: &[&[u8]] = match (upgrade, te.is_empty()) {
        (true, _) => &[b"upgrade"],
        (false, false) => &[b"te"],
        (false, true) => &[],
    };
    assert_eq!(values(&sent.headers, "connection"), expected);
    let names = named(&came.headers);
    let asked = names.contains(&"upgrade".to_owned()) && came.headers.contains_key(UPGRADE);
    assert!(asked || !upgrade, "nobody asked for it");
    if !upgrade {
        assert!(!sent.headers.contains_key(UPGRADE));
    }
    for name in &names {
        let stays = FRAMING.contains(&&**name) || ["close", "te", "upgrade"].contains(&&**name);
        assert!(stays || !sent.headers.contains_key(name), "{name}");
    }
    assert!(sent.uri.authority().is_none(), "{}", sent.uri);
    let host = match came.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes().to_vec()),
        None => came.headers.get(HOST).map(|host| host.as_bytes().to_vec()),
    };
    let host = host.unwrap_or_else(|| destination.to_string().into_bytes());
    assert_eq!(values(&sent.headers, "host"), [host]);
    kept(
        &came.headers,
        &sent.headers,
        &names,
        &["expect", "host", "http2-settings"],
    );
}

fn http2(came: &Parts, sent: &Parts) {
    let authority = sent.uri.authority().expect("an authority").as_str();
    assert!(
        !authority.contains('@') && sent.uri.scheme().is_some(),
        "{}",
        sent.uri
    );
    let path = sent.uri.path_and_query().map_or("/", |path| path.as_str());
    assert!(path.starts_with('/') || path == "*", "{path}");
    let came_path = came.uri.path_and_query().map_or("/", |path| path.as_str());
    assert_eq!(path, came_path);
    let hosts = values(&sent.headers, "host");
    assert!(hosts.len() <= 1 && values(&sent.headers, "content-length").len() <= 1);
    for host in hosts {
        assert!(
            host.eq_ignore_ascii_case(authority.as_bytes()),
            "{authority}"
        );
    }
    if let Some(named) = came.uri.authority() {
        assert_eq!(named.as_str(), authority);
    }
    kept(&came.headers, &sent.headers, &[], &["expect"]);
}

/// Whatever is of no hop is there as it came.
fn kept(came: &HeaderMap, sent: &HeaderMap, named: &[String], gone: &[&str]) {
    for name in came.keys().map(HeaderName::as_str) {
        let framing = FRAMING.contains(&name);
        let goes = !framing && named.iter().any(|it| it == name);
        let goes = goes && name != "close";
        if !goes && !OF_A_HOP.contains(&name) && !gone.contains(&name) {
            assert_eq!(values(came, name), values(sent, name), "{name}");
        }
    }
    for name in sent.keys().map(HeaderName::as_str) {
        let own = ["connection", "host", "te"].contains(&name);
        assert!(own || came.contains_key(name), "{name} came from nowhere");
    }
}

/// The names in `Connection`, in lower case.
fn named(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(CONNECTION).into_iter();
    let words = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let names = words.filter_map(|word| std::str::from_utf8(word.trim_ascii()).ok());
    names.map(str::to_ascii_lowercase).collect()
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h [u8]> {
    let values = headers.get_all(name).into_iter();
    values.map(HeaderValue::as_bytes).collect()
}

fn answer(came: HeaderMap, upgraded: bool) {
    let mut sent = came.clone();
    let coded = headers::answered(&mut sent, upgraded);
    let codings = values(&came, "transfer-encoding");
    if codings
        .iter()
        .all(|coding| coding.eq_ignore_ascii_case(b"chunked"))
    {
        assert!(!coded);
    }
    let upgrade: &[&[u8]] = if upgraded { &[b"upgrade"] } else { &[] };
    assert_eq!(values(&sent, "connection"), upgrade);
    for name in &OF_A_HOP[1..] {
        assert!(
            upgraded && *name == "upgrade" || !sent.contains_key(*name),
            "{name}"
        );
    }
    let lengths = values(&sent, "content-length").len();
    assert!(codings.is_empty() || lengths == 0, "two lengths");
    let names = named(&came);
    for name in &names {
        let stays = FRAMING.contains(&&**name) || ["close", "upgrade"].contains(&&**name);
        assert!(stays || !sent.contains_key(name), "{name}");
    }
    let gone: &[&str] = match codings.is_empty() {
        true => &["http2-settings"],
        false => &["content-length", "http2-settings"],
    };
    kept(&came, &sent, &names, gone);
}

/// What the app hears of its client.
fn vouched(came: &HeaderMap, how: u8) {
    let client = IpAddr::from([10, 1, 2, 3]);
    let (peer, sidecar) = match how >> 3 & 3 {
        0 => (None, false),
        1 => (Some(&*PEER), false),
        _ => (Some(&*PEER), true),
    };
    let ingress = how & 32 == 32;
    let mut told = came.clone();
    headers::vouched(&mut told, &OWN, client, peer, sidecar, ingress);
    let cert = peer.map(|peer| format!("By={};URI={peer}", *OWN));
    let certs = values(&told, "x-forwarded-client-cert");
    assert_eq!(certs, cert.iter().map(String::as_bytes).collect::<Vec<_>>());
    let way = values(&told, "x-forwarded-for");
    let [way] = way[..] else {
        panic!("{} ways", way.len());
    };
    let mut before = values(came, "x-forwarded-for").join(&b","[..]);
    if before.is_empty() && values(came, "x-forwarded-for").is_empty() || !sidecar {
        assert_eq!(way, b"10.1.2.3");
    } else {
        before.extend_from_slice(b",10.1.2.3");
        assert_eq!(way, before);
    }
    let ids = values(&told, "x-request-id");
    let believed = sidecar && came.contains_key("x-request-id");
    if !believed {
        assert!(ids.len() == 1 && ids[0].len() == 36, "an id of our own");
        assert_ne!(values(came, "x-request-id"), ids);
    }
    for name in told.keys().map(HeaderName::as_str) {
        let ours = ["x-forwarded-for", "x-forwarded-client-cert"].contains(&name);
        assert!(sidecar || ours || !of_proxies(name, ingress), "{name}");
    }
    for name in came.keys().map(HeaderName::as_str) {
        let ours = ["x-forwarded-for", "x-forwarded-client-cert"].contains(&name);
        let replaced = ours || !believed && name == "x-request-id";
        if !replaced && (sidecar || !of_proxies(name, ingress)) {
            assert_eq!(values(came, name), values(&told, name), "{name}");
        }
    }
}

/// Whether only a proxy may say it, and none that may be one has.
fn of_proxies(name: &str, ingress: bool) -> bool {
    let begins = ["x-forwarded-", "x-envoy-", "l5d-"];
    let begins = begins.iter().any(|begin| name.starts_with(begin));
    (begins || name == "forwarded") && !(ingress && OF_INGRESS.contains(&name))
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("an id")
}
