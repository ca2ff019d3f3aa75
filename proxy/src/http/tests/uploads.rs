//! Request bodies that do not move while memory is short: who holds it goes, and whoever moves does not.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::overload::Haste;
use crate::retry::Replay;
use crate::telemetry::Limit;

const PIECE: &[u8] = &[b'x'; 16 * 1024];

/// Sends a body without an end until it is answered, to what answers with its head first if it `answers`: the status, and
/// `None` if the answer is cut then.
async fn endless(io: DuplexStream, version: HttpVersion, path: &str) -> (u16, Option<usize>) {
    if version == Http1 {
        let (mut read, mut write) = tokio::io::split(io);
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let sending = async {
            while write.write_all(b"4000\r\n").await.is_ok()
                && write.write_all(PIECE).await.is_ok()
                && write.write_all(b"\r\n").await.is_ok()
            {
                yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        let reading = async {
            let head = read_head(&mut read).await;
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let mut rest = Vec::new();
            let _ = read.read_to_end(&mut rest).await;
            (status, rest.ends_with(b"0\r\n\r\n").then_some(rest.len()))
        };
        return tokio::select! {
            read = reading => read,
            () = sending => unreachable!(),
        };
    }
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    let request = http::Request::post(format!("http://a{path}")).body(());
    let (response, mut body) = sender.send_request(request.unwrap(), false).unwrap();
    tokio::task::spawn_local(async move {
        loop {
            body.reserve_capacity(PIECE.len());
            match poll_fn(|cx| body.poll_capacity(cx)).await {
                Some(Ok(some)) if body.send_data(PIECE[..some].into(), false).is_ok() => {}
                _ => break,
            }
            yield_now().await;
        }
    });
    let response = response.await.unwrap();
    let (status, mut rest) = (response.status().as_u16(), response.into_body());
    let mut read = 0;
    loop {
        match rest.data().await {
            Some(Ok(data)) => read += data.len(),
            Some(Err(_)) => return (status, None),
            None => return (status, Some(read)),
        }
    }
}

/// An app that takes nothing of a body, or all of it, and answers at once, or never.
async fn app(version: HttpVersion) -> std::net::SocketAddr {
    raw_app(move |tcp| async move {
        match version {
            Http1 => http1(tcp).await,
            Http2 => http2(tcp).await,
        }
    })
    .await
}

async fn http1(mut tcp: TcpStream) {
    let head = read_head(&mut tcp).await;
    if head.contains("/answered") {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
        tcp.write_all(answer).await.unwrap();
    }
    let mut taken = vec![0; 1 << 16];
    while head.contains("/moves") && tcp.read(&mut taken).await.is_ok_and(|read| read > 0) {}
    std::future::pending::<()>().await;
}

async fn http2(tcp: TcpStream) {
    let mut builder = h2::server::Builder::new();
    // What one stream leaves untaken is not to hold up the others.
    builder.initial_connection_window_size(1 << 20);
    let mut connection = builder.handshake(tcp).await.unwrap();
    let mut kept = Vec::new();
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        if path == "/moves" {
            tokio::task::spawn_local(async move {
                let _answer = answer;
                while let Some(Ok(data)) = body.data().await {
                    let _ = body.flow_control().release_capacity(data.len());
                }
            });
            continue;
        }
        if path == "/answered" {
            let mut said = answer
                .send_response(http::Response::new(()), false)
                .unwrap();
            said.send_data(Bytes::from_static(b"x"), false).unwrap();
            kept.push((None, Some(said), body));
        } else {
            kept.push((Some(answer), None, body));
        }
    }
}

fn sidecar(app: std::net::SocketAddr, version: HttpVersion) -> Sidecar {
    let mut cluster = cluster("c", plain(&[app]));
    cluster.http = match version {
        Http1 => UpstreamHttp::Http1,
        Http2 => UpstreamHttp::Http2,
    };
    Sidecar::new(outbound(vec![route_to("c")], vec![cluster]))
}

#[test]
fn where_memory_is_short_requests_go_that_no_app_takes_and_those_that_move_do_not() {
    run_still(async {
        tick();
        for (version, towards) in [
            (Http1, Http1),
            (Http1, Http2),
            (Http2, Http1),
            (Http2, Http2),
        ] {
            let what = format!("{version:?} to {towards:?}");
            let sidecar = sidecar(app(towards).await, towards);
            let uploads = &sidecar.worker.uploads;
            let mut moves = std::pin::pin!(endless(sidecar.client(version), version, "/moves"));
            for (path, answered) in [("/", false), ("/answered", true)] {
                let mut stuck = std::pin::pin!(endless(sidecar.client(version), version, path));
                let (status, rest) = loop {
                    uploads.give_up(Haste::Great);
                    tokio::select! {
                        over = &mut stuck => break over,
                        over = &mut moves => panic!("{what}: {over:?}"),
                        () = tokio::time::sleep(Duration::from_millis(1)) => {}
                    }
                };
                if answered {
                    assert_eq!((status, rest), (200, None), "{what}: it is cut");
                } else {
                    assert_eq!(status, 503, "{what}");
                }
                let record = sidecar.record().await;
                assert_eq!(record.flags.to_string(), "OM", "{what} {path}");
            }
            let limits = &sidecar.worker.limits;
            assert_eq!(
                limits.count(Limit::Memory, Direction::Outbound),
                2,
                "{what}"
            );
            assert_eq!(sidecar.worker.requests.get(), 1, "{what}");
        }
    });
}

#[test]
fn requests_that_no_app_takes_stay_while_there_is_time() {
    run_still(async {
        tick();
        let sidecar = sidecar(app(Http2).await, Http2);
        let mut stuck = std::pin::pin!(endless(sidecar.client(Http2), Http2, "/"));
        for haste in [Haste::Little, Haste::Great] {
            let begun = tokio::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(300) && sidecar.records().is_empty() {
                sidecar.worker.uploads.give_up(haste);
                tokio::select! {
                    _ = &mut stuck => break,
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            let gone = sidecar.worker.requests.get() == 0;
            assert_eq!(gone, haste == Haste::Great, "{haste:?}");
        }
    });
}

#[test]
fn a_request_that_waits_for_its_connection_is_not_one_that_no_app_takes() {
    run_still(async {
        tick();
        let closing = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
        })
        .await;
        // It takes no part in the handshake.
        let silent = raw_app(|tcp| async move {
            let _tcp = tcp;
            std::future::pending::<()>().await;
        })
        .await;
        let mut endpoints = plain(&[closing]);
        endpoints.extend(meshed(&[silent], "reviews"));
        let mut cluster = cluster("c", endpoints);
        cluster.connect_timeout = Duration::from_secs(60);
        let state = cluster.state.clone();
        // Round robin goes by address.
        state.next.store(u32::from(silent < closing), Relaxed);
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let mut io = sidecar.client(Http1);
        let begins =
            b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n6\r\na body\r\n";
        io.write_all(begins).await.unwrap();
        while state.retries.load(Relaxed) == 0 || state.pending.load(Relaxed) == 0 {
            yield_now().await;
        }
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            let helped = sidecar.worker.uploads.give_up(Haste::Great);
            assert!(!helped, "nothing can go");
            yield_now().await;
        }
        assert_eq!(sidecar.worker.requests.get(), 1);
    });
}

/// The body outlives its exchange where the connection of the next hop has yet to let go of it.
#[test]
fn of_a_body_whose_exchange_is_over_nothing_is_left_to_be_given_up() {
    run_still(async {
        tick();
        let sidecar = sidecar(app(Http2).await, Http2);
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let begins =
            b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n6\r\na body\r\n";
        client.write_all(begins).await.unwrap();
        let worker = &sidecar.worker;
        let done = Cell::new(false);
        let service = service_fn(async |request: http::Request<Incoming>| {
            let replay = Replay::new(request.into_body(), 1 << 10, false, false, None, worker);
            let mut attempt = replay.attempt();
            let piece = poll_fn(|cx| Pin::new(&mut attempt).poll_frame(cx)).await;
            assert!(piece.is_some_and(|piece| piece.is_ok()), "it has begun");
            replay.finish();
            done.set(!worker.uploads.give_up(Haste::Great));
            Err::<http::Response<String>, _>("over")
        });
        let serving = hyper::server::conn::http1::Builder::new();
        let _ = serving
            .serve_connection(TokioIo::new(server), service)
            .await;
        assert!(done.get(), "there was something left");
    });
}
