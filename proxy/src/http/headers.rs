//! Headers that belong to one hop, and those that inbound vouches for.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use tulle_identity::SpiffeId;
use tulle_runtime::names::UNPROCESSED_HEADER;

use super::local_reply::Failure;
use crate::conn::HttpVersion;
use crate::fields;
use crate::io::is_port;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const UNPROCESSED: HeaderName = HeaderName::from_static(UNPROCESSED_HEADER);
/// The way that a request came.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Who sent it, as proven by its certificate.
pub(super) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// What names it in logs.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static(fields::REQUEST_ID);

/// What proxies say of how a request reached the cluster. An ingress without a sidecar is a client outside the mesh, as
/// anybody else is; an app that is not told that its client came by https sends it there again and again, so that a pod
/// behind such an ingress may be set to believe all of them.
const OF_INGRESS: [&str; 5] = [
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
];

/// Makes of a client's request one that can be sent on: hop-by-hop headers are gone, the target has the form that
/// the version wants. Returns whether the client asks for an upgrade, which then stays in the headers.
pub(super) fn prepare_request(
    request: &mut Parts,
    version: HttpVersion,
    destination: SocketAddr,
) -> Result<bool, Failure> {
    if request.method == Method::CONNECT {
        return Err(Failure::Connect);
    }
    // HTTP/1.0 knows no upgrade (RFC 9110, 7.8), and hyper makes none there.
    let upgrade = version == HttpVersion::Http1
        && request.version == Version::HTTP_11
        && asks_upgrade(&request.headers);
    match version {
        HttpVersion::Http1 => {
            origin_form(request)?;
            name_host(request, destination);
            let chunked = request.headers.contains_key(TRANSFER_ENCODING);
            let trailers = wants_trailers(&request.headers);
            strip_hop_by_hop(&mut request.headers, upgrade);
            if trailers && !upgrade {
                // Whoever says TE names it in Connection (RFC 9110, 10.1.4), which has one word where a switch is asked for.
                let headers = &mut request.headers;
                headers.insert(CONNECTION, HeaderValue::from_static("te"));
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
            if chunked {
                // hyper takes a GET for one without a body unless it is told.
                request
                    .headers
                    .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        HttpVersion::Http2 => {
            absolute_form(request)?;
            // It has trailers for everybody.
            let trailers = HeaderValue::from_static("trailers");
            request.headers.insert(TE, trailers);
        }
    }
    request.headers.remove(EXPECT);
    request.headers.remove(UNPROCESSED);
    Ok(upgrade)
}

/// Takes what belongs to the upstream's hop out of a response. Returns whether its body is coded for that hop in a way that
/// nobody asked for, which would be lost.
pub(super) fn prepare_response(headers: &mut HeaderMap, upgraded: bool) -> bool {
    let coding = headers.get(TRANSFER_ENCODING).map(HeaderValue::as_bytes);
    let coded = coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked"));
    if coding.is_some() {
        // It says how long the body is, whatever else does (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers, upgraded);
    headers.remove(UNPROCESSED);
    coded
}

/// Takes out of an answer's trailers what it may not end with.
pub(super) fn prepare_trailers(trailers: &mut HeaderMap) {
    fields::trim(trailers);
    fields::remove(trailers, |name| {
        !fields::answer_may_end_with(name.as_bytes())
    });
}

/// Whether a response carries the mark "not processed".
pub(super) fn is_marked(headers: &HeaderMap) -> bool {
    headers.get(UNPROCESSED).is_some_and(|value| value == "1")
}

/// Whether the client asks to switch protocols. h2c is not, nor any list that it is in: whoever wants HTTP/2 here starts with
/// its preface, and behind a switch to it requests would pass that nobody has looked at.
fn asks_upgrade(headers: &HeaderMap) -> bool {
    let values = || headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes);
    let mut protocols = values().flat_map(|value| value.split(|byte| *byte == b','));
    values().next().is_some()
        && !protocols.any(|to| names_h2c(to.trim_ascii()))
        && connection_names(headers).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// Whether the client takes trailers: nobody may say so for it (RFC 9110, 6.5.1).
fn wants_trailers(headers: &HeaderMap) -> bool {
    let said = headers.get_all(TE).iter();
    let mut codings = said.flat_map(|said| said.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| {
        let name = coding.split(|byte| *byte == b';').next();
        name.is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Whether a protocol, which may have a version, is h2c, or begins as it does.
fn names_h2c(protocol: &[u8]) -> bool {
    let name = protocol.get(..3);
    let more = protocol.get(3).is_some_and(u8::is_ascii_alphanumeric);
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"h2c")) && !more
}

fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        // One word that is none does not hide the others.
        .filter_map(|name| std::str::from_utf8(name).ok())
        .map(str::trim)
}

fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        strip_named(headers);
        headers.remove(CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TE);
    headers.remove(TRANSFER_ENCODING);
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else if headers.remove(UPGRADE).is_some() {
        headers.remove(HTTP2_SETTINGS);
    }
}

/// Removes what `Connection` names; a message's framing and its host are nobody's to take away.
fn strip_named(headers: &mut HeaderMap) {
    let simple = |name: &str| {
        ["close", "keep-alive", "upgrade", "te"]
            .iter()
            .any(|word| name.eq_ignore_ascii_case(word))
    };
    if connection_names(headers).all(simple) {
        return;
    }
    let named: Vec<HeaderName> = connection_names(headers)
        .filter(|name| !simple(name))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// HTTP/1 upstream wants `/path` and `Host`; a target in absolute form overrides `Host` (RFC 9112, 3.2.2).
fn origin_form(request: &mut Parts) -> Result<(), Failure> {
    let Some(authority) = request.uri.authority() else {
        return Ok(());
    };
    let host =
        HeaderValue::from_maybe_shared(Bytes::copy_from_slice(authority.as_str().as_bytes()));
    let host = host.map_err(|_| Failure::BadRequest("the request target has no valid host"))?;
    request.headers.insert(HOST, host);
    let path = request.uri.path_and_query().cloned();
    request.uri = match path {
        None => Uri::from_static("/"),
        // `http://a?b` has an empty path, which is sent as a slash (RFC 9110, 4.2.3).
        Some(path) if path.as_str().starts_with('?') => path
            .to_string()
            .parse()
            .map_err(|_| Failure::BadRequest("the request target is not valid"))?,
        Some(path) => Uri::from(path),
    };
    Ok(())
}

/// HTTP/1.0 knows no `Host`, but the request goes on as HTTP/1.1: it was meant for the address that it was sent to.
fn name_host(request: &mut Parts, destination: SocketAddr) {
    if request.version == Version::HTTP_10
        && !request.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(destination.to_string())
    {
        request.headers.insert(HOST, host);
    }
}

/// HTTP/2 upstream wants scheme and authority in the target; `Host` must not say anything else.
fn absolute_form(request: &mut Parts) -> Result<(), Failure> {
    // h2 compares with the body whichever it finds first.
    if request
        .headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(Failure::BadRequest("more than one content-length"));
    }
    let path = request
        .uri
        .path_and_query()
        .map_or("/", PathAndQuery::as_str);
    let of_server = path == "*" && request.method == Method::OPTIONS;
    if !path.starts_with('/') && !of_server {
        return Err(Failure::BadRequest("a path that does not begin with /"));
    }
    if !request.uri.scheme().is_none_or(is_http) {
        return Err(Failure::BadRequest("a scheme other than http and https"));
    }
    let host = request.headers.get(HOST);
    if host.is_some() && request.headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Failure::BadRequest("more than one host"));
    }
    match (request.uri.authority(), host) {
        (Some(authority), _) if authority.as_str().contains('@') => {
            return Err(Failure::BadRequest("a user in the authority"));
        }
        (Some(authority), _) if !has_good_port(authority) => {
            return Err(Failure::BadRequest("an authority with a port that is none"));
        }
        (Some(authority), Some(host))
            if !host
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return Err(Failure::BadRequest("host and :authority differ"));
        }
        (Some(_), _) if request.uri.scheme().is_some() => return Ok(()),
        _ => {}
    }
    let mut uri = std::mem::take(&mut request.uri).into_parts();
    if uri.authority.is_none() {
        let host = host.ok_or(Failure::BadRequest("the request names no host"))?;
        let authority = Authority::try_from(host.as_bytes()).ok();
        let authority = authority
            .filter(|authority| !authority.as_str().contains('@') && has_good_port(authority));
        uri.authority = Some(authority.ok_or(Failure::BadRequest("the host is not valid"))?);
    }
    uri.scheme.get_or_insert(Scheme::HTTP);
    request.uri =
        Uri::from_parts(uri).map_err(|_| Failure::BadRequest("the target is not valid"))?;
    Ok(())
}

fn is_http(scheme: &Scheme) -> bool {
    let scheme = scheme.as_str();
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

fn has_good_port(authority: &Authority) -> bool {
    // Within brackets there are colons of an address.
    let name = authority.as_str();
    let port = name.rsplit(']').next().unwrap_or(name).split_once(':');
    port.is_none_or(|(_, digits)| is_port(digits.as_bytes()))
}

/// What inbound says about a client, built once per connection.
#[derive(Debug)]
pub(super) struct Provenance {
    forwarded_for: HeaderValue,
    client_cert: Option<HeaderValue>,
    believed: Believed,
}

/// What of a client's own word is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Believed {
    /// All: it is a sidecar of the mesh.
    All,
    /// How it was reached, which an ingress would say.
    Ingress,
    Nothing,
}

impl Believed {
    /// A sidecar of the mesh, or anybody else.
    pub(super) fn of(sidecar: bool, keep_ingress_headers: bool) -> Self {
        match (sidecar, keep_ingress_headers) {
            (true, _) => Self::All,
            (false, true) => Self::Ingress,
            (false, false) => Self::Nothing,
        }
    }

    /// Whether a field of that name, of those that only a proxy may say, is. No proxy writes `_` for `-`: that is the word
    /// of whoever stands behind one.
    fn includes(self, name: &str) -> bool {
        match self {
            Self::All => name != fields::FAILED_HOP && !name.contains('_'),
            Self::Ingress => OF_INGRESS.contains(&name),
            // It gets another value anyhow.
            Self::Nothing => name == fields::REQUEST_ID,
        }
    }
}

impl Provenance {
    pub(super) fn new(
        own: &SpiffeId,
        client: IpAddr,
        peer: Option<&SpiffeId>,
        believed: Believed,
    ) -> Self {
        let value = |text: String| HeaderValue::try_from(text).ok();
        Self {
            forwarded_for: value(client.to_canonical().to_string())
                .unwrap_or_else(|| HeaderValue::from_static("unknown")),
            client_cert: peer.and_then(|peer| value(format!("By={own};URI={peer}"))),
            believed,
        }
    }

    /// Sets what inbound vouches for, and removes what it does not. The fields are looked through by name for that.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        let mut way = Vec::new();
        let trusted = self.believed == Believed::All;
        strip_of_proxies(headers, self.believed);
        if trusted {
            for before in headers.get_all(FORWARDED_FOR) {
                way.extend_from_slice(before.as_bytes());
                way.push(b',');
            }
        }
        let joined = if way.is_empty() {
            None
        } else {
            way.extend_from_slice(self.forwarded_for.as_bytes());
            HeaderValue::from_maybe_shared(Bytes::from(way)).ok()
        };
        headers.insert(
            FORWARDED_FOR,
            joined.unwrap_or_else(|| self.forwarded_for.clone()),
        );
        match &self.client_cert {
            Some(cert) => headers.insert(CLIENT_CERT, cert.clone()),
            None => headers.remove(CLIENT_CERT),
        };
        if !trusted || !headers.contains_key(REQUEST_ID) {
            headers.insert(REQUEST_ID, request_id());
        }
    }
}

/// Removes what only a proxy may say, unless it is believed.
fn strip_of_proxies(headers: &mut HeaderMap, believed: Believed) {
    fields::remove(headers, |name| {
        fields::is_of_proxies(name.as_bytes()) && !believed.includes(name)
    });
}

/// A random UUID.
fn request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    // Version 4, variant 1 (RFC 9562).
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let digits = text
        .iter_mut()
        .enumerate()
        .filter(|(at, _)| ![8, 13, 18, 23].contains(at));
    for (place, (_, digit)) in digits.enumerate() {
        *digit = HEX[(bits >> (124 - 4 * place)) as usize & 0xf];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Adds `Connection: close` to an answer on a connection that drains.
pub(super) fn close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_random_uuids() {
        let id = request_id();
        let text = id.to_str().unwrap();
        let lengths: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(id, request_id());
    }

    #[test]
    fn what_connection_names_goes_whatever_stands_beside_it() {
        for beside in [
            &b"x-gone"[..],
            b"x-gone, \xc3\xa9",
            b"\xff,x-gone",
            b"close ,\tX-Gone",
        ] {
            let request = http::Request::get("/")
                .header("x-gone", "1")
                .header(HOST, "a");
            let mut parts = request.body(()).unwrap().into_parts().0;
            let value = HeaderValue::from_bytes(beside).unwrap();
            parts.headers.insert(CONNECTION, value);
            let destination = SocketAddr::from(([10, 0, 0, 1], 80));
            prepare_request(&mut parts, HttpVersion::Http1, destination).unwrap();
            let left = parts.headers.contains_key("x-gone");
            assert!(!left, "{}", beside.escape_ascii());
        }
    }

    #[test]
    fn trailers_are_asked_for_by_clients_that_want_them() {
        for (said, upgrade, asked) in [
            (None, false, false),
            (Some("trailers"), false, true),
            (Some("gzip, Trailers;q=0.5"), false, true),
            (Some("gzip"), false, false),
            (Some("x-trailers"), false, false),
            (Some("trailers"), true, false),
        ] {
            let mut request = http::Request::get("/").header(HOST, "a");
            if let Some(said) = said {
                request = request.header(TE, said).header(CONNECTION, "TE");
            }
            if upgrade {
                request = request.header(UPGRADE, "x").header(CONNECTION, "upgrade");
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            let destination = SocketAddr::from(([10, 0, 0, 1], 80));
            prepare_request(&mut parts, HttpVersion::Http1, destination).unwrap();
            let te = parts.headers.get(TE).map(HeaderValue::as_bytes);
            assert_eq!(te, asked.then_some(&b"trailers"[..]), "{said:?}");
            let option = parts.headers.get(CONNECTION).map(HeaderValue::as_bytes);
            let expected = match (upgrade, asked) {
                (true, _) => Some(&b"upgrade"[..]),
                (false, true) => Some(&b"te"[..]),
                (false, false) => None,
            };
            assert_eq!(option, expected, "{said:?}");
        }
    }

    #[test]
    fn row_12_how_an_ingress_was_reached_is_believed_of_sidecars_and_where_there_is_one() {
        let own = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/web").unwrap();
        let client = IpAddr::from([10, 1, 2, 3]);
        for (sidecar, keep, left) in [
            (false, false, &["my-own"][..]),
            (false, true, &["my-own", "x-forwarded-proto"]),
            (
                true,
                false,
                &[
                    "forwarded",
                    "l5d-dst",
                    "my-own",
                    "x-envoy-a",
                    "x-forwarded-proto",
                ],
            ),
            (
                true,
                true,
                &[
                    "forwarded",
                    "l5d-dst",
                    "my-own",
                    "x-envoy-a",
                    "x-forwarded-proto",
                ],
            ),
        ] {
            let said = [
                "x-forwarded-proto",
                "x-envoy-a",
                "l5d-dst",
                "forwarded",
                "my-own",
            ];
            let said = said.map(|name| (HeaderName::from_static(name), HeaderValue::from(1)));
            let mut headers = HeaderMap::from_iter(said);
            let believed = Believed::of(sidecar, keep);
            Provenance::new(&own, client, None, believed).apply(&mut headers);
            assert!(
                headers.remove(FORWARDED_FOR).is_some() && headers.remove(REQUEST_ID).is_some()
            );
            let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{sidecar} {keep}");
        }
    }

    /// Whether a request that names `upgrade` asks to switch to these protocols, and what of them is left.
    fn switches(version: Version, protocols: &[&str]) -> (bool, usize) {
        let request = http::Request::get("/").version(version);
        let request = request.header(HOST, "a").header(CONNECTION, "upgrade");
        let request = protocols
            .iter()
            .fold(request, |request, to| request.header(UPGRADE, *to));
        let mut parts = request.body(()).unwrap().into_parts().0;
        let destination = SocketAddr::from(([10, 0, 0, 1], 80));
        let switches = prepare_request(&mut parts, HttpVersion::Http1, destination).unwrap();
        (switches, parts.headers.get_all(UPGRADE).iter().count())
    }

    #[test]
    fn nobody_switches_to_h2c_whatever_stands_beside_it_and_nobody_does_in_http_1_0() {
        for protocols in [
            &["h2c"][..],
            &["websocket, h2c"],
            &["H2C ,websocket"],
            &["websocket", "h2c"],
            &["h2c;x"],
            &["h2c/1"],
        ] {
            let found = switches(Version::HTTP_11, protocols);
            assert_eq!(found, (false, 0), "{protocols:?}");
        }
        for protocols in [&["websocket"][..], &["h2cx, h2"], &["a", "b"]] {
            let found = switches(Version::HTTP_11, protocols);
            assert_eq!(found, (true, protocols.len()), "{protocols:?}");
            let found = switches(Version::HTTP_10, protocols);
            assert_eq!(found, (false, 0), "{protocols:?}");
        }
    }

    fn prepared(target: &str, version: HttpVersion) -> Option<String> {
        let request = http::Request::get(target).header(HOST, "a").body(());
        let mut parts = request.unwrap().into_parts().0;
        let destination = SocketAddr::from(([10, 0, 0, 1], 80));
        prepare_request(&mut parts, version, destination).ok()?;
        parts.uri.path_and_query().map(|it| it.as_str().to_owned())
    }

    #[test]
    fn a_target_without_a_path_gets_one_or_is_refused() {
        for (target, path) in [
            ("http://a?b=c", "/?b=c"),
            ("http://a", "/"),
            ("/b", "/b"),
            ("*", "*"),
        ] {
            let prepared = prepared(target, HttpVersion::Http1);
            assert_eq!(prepared.as_deref(), Some(path), "{target}");
        }
        assert_eq!(
            prepared("http://a/b", HttpVersion::Http2).as_deref(),
            Some("/b")
        );
        assert_eq!(prepared("http://a?b=c", HttpVersion::Http2), None);
    }
}
