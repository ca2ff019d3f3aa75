//! Answers that come before the request's body has ended.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::harness::*;
use super::inbound::mesh_peer;
use crate::config::route::RouteAction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::{Direction, Security};
use crate::settings::Settings;
use crate::telemetry::Limit;
use crate::upstream::LocalExecutor;

#[test]
fn an_early_answer_on_one_stream_of_http2_leaves_the_others_alone() {
    run(async {
        let app = app(Http2, |request: Request<Incoming>| async move {
            let mut response = Response::new(Full::new(Bytes::from_static(b"early")));
            if request.uri().path() == "/early" {
                *response.status_mut() = StatusCode::FORBIDDEN;
            } else {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                *response.body_mut() = Full::new(body);
            }
            response
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let io = TokioIo::new(sidecar.client(Http2));
        let (mut sender, connection) = http2::handshake(LocalExecutor, io).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut post = |path: &str| {
            let (body, pieces) = mpsc::unbounded_channel::<&'static str>();
            let pieces = futures_util::stream::unfold(pieces, |mut pieces| async {
                let piece = Bytes::from_static(pieces.recv().await?.as_bytes());
                Some((Ok::<_, hyper::Error>(Frame::data(piece)), pieces))
            });
            let uri = format!("http://reviews{path}");
            let request = Request::post(uri).body(StreamBody::new(Box::pin(pieces)));
            (body, sender.send_request(request.unwrap()))
        };
        let (slow, answer_to_slow) = post("/slow");
        slow.send("one ").unwrap();
        for _ in 0..3 {
            let (unfinished, answer) = post("/early");
            unfinished.send("some").unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "early", "whole, although the request is not");
        }
        slow.send("two").unwrap();
        drop(slow);
        let answer = answer_to_slow.await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "one two");
    });
}

#[test]
fn an_early_answer_of_http1_is_whole_and_its_connection_is_not_used_again() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            let head = read_head(&mut tcp).await;
            let answer: &[u8] = match head.split(' ').nth(1) {
                Some("/early") => b"HTTP/1.1 403 No\r\ncontent-length: 5\r\n\r\nearly",
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            let _ = tcp.write_all(answer).await;
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut io = sidecar.client(Http1);
        io.write_all(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nsome")
            .await
            .unwrap();
        let head = read_head(&mut io).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        assert!(head.contains("connection: close\r\n"), "{head}");
        let mut body = [0; 5];
        io.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"early");
        drop(io);
        assert_eq!(sidecar.worker.upstream.pooled(), 0);
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.body, "ok");
    });
}

/// Sidecars that answer by themselves, and with what.
async fn refusing() -> Vec<(Sidecar, DuplexStream, u16)> {
    let forbidden = RouteAction::Respond(StatusCode::FORBIDDEN);
    let nobody = nobody().await;
    let own = [
        (outbound(Vec::new(), Vec::new()), 404),
        (outbound(vec![route("/", forbidden)], Vec::new()), 403),
        (service(&[nobody]), 503),
    ];
    let mut sidecars = Vec::new();
    for (snapshot, status) in own {
        let sidecar = Sidecar::new(snapshot);
        let client = sidecar.client(Http1);
        sidecars.push((sidecar, client, status));
    }
    for (plaintext, status) in [(false, 403), (true, 503)] {
        let identity = Ca::new().identity("reviews");
        let sidecar = Sidecar::with_identity(inbound(plaintext), identity);
        let client = sidecar.caller(nobody, Security::Plaintext, Http1);
        sidecars.push((sidecar, client, status));
    }
    sidecars
}

#[test]
fn an_answer_made_here_to_an_unfinished_request_of_http1_says_that_its_connection_ends() {
    run(async {
        let whole = "content-length: 3000\r\n\r\n";
        let half = "x".repeat(1_000);
        let chunk = format!("3e8\r\n{half}\r\n");
        for framed in [
            format!("{whole}{half}"),
            whole.to_owned(),
            format!("expect: 100-continue\r\n{whole}"),
            format!("transfer-encoding: chunked\r\n\r\n{chunk}"),
        ] {
            for (_sidecar, mut io, status) in refusing().await {
                let request = format!("POST / HTTP/1.1\r\nhost: reviews\r\n{framed}");
                io.write_all(request.as_bytes()).await.unwrap();
                let head = read_head(&mut io).await;
                let begins = format!("HTTP/1.1 {status} ");
                assert!(head.starts_with(&begins), "{head}");
                assert!(head.contains("connection: close\r\n"), "{head}");
                let rest = [&half[..], &half, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"].concat();
                let _ = io.write_all(rest.as_bytes()).await;
                let mut rest = String::new();
                io.read_to_string(&mut rest).await.unwrap();
                assert!(!rest.contains("HTTP/1.1"), "{rest}");
            }
        }
    });
}

#[test]
fn an_answer_made_here_to_a_whole_request_of_http1_leaves_the_connection() {
    run(async {
        let body = "x".repeat(1_000);
        for framed in [
            format!("content-length: 1000\r\n\r\n{body}"),
            format!("transfer-encoding: chunked\r\n\r\n3e8\r\n{body}\r\n0\r\n\r\n"),
            "\r\n".to_owned(),
        ] {
            // The others never leave it.
            for (_sidecar, mut io, status) in refusing().await.into_iter().take(3) {
                for _ in 0..2 {
                    let request = format!("POST / HTTP/1.1\r\nhost: reviews\r\n{framed}");
                    io.write_all(request.as_bytes()).await.unwrap();
                    let head = read_head(&mut io).await;
                    let begins = format!("HTTP/1.1 {status} ");
                    assert!(head.starts_with(&begins), "{head}");
                    assert!(!head.contains("connection: "), "{head}");
                    let length = head.split_once("content-length: ").unwrap().1;
                    let length = length.split_once('\r').unwrap().0.parse().unwrap();
                    io.read_exact(&mut vec![0; length]).await.unwrap();
                }
            }
        }
    });
}

/// A stream that is answered while it goes on may end before its answer does.
#[test]
fn an_early_answer_of_unknown_length_leaves_the_connection_if_its_request_ends_in_time() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            loop {
                read_head(&mut tcp).await;
                let early = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                tcp.write_all(early).await.unwrap();
                if tcp.read_exact(&mut [0; 6]).await.is_err() {
                    return;
                }
                tcp.write_all(b"2\r\nok\r\n0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut io = sidecar.client(Http1);
        for _ in 0..2 {
            let begin = b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 6\r\n\r\nabc";
            io.write_all(begin).await.unwrap();
            let head = read_head(&mut io).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(!head.contains("connection: "), "{head}");
            io.write_all(b"def").await.unwrap();
            let mut answer = [0; 12];
            io.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"2\r\nok\r\n0\r\n\r\n");
        }
    });
}

#[test]
fn an_answer_made_here_to_head_has_no_body() {
    run(async {
        let sidecar = Sidecar::new(outbound(Vec::new(), Vec::new()));
        for version in [Http1, Http2] {
            let mut client = Client::new(sidecar.client(version), version).await;
            // h2's client takes a body for a broken stream.
            let answer = client.send(Method::HEAD, "/", "").await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{version:?}");
            assert!(answer.body.is_empty(), "{version:?}");
            let answer = client.get("/").await;
            assert!(!answer.body.is_empty(), "{version:?}");
        }
    });
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let head = [0, 0, length, kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// What a peer still sends while it is answered is no fault of its, and other clients' requests are on its connection.
#[test]
fn what_is_under_way_at_early_answers_costs_nobody_on_a_shared_connection_a_request() {
    run(async {
        let app = app(Http2, |request: Request<Incoming>| async move {
            let mut response = Response::new(Full::new(Bytes::from_static(b"early")));
            if request.method() == Method::PUT {
                *response.body_mut() =
                    Full::new(request.into_body().collect().await.unwrap().to_bytes());
            }
            response
        })
        .await;
        let mut settings = Settings::default();
        settings.http2.local_resets = 180;
        let sidecar = Sidecar::build(inbound(false), Ca::new().identity("reviews"), settings);
        let mut peer = sidecar.caller(app, mesh_peer(), Http2);
        let put = b"\x02\x03PUT\x86\x84\x41\x01a";
        let begin = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            &frame(4, 0, 0, &[]),
            &frame(1, 4, 1, put),
            &frame(0, 0, 1, b"one "),
        ];
        peer.write_all(&begin.concat()).await.unwrap();
        let early = |index: u32| 3 + 2 * index;
        // h2 remembers 50 of them, for a second.
        const EARLY: u32 = 150;
        // Kinds, streams and codes of what comes.
        let mut seen = Vec::new();
        for index in 0..EARLY {
            let post = frame(1, 4, early(index), b"\x83\x86\x84\x41\x01a");
            peer.write_all(&post).await.unwrap();
            read_until(&mut peer, &mut seen, (3, early(index))).await;
        }
        for index in 0..EARLY {
            let late = frame(0, 0, early(index), b"still under way");
            peer.write_all(&late).await.unwrap();
        }
        let get = frame(1, 5, early(EARLY), b"\x82\x86\x84\x41\x01a");
        peer.write_all(&get).await.unwrap();
        // It is to go elsewhere, in peace.
        read_until(&mut peer, &mut seen, (7, 0)).await;
        assert_eq!(seen.last(), Some(&(7, 0, 0)));
        let faults = seen.iter().filter(|it| (it.0, it.2) == (3, 5)).count();
        assert!(faults > 90, "h2 takes what is late for a fault: {seen:?}");
        peer.write_all(&frame(0, 1, 1, b"two")).await.unwrap();
        read_until(&mut peer, &mut seen, (0, 1)).await;
        assert!(seen.iter().all(|it| it.0 != 7 || it.2 == 0), "{seen:?}");
        let limits = &sidecar.worker.limits;
        assert_eq!(limits.count(Limit::H2LocalResets, Direction::Inbound), 1);
    });
}

#[test]
fn only_who_is_shared_is_left_before_it_has_as_many_faults_as_it_may() {
    run(async {
        let app = echo(Http2, "a").await;
        for (security, is_left) in [(mesh_peer(), true), (Security::Plaintext, false)] {
            let mut settings = Settings::default();
            settings.http2.local_resets = 10;
            let identity = Ca::new().identity("reviews");
            let sidecar = Sidecar::build(inbound(true), identity, settings);
            let mut peer = sidecar.caller(app, security, Http2);
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            peer.write_all(hello).await.unwrap();
            // POST http://a/ that says more than it has announced, and GET.
            let bad = |stream| {
                let post = frame(1, 4, stream, b"\x83\x86\x84\x01\x01a\x0f\x0d\x011");
                [post, frame(0, 1, stream, b"xx")].concat()
            };
            let good = |stream| frame(1, 5, stream, b"\x82\x86\x84\x01\x01a");
            let mut seen = Vec::new();
            for stream in (1..15).step_by(2) {
                peer.write_all(&bad(stream)).await.unwrap();
                read_until(&mut peer, &mut seen, (3, stream)).await;
            }
            peer.write_all(&good(15)).await.unwrap();
            read_until(&mut peer, &mut seen, (1, 15)).await;
            let left = |seen: &[(u8, u32, u32)]| seen.iter().any(|it| (it.0, it.2) == (7, 0));
            let counted = || {
                let limits = &sidecar.worker.limits;
                limits.count(Limit::H2LocalResets, Direction::Inbound)
            };
            assert_eq!(left(&seen), is_left, "{is_left}: {seen:?}");
            assert_eq!(counted(), u64::from(is_left));
            if is_left {
                continue;
            }
            for stream in (17..25).step_by(2) {
                peer.write_all(&bad(stream)).await.unwrap();
            }
            read_until(&mut peer, &mut seen, (7, 0)).await;
            assert_eq!(seen.last(), Some(&(7, 0, 11)), "now it has too many");
        }
    });
}

/// Who only gives up loses the connection, at once or, if it is shared, when those that are on it have been answered.
#[test]
fn requests_that_end_make_up_for_those_that_are_given_up() {
    run(async {
        let app = app(Http2, |request: Request<Incoming>| async move {
            let body = request.into_body().collect().await;
            Response::new(Full::new(
                body.map(|body| body.to_bytes()).unwrap_or_default(),
            ))
        })
        .await;
        for (security, code) in [(Security::Plaintext, 11), (mesh_peer(), 0)] {
            let mut settings = Settings::default();
            settings.http2.given_up = 3;
            let identity = Ca::new().identity("reviews");
            let sidecar = Sidecar::build(inbound(true), identity, settings);
            let mut peer = sidecar.caller(app, security, Http2);
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            peer.write_all(hello).await.unwrap();
            let post = |flags: u8, stream| frame(1, 4 | flags, stream, b"\x83\x86\x84\x01\x01a");
            let under_way = async |number| {
                while sidecar.worker.requests.get() != number {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // One that stays.
            peer.write_all(&post(0, 1)).await.unwrap();
            under_way(1).await;
            let mut seen = Vec::new();
            let (mut streams, mut given_up) = ((3..).step_by(2), 0);
            while !seen.iter().any(|it: &(u8, u32, u32)| it.0 == 7) {
                let stream = streams.next().unwrap();
                peer.write_all(&post(0, stream)).await.unwrap();
                under_way(2).await;
                let reset = frame(3, 0, stream, &[0, 0, 0, 8]);
                peer.write_all(&reset).await.unwrap();
                under_way(1).await;
                given_up += 1;
                if given_up <= 10 {
                    let stream = streams.next().unwrap();
                    peer.write_all(&post(1, stream)).await.unwrap();
                    read_until(&mut peer, &mut seen, (1, stream)).await;
                    assert!(seen.iter().all(|it| it.0 != 7), "{seen:?}");
                } else {
                    // It is told so at its next frame.
                    peer.write_all(&frame(6, 0, 0, &[0; 8])).await.unwrap();
                    let last = if given_up > 13 { 7 } else { 6 };
                    read_until(&mut peer, &mut seen, (last, 0)).await;
                }
            }
            assert_eq!(seen.last(), Some(&(7, 0, code)));
            assert_eq!(given_up, 14, "that is one too many");
            if code == 0 {
                peer.write_all(&frame(0, 1, 1, b"whole")).await.unwrap();
                read_until(&mut peer, &mut seen, (0, 1)).await;
            }
            let limits = &sidecar.worker.limits;
            // What is asked to end has ended soon.
            while limits.count(Limit::H2GivenUp, Direction::Inbound) != 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

/// Streams that are reset before they are looked at: who shares a connection, or is the app of this pod, may have as many as
/// it may have open.
#[test]
fn only_a_stranger_is_left_for_many_streams_that_were_reset_at_once() {
    run(async {
        let app = echo(Http2, "a").await;
        let mut settings = Settings::default();
        settings.http2.pending_resets = 10;
        settings.http2.max_streams = 40;
        let ca = Ca::new();
        let server = Sidecar::build(inbound(true), ca.identity("reviews"), settings.clone());
        let own = Sidecar::with_settings(service(&[app]), settings);
        let caller = |security| server.caller(app, security, Http2);
        for (what, mut peer, most) in [
            ("a stranger", caller(Security::Plaintext), 10),
            ("a sidecar", caller(mesh_peer()), 40),
            ("the app", own.client(Http2), 40),
        ] {
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            peer.write_all(hello).await.unwrap();
            let mut seen = Vec::new();
            let begin_and_reset = |stream| {
                let get = frame(1, 5, stream, b"\x82\x86\x84\x01\x01a");
                [get, frame(3, 0, stream, &[0, 0, 0, 8])].concat()
            };
            let ping = frame(6, 0, 0, &[0; 8]);
            let many = |first: u32, number| {
                let streams = (first..).step_by(2).take(number);
                [streams.flat_map(begin_and_reset).collect(), ping.clone()].concat()
            };
            peer.write_all(&many(1, most)).await.unwrap();
            read_until(&mut peer, &mut seen, (6, 0)).await;
            let left = seen.iter().any(|it| it.0 == 7);
            assert!(!left, "{what}: {seen:?}");
            peer.write_all(&many(1001, 2 * most)).await.unwrap();
            read_until(&mut peer, &mut seen, (7, 0)).await;
            assert_eq!(seen.last(), Some(&(7, 0, 11)), "{what}: {seen:?}");
        }
    });
}

/// Reads frames up to one of that kind and stream: kinds, streams and codes.
async fn read_until(peer: &mut DuplexStream, seen: &mut Vec<(u8, u32, u32)>, last: (u8, u32)) {
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        peer.read_exact(&mut payload).await.unwrap();
        let word =
            |bytes: Option<&[u8]>| bytes.map_or(0, |it| u32::from_be_bytes(it.try_into().unwrap()));
        let code = match head[3] {
            3 => word(payload.get(..4)),
            7 => word(payload.get(4..8)),
            _ => 0,
        };
        let stream = word(head.get(5..));
        seen.push((head[3], stream, code));
        if (head[3], stream) == last {
            return;
        }
    }
}
