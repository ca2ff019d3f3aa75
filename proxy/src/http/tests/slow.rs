//! Peers that take their time: those that mean nothing by it are not waited for, those that stream are.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::harness::*;
use super::inbound::mesh_peer;
use crate::config::route::RouteAction;
use crate::conn::Direction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::settings::{Patience, Settings};
use crate::telemetry::Limit;
use crate::upstream::LocalExecutor;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// Everything until the other side closes, and how long that took.
async fn until_closed(io: &mut DuplexStream) -> (String, Duration) {
    let begun = Instant::now();
    let mut seen = Vec::new();
    // A reset is an end too.
    let _ = io.read_to_end(&mut seen).await;
    (String::from_utf8(seen).unwrap(), begun.elapsed())
}

fn about(took: Duration, expected: Duration) {
    let late = took.checked_sub(expected);
    assert!(
        late.is_some_and(|late| late < SECOND * 15),
        "{took:?}, not {expected:?}"
    );
}

#[test]
fn row_19_a_body_that_stops_coming_is_answered_408_and_told_who_sent_it() {
    run_paused(async {
        let patience = Patience::default().body;
        let app = echo(Http1, "a").await;
        for inward in [false, true] {
            let (sidecar, mut client, listener) = if inward {
                let sidecar = Sidecar::new(inbound(true));
                let client = sidecar.caller(app, crate::conn::Security::Plaintext, Http1);
                (sidecar, client, Direction::Inbound)
            } else {
                let sidecar = Sidecar::new(service(&[app]));
                let client = sidecar.client(Http1);
                (sidecar, client, Direction::Outbound)
            };
            let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n12345";
            client.write_all(head).await.unwrap();
            let (answer, took) = until_closed(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            about(took, patience);
            let record = sidecar.record().await;
            assert_eq!(record.flags.to_string(), "SI");
            assert_eq!(
                (record.bytes_received, record.attempts),
                (5, 1),
                "it is not retried"
            );
            assert_eq!(sidecar.worker.limits.count(Limit::Body, listener), 1);
        }
    });
}

/// Sends a body of a hundred pieces of that many bytes with a pause before each, until it is refused. What comes back, how
/// often the limit was counted, and how long it took.
async fn drips(piece: usize, pause: Duration, rate: u32) -> (String, u64, Duration) {
    let app = echo(Http1, "a").await;
    let mut settings = Settings::default();
    settings.patience.body_rate = rate;
    let sidecar = Sidecar::with_settings(service(&[app]), settings);
    let mut client = sidecar.client(Http1);
    let length = 100 * piece;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        sleep(pause).await;
        if client.write_all(&vec![b'x'; piece]).await.is_err() {
            break;
        }
    }
    let (answer, _) = until_closed(&mut client).await;
    let count = sidecar
        .worker
        .limits
        .count(Limit::Body, Direction::Outbound);
    (answer, count, begun.elapsed())
}

#[test]
fn row_19_a_body_that_keeps_coming_is_waited_for_and_a_byte_now_and_then_is_not_enough() {
    run_paused(async {
        let patience = Patience::default();
        let rate = patience.body_rate;
        let least = patience.body.as_secs() as usize * rate as usize;
        let almost = patience.body - SECOND;
        for (piece, pause, rate, whole) in [
            // A long pause after each piece, and little ones all the time, but enough together.
            (least + 1_000, almost, rate, true),
            (21 * rate as usize, SECOND * 20, rate, true),
            // A byte now and then, where that is enough and where it is not.
            (1, almost, 0, true),
            (1, almost, rate, false),
            (1, SECOND * 10, rate, false),
            (9 * rate as usize, SECOND * 10, rate, false),
        ] {
            let (answer, count, took) = drips(piece, pause, rate).await;
            let what = format!("{piece} bytes, {pause:?}, {rate} a second: {answer:.100}");
            if whole {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{what}");
                assert!(answer.ends_with(&"x".repeat(100 * piece)), "{what}");
            } else {
                assert!(answer.starts_with("HTTP/1.1 408 "), "{what}");
                assert!(took <= 2 * patience.body + SECOND * 15, "{took:?}: {what}");
            }
            assert_eq!(count, u64::from(!whole), "{what}");
        }
    });
}

#[test]
fn an_http2_client_that_does_not_read_for_a_while_is_waited_for() {
    const LENGTH: u32 = 4 << 20;
    run_still(async {
        let app = app(Http2, |_| async {
            Response::new(Full::new(Bytes::from(vec![b'x'; LENGTH as usize])))
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut client = h2::client::Builder::new();
        client
            .initial_window_size(LENGTH)
            .initial_connection_window_size(LENGTH);
        let io = sidecar.client(Http2);
        let (mut sender, mut connection) = client.handshake::<_, Bytes>(io).await.unwrap();
        let request = Request::get("http://reviews/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = tokio::select! {
            biased;
            answer = answer => answer.unwrap(),
            ended = &mut connection => panic!("{ended:?}"),
        };
        for _ in 0..200 {
            tokio::time::advance(SECOND).await;
            tokio::task::yield_now().await;
        }
        tokio::task::spawn_local(connection);
        let (mut body, mut read) = (answer.into_body(), 0);
        while let Some(data) = body.data().await {
            read += data.unwrap().len();
        }
        assert_eq!(read, LENGTH as usize);
    });
}

#[test]
fn row_19_a_client_that_was_answered_may_pause_in_its_body() {
    run_paused(async {
        let app = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
            tcp.write_all(head).await.unwrap();
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                body.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(b"0\r\n\r\n").await.unwrap();
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut client = sidecar.client(Http1);
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("ok\r\n") {
            answer.push(client.read_u8().await.unwrap().into());
        }
        sleep(24 * HOUR).await;
        client.write_all(b"0\r\n\r\n").await.unwrap();
        let (rest, _) = until_closed(&mut client).await;
        assert_eq!(rest, "0\r\n\r\n", "{answer}");
    });
}

#[test]
fn row_19_a_connection_without_a_request_is_closed_and_one_without_another_request_later() {
    run_paused(async {
        let patience = Patience::default();
        let app = echo(Http1, "a").await;
        let sidecar = Sidecar::new(service(&[app]));
        let count = |limit| sidecar.worker.limits.count(limit, Direction::Outbound);
        let mut silent = sidecar.client(Http1);
        let (seen, took) = until_closed(&mut silent).await;
        assert_eq!(seen, "");
        about(took, patience.first_request);
        assert_eq!((count(Limit::FirstRequest), count(Limit::Idle)), (1, 0));

        let mut once = sidecar.client(Http1);
        once.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let (seen, took) = until_closed(&mut once).await;
        assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
        about(took, patience.idle);
        assert_eq!((count(Limit::FirstRequest), count(Limit::Idle)), (1, 1));

        let mut silent = sidecar.client(Http2);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        silent.write_all(preface).await.unwrap();
        let acking = async {
            // It is alive: it answers pings, and asks for nothing.
            let mut frame = [0; 9];
            while silent.read_exact(&mut frame).await.is_ok() {
                let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
                let mut payload = vec![0; length as usize];
                silent.read_exact(&mut payload).await.unwrap();
                if frame[3] == 6 && frame[4] == 0 {
                    frame[4] = 1;
                    let _ = silent.write_all(&[&frame[..], &payload].concat()).await;
                }
            }
        };
        let begun = Instant::now();
        acking.await;
        about(begun.elapsed(), patience.first_request);
        assert_eq!((count(Limit::FirstRequest), count(Limit::Idle)), (2, 1));
    });
}

#[test]
fn a_peer_that_answers_no_ping_is_given_up_and_told_of() {
    run_paused(async {
        for peer in [true, false] {
            let sidecar = Sidecar::new(inbound(true));
            let app = echo(Http2, "a").await;
            let security = if peer {
                mesh_peer()
            } else {
                crate::conn::Security::Plaintext
            };
            let mut silent = sidecar.caller(app, security, Http2);
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            silent.write_all(preface).await.unwrap();
            let begun = Instant::now();
            let _ = silent.read_to_end(&mut Vec::new()).await;
            let took = begun.elapsed();
            // It is told once the connection is over, which is after its client has seen the end of it.
            sleep(3 * SECOND).await;
            let count = |limit| sidecar.worker.limits.count(limit, Direction::Inbound);
            let told = (count(Limit::H2KeepAlive), count(Limit::FirstRequest));
            if peer {
                about(took, Duration::from_secs(40));
                assert_eq!(told, (1, 0));
            } else {
                // It has the time of what is left unread, and goes sooner because it asks for nothing.
                about(took, Patience::default().first_request);
                assert_eq!(told, (0, 1));
            }
        }
    });
}

#[test]
fn row_19_while_there_is_no_room_a_connection_without_a_request_goes_sooner() {
    run_paused(async {
        let app = echo(Http1, "a").await;
        for full in [false, true] {
            let sidecar = Sidecar::new(service(&[app]));
            if full {
                sidecar.worker.overload.fill(Direction::Outbound);
            } else {
                sidecar.worker.overload.use_memory(85);
            }
            let mut busy = Client::new(sidecar.client(Http1), Http1).await;
            assert_eq!(busy.get("/").await.status, StatusCode::OK);
            let (_, took) = until_closed(&mut sidecar.client(Http1)).await;
            about(took, Duration::from_secs(10));
            assert_eq!(
                busy.get("/").await.status,
                StatusCode::OK,
                "who has sent something stays"
            );
        }
    });
}

/// An app that answers at once and then says a word every hour, for ever.
async fn hourly() -> SocketAddr {
    raw_app(|mut tcp| async move {
        read_head(&mut tcp).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        tcp.write_all(head).await.unwrap();
        while tcp.write_all(b"4\r\ntick\r\n").await.is_ok() {
            sleep(HOUR).await;
        }
    })
    .await
}

#[test]
fn row_23_a_stream_of_a_day_survives_config_pushes() {
    run_paused(async {
        for version in [Http1, Http2] {
            let sidecar = Sidecar::new(service(&[hourly().await]));
            let mut cluster = (**sidecar.worker.config.load().cluster("c").unwrap()).clone();
            // The app speaks HTTP/1 whatever the client speaks.
            cluster.http = crate::config::cluster::UpstreamHttp::Http1;
            sidecar.change(|snapshot| {
                snapshot.clusters.insert("c".into(), cluster.into());
            });
            let mut body = open(&sidecar, version).await.into_body();
            for hour in 0..24 {
                let frame = body.frame().await.expect("the stream ended").unwrap();
                assert_eq!(
                    frame.into_data().unwrap(),
                    "tick",
                    "{version:?}, hour {hour}"
                );
                sidecar.change(|snapshot| snapshot.generation += 1);
            }
            assert_eq!(sidecar.records().len(), 0, "{version:?}: it is still open");
        }
    });
}

/// Asks for `/`, without waiting for the end of the answer.
async fn open(
    sidecar: &Sidecar,
    version: crate::conn::HttpVersion,
) -> Response<hyper::body::Incoming> {
    let client = Client::new(sidecar.client(version), version).await;
    let request = client
        .build(Method::GET, "/")
        .body(Full::default())
        .unwrap();
    match client {
        Client::Http1(mut sender) => {
            let response = sender.send_request(request).await.unwrap();
            // The connection goes with its sender.
            std::mem::forget(sender);
            response
        }
        Client::Http2(mut sender) => {
            let response = sender.send_request(request).await.unwrap();
            std::mem::forget(sender);
            response
        }
    }
}

#[test]
fn row_23_the_longest_duration_that_a_route_allows_is_honoured() {
    run_paused(async {
        let mut forward = forward_to("c");
        forward.timeout = Some(3 * HOUR);
        let route = route("/", RouteAction::Forward(forward));
        let endpoints = plain(&[hourly().await]);
        let sidecar = Sidecar::new(outbound(vec![route], vec![cluster("c", endpoints)]));
        let begun = Instant::now();
        let mut body = open(&sidecar, Http1).await.into_body();
        let mut ticks = 0;
        while let Some(Ok(_)) = body.frame().await {
            ticks += 1;
        }
        about(begun.elapsed(), 3 * HOUR);
        assert!((3..=4).contains(&ticks), "{ticks}");
        assert_eq!(sidecar.record().await.flags.to_string(), "UT");
    });
}

#[test]
fn row_23_both_ends_of_a_grpc_stream_may_be_silent_for_a_day() {
    run_paused(async {
        let app = app(Http2, |request| async move {
            let mut body = request.into_body();
            // It answers after the first message, which comes late.
            let first = body.frame().await.unwrap().unwrap();
            Response::new(Full::new(first.into_data().unwrap()))
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let io = TokioIo::new(sidecar.client(Http2));
        let (mut sender, connection) = http2::handshake(LocalExecutor, io).await.unwrap();
        tokio::task::spawn_local(connection);
        let (messages, mut queue) = mpsc::channel::<Bytes>(1);
        let stream = futures_util::stream::poll_fn(move |cx| {
            let next = queue.poll_recv(cx);
            next.map(|next| next.map(|data| Ok::<_, std::convert::Infallible>(Frame::data(data))))
        });
        let request = Request::post("http://reviews/a.B/C")
            .header("content-type", "application/grpc")
            .body(StreamBody::new(stream))
            .unwrap();
        let answer = tokio::task::spawn_local(async move { sender.send_request(request).await });
        sleep(24 * HOUR).await;
        messages
            .send(Bytes::from_static(b"\0\0\0\0\x01x"))
            .await
            .unwrap();
        let answer = answer.await.unwrap().unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, &b"\0\0\0\0\x01x"[..]);
        assert_eq!(
            sidecar
                .worker
                .limits
                .count(Limit::Body, Direction::Outbound),
            0
        );
    });
}
