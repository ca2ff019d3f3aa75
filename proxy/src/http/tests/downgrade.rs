//! Failure classes 7 and 8: what HTTP/2 can say and HTTP/1 cannot never reaches an app that speaks HTTP/1, written by hand
//! frame by frame, because no client library sends it.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::Http2;

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Field<'a> = (&'a str, &'a str);

/// A request as it ought to be.
const GOOD: [Field<'_>; 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/x"),
    (":authority", "a"),
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as literals that are not indexed (RFC 7541, 6.2.2).
fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A request on stream 1, with a body if there is one.
fn request(fields: &[Field<'_>], body: Option<&str>) -> Vec<u8> {
    let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(HEADERS, flags, 1, &block(fields)));
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
    }
    bytes
}

/// What became of the request on stream 1.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was answered; the first byte of the status' encoding tells which.
    Answered(u8),
    Reset,
    Gone,
}

async fn outcome(mut io: DuplexStream, request: &[u8]) -> Outcome {
    io.write_all(request).await.unwrap();
    loop {
        let mut head = [0; 9];
        if io.read_exact(&mut head).await.is_err() {
            return Outcome::Gone;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.unwrap();
        match (head[3], head[8]) {
            (HEADERS, 1) => return Outcome::Answered(payload[0]),
            (RST_STREAM, 1) => return Outcome::Reset,
            (GOAWAY, _) => return Outcome::Gone,
            _ => {}
        }
    }
}

/// An app of HTTP/1 that tells every byte it gets, and answers 200.
async fn recording() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let app = raw_app(move |mut tcp| {
        let tell = tell.clone();
        async move {
            let mut all = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = tcp.read(&mut piece).await {
                all.extend_from_slice(&piece[..length]);
                let text = String::from_utf8_lossy(&all).into_owned();
                let _ = tell.send(text);
                let _ = tcp
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        }
    });
    (app.await, told)
}

/// The sidecar of a client, before an app that is known to speak HTTP/1 only.
async fn sidecar() -> (Sidecar, mpsc::UnboundedReceiver<String>) {
    let (app, told) = recording().await;
    let mut cluster = cluster("c", plain(&[app]));
    cluster.http = UpstreamHttp::Http1;
    let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
    (sidecar, told)
}

/// The good request with some fields replaced, or added at the end.
fn with<'a>(changes: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut fields = GOOD.to_vec();
    for (name, value) in changes {
        match fields.iter_mut().find(|(found, _)| found == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

/// Sends a request, and returns what became of it and what the app got.
async fn sent(fields: &[Field<'_>], body: Option<&str>) -> (Outcome, Option<String>) {
    let (sidecar, mut told) = sidecar().await;
    let outcome = outcome(sidecar.client(Http2), &request(fields, body)).await;
    let mut got = None;
    while let Ok(text) = told.try_recv() {
        got = Some(text);
    }
    (outcome, got)
}

/// `:status 200` in the static table (RFC 7541, appendix A), and `400`.
const OK: Outcome = Outcome::Answered(0x88);
const BAD: Outcome = Outcome::Answered(0x8c);

#[test]
fn row_7_a_request_of_http2_reaches_an_app_of_http1_as_one() {
    run(async {
        let (outcome, got) = sent(&with(&[("x-a", "1"), ("cookie", "a=1")]), None).await;
        assert_eq!(outcome, OK);
        let got = got.unwrap();
        assert!(got.starts_with("GET /x HTTP/1.1\r\n"), "{got}");
        for line in ["\r\nhost: a\r\n", "\r\nx-a: 1\r\n", "\r\ncookie: a=1\r\n"] {
            assert!(got.contains(line), "{got}");
        }
        let (outcome, got) = sent(&with(&[(":method", "POST")]), Some("abc")).await;
        assert_eq!(outcome, OK);
        let got = got.unwrap();
        assert!(got.contains("transfer-encoding: chunked\r\n"), "{got}");
    });
}

#[test]
fn row_7_what_http1_cannot_say_never_reaches_an_app_of_http1() {
    let smuggled = "1\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let rows: &[(&str, Vec<Field<'_>>)] = &[
        ("a line end in a value", with(&[("x-a", smuggled)])),
        ("a line feed in a value", with(&[("x-a", "1\nx-b: 2")])),
        (
            "a carriage return in a value",
            with(&[("x-a", "1\rx-b: 2")]),
        ),
        ("NUL in a value", with(&[("x-a", "1\0")])),
        ("NUL among blanks before a value", with(&[("x-a", " \0 1")])),
        ("a carriage return after one", with(&[("x-a", "1 \r")])),
        ("a line feed after one", with(&[("x-a", "1\n")])),
        ("a line end in a name", with(&[("x-a: 1\r\nx-b", "2")])),
        ("a colon in a name", with(&[("x-a:", "1")])),
        ("space in a name", with(&[("x a", "1")])),
        ("NUL in a name", with(&[("x\0a", "1")])),
        ("a name in capitals", with(&[("X-A", "1")])),
        ("an empty name", with(&[("", "1")])),
        (
            "a line end in the path",
            with(&[(":path", "/ HTTP/1.1\r\nx: y\r\n\r\n")]),
        ),
        ("space in the path", with(&[(":path", "/a HTTP/1.1")])),
        ("a path without a slash", with(&[(":path", "a")])),
        ("an empty path", with(&[(":path", "")])),
        (
            "a line end in the method",
            with(&[(":method", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET")]),
        ),
        ("space in the method", with(&[(":method", "GET /a")])),
        (
            "a line end in the authority",
            with(&[(":authority", "a\r\nx: y")]),
        ),
        ("space in the authority", with(&[(":authority", "a b")])),
        ("a path in the authority", with(&[(":authority", "a/b")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("chunks", with(&[("transfer-encoding", "chunked")])),
        (
            "an encoding that only trailers may be",
            with(&[("te", "gzip")]),
        ),
        (
            "no path",
            GOOD.into_iter()
                .filter(|(name, _)| *name != ":path")
                .collect(),
        ),
        (
            "no method",
            GOOD.into_iter()
                .filter(|(name, _)| *name != ":method")
                .collect(),
        ),
        ("two paths", [&GOOD[..], &[(":path", "/y")]].concat()),
        (
            "a pseudo-header after a field",
            [&[("x-a", "1")], &GOOD[..]].concat(),
        ),
        ("an unknown pseudo-header", with(&[(":x", "1")])),
        ("a status", with(&[(":status", "200")])),
    ];
    run(async {
        for (name, fields) in rows {
            let (outcome, got) = sent(fields, None).await;
            assert_eq!(got, None, "{name}: {outcome:?}");
            assert_ne!(outcome, OK, "{name}");
        }
    });
}

#[test]
fn row_7_a_fragment_is_cut_off_before_anybody_sees_it() {
    run(async {
        let (outcome, got) = sent(&with(&[(":path", "/a#/../b")]), None).await;
        assert_eq!(outcome, OK);
        assert!(got.unwrap().starts_with("GET /a HTTP/1.1\r\n"));
    });
}

#[test]
fn row_7_a_length_that_is_not_the_bodys_never_reaches_an_app_as_a_whole_request() {
    run(async {
        for (length, body) in [
            ("2", "abc"),
            ("9", "abc"),
            ("+3", "abc"),
            ("3,3", "abc"),
            ("x", "abc"),
        ] {
            let fields = with(&[(":method", "POST"), ("content-length", length)]);
            let (outcome, got) = sent(&fields, Some(body)).await;
            assert_ne!(outcome, OK, "{length}");
            let got = got.unwrap_or_default();
            let whole = got.ends_with("\r\n0\r\n\r\n")
                || got.ends_with("\r\n\r\nab")
                || got.ends_with("abc");
            assert!(!whole, "{length}: {got}");
        }
        let two = [
            &with(&[(":method", "POST")])[..],
            &[("content-length", "3"), ("content-length", "3")],
        ]
        .concat();
        assert_eq!(sent(&two, Some("abc")).await, (BAD, None));
    });
}

#[test]
fn row_8_authority_and_host_must_agree_and_name_no_user() {
    run(async {
        for (name, fields) in [
            ("another host", with(&[("host", "b")])),
            (
                "the host twice",
                [&GOOD[..], &[("host", "a"), ("host", "b")]].concat(),
            ),
            ("a user", with(&[(":authority", "u@a")])),
            (
                "a user in the host alone",
                [&GOOD[..3], &[("host", "u@a")]].concat(),
            ),
            (
                "a path in the host alone",
                [&GOOD[..3], &[("host", "a/b")]].concat(),
            ),
            ("no host at all", GOOD[..3].to_vec()),
            (
                "a port that is too large",
                with(&[(":authority", "a:65536")]),
            ),
            (
                "such a port in the host alone",
                [&GOOD[..3], &[("host", "[::1]:99999")]].concat(),
            ),
            ("a scheme of another kind", with(&[(":scheme", "ftp")])),
            (
                "the server itself, but not its options",
                with(&[(":path", "*")]),
            ),
            (
                "a host of blanks",
                [&GOOD[..3], &[("host", " \t")]].concat(),
            ),
        ] {
            let (outcome, got) = sent(&fields, None).await;
            assert_eq!(got, None, "{name}: {outcome:?}");
            assert!(
                [BAD, Outcome::Reset].contains(&outcome),
                "{name}: {outcome:?}"
            );
        }
        for (name, fields, host) in [
            ("the same host", with(&[("host", "a")]), "a"),
            (
                "the same host in another case",
                with(&[(":authority", "a.B"), ("host", "A.b")]),
                "a.B",
            ),
            (
                "a host alone",
                [&GOOD[..3], &[("host", "a:81")]].concat(),
                "a:81",
            ),
            (
                "the largest port",
                with(&[(":authority", "[::1]:65535")]),
                "[::1]:65535",
            ),
            ("space within a value", with(&[("x-a", "1 2")]), "a"),
            ("space before a value", with(&[("x-a", " 1")]), "a"),
            ("the same host with a tab", with(&[("host", "a\t")]), "a"),
            (
                "a host alone, with space",
                [&GOOD[..3], &[("host", " a ")]].concat(),
                "a",
            ),
            ("an empty value", with(&[("x-a", "")]), "a"),
            (
                "the options of the server itself",
                with(&[(":method", "OPTIONS"), (":path", "*")]),
                "a",
            ),
            ("a scheme in capitals", with(&[(":scheme", "HTTP")]), "a"),
            (
                "https that has ended before",
                with(&[(":scheme", "https")]),
                "a",
            ),
        ] {
            let (outcome, got) = sent(&fields, None).await;
            let got = got.unwrap_or_default();
            assert_eq!(outcome, OK, "{name}");
            let lines = got.matches("\r\nhost: ").count();
            assert!(
                lines == 1 && got.contains(&format!("\r\nhost: {host}\r\n")),
                "{name}: {got}"
            );
        }
    });
}

/// Streams that were counted as malformed.
fn malformed(sidecar: &Sidecar) -> u64 {
    let connections = &sidecar.worker.connections;
    connections.malformed_streams(Direction::Outbound)
}

#[test]
fn row_7_who_sends_what_the_library_refuses_is_counted() {
    run(async {
        let (sidecar, _told) = sidecar().await;
        let good = [
            request(&GOOD, None),
            request(&with(&[(":authority", "u@a")]), None),
            with_trailers(&[("x-sum", "1")]),
        ];
        for bytes in good {
            outcome(sidecar.client(Http2), &bytes).await;
        }
        assert_eq!(malformed(&sidecar), 0);
        let post = |length| with(&[(":method", "POST"), ("content-length", length)]);
        let two = [&post("3")[..], &[("content-length", "4")]].concat();
        let bad = [
            request(&with(&[("connection", "close")]), None),
            request(&two, Some("abc")),
            request(&post("2"), Some("abc")),
            with_trailers(&[("x-sum", "1"), (":path", "/y")]),
        ];
        for (before, bytes) in (0..).zip(bad) {
            outcome(sidecar.client(Http2), &bytes).await;
            while malformed(&sidecar) == before {
                tokio::task::yield_now().await;
            }
            assert_eq!(malformed(&sidecar), before + 1);
        }
        let connections = &sidecar.worker.connections;
        assert_eq!(
            connections.refused(Direction::Outbound, "malformed_http"),
            0
        );
    });
}

/// A good request that ends with these trailers.
fn with_trailers(trailers: &[Field<'_>]) -> Vec<u8> {
    let mut bytes = request(&with(&[(":method", "POST")]), Some("abc"));
    // The body does not end the stream: the flags of its frame.
    let flags = bytes.len() - "abc".len() - 5;
    bytes[flags] = 0;
    bytes.extend(frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &block(trailers),
    ));
    bytes
}

#[test]
fn row_7_a_pseudo_header_in_trailers_makes_a_request_malformed() {
    run(async {
        for (trailers, expected) in [
            (&[("x-sum", "1")][..], OK),
            (&[(":path", "/y")], Outcome::Reset),
            (&[("x-sum", "1"), (":method", "GET")], Outcome::Reset),
        ] {
            let (sidecar, mut told) = sidecar().await;
            let sent = with_trailers(trailers);
            assert_eq!(outcome(sidecar.client(Http2), &sent).await, expected);
            let mut got = String::new();
            while let Ok(text) = told.try_recv() {
                got = text;
            }
            let whole = got.ends_with("0\r\n\r\n");
            assert_eq!(whole, expected == OK, "{got}");
        }
    });
}
