//! Heads that are too much, of requests and of answers: each is told what is wrong with it, logged and counted.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::Security;
use crate::settings::Settings;
use crate::telemetry::Limit;

/// Writes so many bytes at a time, and reads the whole answer.
async fn told(mut io: DuplexStream, request: &str, size: usize) -> String {
    for piece in request.as_bytes().chunks(size) {
        // The sidecar may have refused already.
        let _ = io.write_all(piece).await;
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What is logged of a refused head, which is after its connection has ended.
async fn logged(sidecar: &Sidecar) -> Vec<(StatusCode, &'static str)> {
    loop {
        let logged = sidecar.worker.telemetry.take_refused();
        if !logged.is_empty() {
            return logged;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_head_that_does_not_end_is_answered_logged_and_counted() {
    run(async {
        let mut settings = Settings::default();
        settings.patience.head = Duration::from_millis(50);
        let sidecar = Sidecar::with_settings(service(&[nobody().await]), settings);
        let answer = told(sidecar.client(Http1), "GET / HTTP/1.1\r\nHo", 100).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        let details = "the head of the request took too long";
        assert_eq!(
            logged(&sidecar).await,
            [(StatusCode::REQUEST_TIMEOUT, details)]
        );
        let limits = &sidecar.worker.limits;
        assert_eq!(limits.count(Limit::HeadTime, Direction::Outbound), 1);
    });
}

#[test]
fn a_head_that_is_refused_is_answered_logged_and_counted_however_it_comes() {
    let field = |bytes| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "v".repeat(bytes)
        )
    };
    let fields: String = (0..100).map(|n| format!("x-{n}: v\r\n")).collect();
    let large = "the head of the request is too large";
    let rows = [
        (field(66_000), 431, large),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(66_000)),
            414,
            "the target of the request is too long",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"),
            431,
            "the head of the request has too many fields",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
            400,
            "more than one host",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n".to_owned(),
            400,
            "malformed request",
        ),
    ];
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let app = nobody().await;
        for (request, status, reason) in &rows {
            for size in [3_000, usize::MAX] {
                for direction in [Direction::Outbound, Direction::Inbound] {
                    let (io, hop) = match direction {
                        Direction::Outbound => (sidecar.client(Http1), "source"),
                        Direction::Inbound => (
                            sidecar.caller(app, Security::Plaintext, Http1),
                            "destination",
                        ),
                    };
                    let limits = &sidecar.worker.limits;
                    let before = limits.count(Limit::Head, direction);
                    let answer = told(io, request, size).await;
                    let what = format!("{size} at a time of {request:.60}: {answer}");
                    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
                    assert!(answer.contains("connection: close\r\n"), "{what}");
                    // What hyper finds it answers itself.
                    if *reason != "malformed request" {
                        assert!(answer.ends_with(&format!("\r\n\r\n{reason}")), "{what}");
                        let header = format!("x-tulle-failed-hop: {hop}\r\n");
                        assert!(answer.contains(&header), "{what}");
                    }
                    let logged = logged(&sidecar).await;
                    let status = StatusCode::from_u16(*status).unwrap();
                    assert_eq!(logged, [(status, *reason)], "{what}");
                    let counted = limits.count(Limit::Head, direction) - before;
                    assert_eq!(
                        counted,
                        u64::from(status != StatusCode::BAD_REQUEST),
                        "{what}"
                    );
                }
            }
        }
        assert!(sidecar.records().is_empty(), "no request has been");
    });
}

#[test]
fn a_target_is_told_to_be_too_long_where_heads_may_be_longer_than_any_can_be() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            let head = read_head(&mut tcp).await;
            let target = head.split(' ').nth(1).map_or(0, str::len);
            let answer =
                format!("HTTP/1.1 200 OK\r\nx-target: {target}\r\ncontent-length: 0\r\n\r\n");
            tcp.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let mut settings = Settings::default();
        settings.bounds.head = 1 << 20;
        let sidecar = Sidecar::with_settings(service(&[app]), settings);
        // A host that the target brings counts, but is not in the one that the app gets.
        for (begin, host) in [("/", 0), ("http://a/", 8)] {
            for size in [3_000, usize::MAX] {
                for (length, status) in
                    [(65_534, 200), (65_535, 414), (66_000, 414), (500_000, 414)]
                {
                    let rest = "t".repeat(length - begin.len());
                    let request = format!(
                        "GET {begin}{rest} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                    );
                    let answer = told(sidecar.client(Http1), &request, size).await;
                    let what = format!("{begin} and {length}, {size} at a time: {answer}");
                    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
                    if status == 200 {
                        let target = format!("x-target: {}\r\n", length - host);
                        assert!(answer.contains(&target), "{what}");
                        continue;
                    }
                    let reason = "the target of the request is too long";
                    assert!(answer.ends_with(reason), "{what}");
                    let expected = [(StatusCode::URI_TOO_LONG, reason)];
                    assert_eq!(logged(&sidecar).await, expected, "{what}");
                }
            }
        }
        assert_eq!(
            sidecar
                .worker
                .limits
                .count(Limit::Head, Direction::Outbound),
            12
        );
    });
}

/// An app whose answer has so many fields, `content-length` included, and one of so many bytes.
async fn app_with(fields: usize, bytes: usize) -> std::net::SocketAddr {
    let more: String = (2..fields).map(|n| format!("x-{n}: v\r\n")).collect();
    let large = format!("x-large: {}\r\n", "v".repeat(bytes));
    raw_app(move |mut tcp| {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{large}{more}\r\n");
        async move {
            read_head(&mut tcp).await;
            // The sidecar may have had enough before the end.
            let _ = tcp.write_all(answer.as_bytes()).await;
            let _ = tcp.read(&mut [0]).await;
        }
    })
    .await
}

#[test]
fn an_answer_whose_head_is_too_much_becomes_502_and_says_so() {
    run(async {
        for (most, fields, bytes, expected) in [
            (100, 100, 10, StatusCode::OK),
            (100, 101, 10, StatusCode::BAD_GATEWAY),
            (150, 150, 10, StatusCode::OK),
            (150, 151, 10, StatusCode::BAD_GATEWAY),
            (50, 51, 10, StatusCode::BAD_GATEWAY),
            (100, 2, 60_000, StatusCode::OK),
            (100, 2, 200_000, StatusCode::BAD_GATEWAY),
        ] {
            let app = app_with(fields, bytes).await;
            let mut settings = Settings::default();
            settings.bounds.fields = most;
            let sidecar = Sidecar::with_settings(service(&[app]), settings);
            // hyper, which the client is here, takes a hundred at most.
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let answer = raw(sidecar.client(Http1), request).await;
            let what = format!("{fields} of {most}, {bytes} bytes: {answer:.200}");
            let status = expected.as_u16();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
            let refused = expected != StatusCode::OK;
            let reason = "the head of the upstream's response is too large";
            assert_eq!(answer.ends_with(reason), refused, "{what}");
            let limits = &sidecar.worker.limits;
            let counted = limits.count(Limit::Head, Direction::Outbound);
            assert_eq!(counted, u64::from(refused), "{what}");
            let record = sidecar.record().await;
            let (flags, details) = if refused { ("UPE", reason) } else { ("-", "") };
            assert_eq!(record.flags.to_string(), flags, "{what}");
            assert_eq!(record.details, details, "{what}");
        }
    });
}

#[test]
fn what_is_too_large_for_http2_is_told_by_what_is_too_large_of_it() {
    run(async {
        let app = app(Http2, |_| async { Response::new(Full::<Bytes>::default()) });
        let mut cluster = cluster("c", plain(&[app.await]));
        cluster.http = UpstreamHttp::Http2;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let limits = &sidecar.worker.limits;
        for (target, field, expected, counted) in [
            (16_000, 10, StatusCode::OK, 0),
            (17_000, 10, StatusCode::URI_TOO_LONG, 1),
            (
                10_000,
                10_000,
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                2,
            ),
        ] {
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            let request = Request::builder()
                .method(Method::GET)
                .uri(format!("/{}", "t".repeat(target)))
                .header("host", "a")
                .header("x-large", "v".repeat(field));
            let answer = client.request(request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.unwrap().status, expected);
            let reached = limits.count(Limit::H2HeaderList, Direction::Outbound);
            assert_eq!(reached, counted, "{target} {field}");
        }
    });
}

#[test]
fn a_head_that_is_too_large_on_http2_is_logged_and_counted_each_time() {
    run(async {
        let app = echo(Http2, "a").await;
        for (path, field, status) in [
            (20_000, 10, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            (10, 20_000, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            (10_000, 5_000, StatusCode::OK),
        ] {
            let sidecar = Sidecar::new(service(&[app]));
            let io = sidecar.client(Http2);
            let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
            tokio::task::spawn_local(connection);
            let mut ask = |path, field| {
                let uri = format!("http://reviews/{}", "t".repeat(path));
                let request = Request::get(uri).header("x-large", "v".repeat(field));
                let request = request.body(()).unwrap();
                sender.send_request(request, true).unwrap().0
            };
            for _ in 0..3 {
                assert_eq!(ask(path, field).await.unwrap().status(), status);
                // What comes between changes how the next refusal is written.
                assert_eq!(ask(10, 10).await.unwrap().status(), StatusCode::OK);
            }
            let refused = status != StatusCode::OK;
            let details = "the head of the request is too large";
            let expected = if refused {
                vec![(status, details); 3]
            } else {
                vec![]
            };
            assert_eq!(sidecar.worker.telemetry.take_refused(), expected);
            let limits = &sidecar.worker.limits;
            let counted = limits.count(Limit::H2HeaderList, Direction::Outbound);
            assert_eq!(counted, expected.len() as u64);
        }
    });
}
