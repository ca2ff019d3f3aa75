//! Apps that reset streams, as those of gRPC do with what is no call, and servers that count PINGs.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tulle_identity::Identity;

use super::harness::*;
use super::inbound::mesh_peer;
use crate::config::cluster::UpstreamHttp;
use crate::config::route::RouteAction;
use crate::conn::Direction;
use crate::conn::HttpVersion::Http2;
use crate::io::Transport;
use crate::telemetry::Limit;

/// An app that echoes what comes on `/stream`, and resets everything else.
async fn picky() -> SocketAddr {
    raw_app(|tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((request, mut answer))) = connection.accept().await {
            if request.uri().path() != "/stream" {
                answer.send_reset(h2::Reason::INTERNAL_ERROR);
                continue;
            }
            tokio::task::spawn_local(async move {
                let mut body = request.into_body();
                let mut echo = answer.send_response(Response::new(()), false).unwrap();
                while let Some(Ok(data)) = body.data().await {
                    echo.send_data(data, false).unwrap();
                }
            });
        }
    })
    .await
}

#[test]
fn a_stream_that_an_app_resets_ends_no_other() {
    run(async {
        let sidecar = Sidecar::new(inbound(false));
        let io = sidecar.caller(picky().await, mesh_peer(), Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::post("http://a/stream").body(()).unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        let mut echo = answer.await.unwrap().into_body();
        // More than h2 would bear of streams that it has to reset itself.
        for _ in 0..1_100 {
            let get = Request::get("http://a/").body(()).unwrap();
            let (answer, _) = sender.send_request(get, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 503);
        }
        body.send_data(Bytes::from_static(b"still here"), false)
            .unwrap();
        assert_eq!(echo.data().await.unwrap().unwrap(), "still here");
        assert_eq!(sidecar.worker.upstream.pooled(), 1);
        for limit in Limit::ALL {
            let reached = sidecar.worker.limits.count(*limit, Direction::Inbound);
            assert_eq!(reached, 0, "{limit:?}");
        }
    });
}

/// An app of HTTP/2 that says half an answer and resets it then.
async fn half_then(reason: h2::Reason) -> SocketAddr {
    raw_app(move |tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((_, mut answer))) = connection.accept().await {
            let mut body = answer.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), false).unwrap();
            tokio::task::spawn_local(async move {
                tokio::task::yield_now().await;
                body.send_reset(reason);
            });
        }
    })
    .await
}

#[test]
fn a_fault_that_an_app_finds_in_the_middle_of_its_answer_is_passed_on_and_not_the_client_s() {
    run(async {
        let app = half_then(h2::Reason::PROTOCOL_ERROR);
        let sidecar = Sidecar::new(inbound(false));
        let io = sidecar.caller(app.await, mesh_peer(), Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://a/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let end = loop {
            if let Err(error) = body.data().await.unwrap() {
                break error;
            }
        };
        assert_eq!(end.reason(), Some(h2::Reason::PROTOCOL_ERROR));
        drop(sender);
        sidecar.record().await;
        let connections = &sidecar.worker.connections;
        let counted = connections.malformed_streams(Direction::Inbound);
        assert_eq!(counted, 0);
    });
}

#[test]
fn a_client_s_own_fault_counts_after_one_of_its_app_s_that_is_none() {
    run(async {
        let app = half_then(h2::Reason::INTERNAL_ERROR);
        let sidecar = Sidecar::new(inbound(false));
        let io = sidecar.caller(app.await, mesh_peer(), Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://a/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        if let Ok(answer) = answer.await {
            let mut body = answer.into_body();
            while let Some(Ok(_)) = body.data().await {}
        }
        sidecar.record().await;
        let counted = || {
            let connections = &sidecar.worker.connections;
            connections.malformed_streams(Direction::Inbound)
        };
        assert_eq!(counted(), 0);
        // It says more than it has announced.
        let request = Request::post("http://a/").header("content-length", "1");
        let (answer, mut body) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        body.send_data(Bytes::from_static(b"xx"), true).unwrap();
        assert!(answer.await.is_err_and(|error| error.is_reset()));
        while counted() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Heads of frames up to the second request, from a connection that is quiet in between: their kinds.
async fn kinds(mut tcp: tokio::net::TcpStream, begun: Rc<Notify>) -> Vec<u8> {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    tcp.write_all(&settings).await.unwrap();
    tcp.read_exact(&mut [0; 24]).await.unwrap();
    let (mut kinds, mut requests) = (Vec::new(), 0);
    while requests < 2 {
        let mut head = [0; 9];
        if tcp.read_exact(&mut head).await.is_err() {
            // Its PINGs were not answered.
            break;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tcp.read_exact(&mut vec![0; length as usize]).await.unwrap();
        kinds.push(head[3]);
        if head[3] == 1 {
            requests += 1;
            begun.notify_one();
        }
    }
    kinds
}

#[test]
fn who_is_no_sidecar_gets_no_pings_however_quiet_a_stream_is() {
    run_still(async {
        let begun = Rc::new(Notify::new());
        let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
        let notify = begun.clone();
        let app = raw_app(move |tcp| {
            let (seen, begun) = (seen.clone(), notify.clone());
            async move {
                let _ = seen.send(kinds(tcp, begun).await);
            }
        })
        .await;
        let mut cluster = cluster("c", plain(&[app]));
        cluster.http = UpstreamHttp::Http2;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let io = sidecar.client(Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut ask = || {
            let request = Request::post("http://a/").body(()).unwrap();
            sender.send_request(request, false).unwrap()
        };
        let _first = ask();
        begun.notified().await;
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
        let _second = ask();
        let kinds = sees.recv().await.unwrap();
        assert!(!kinds.contains(&6), "{kinds:?}");
    });
}

/// A peer's sidecar that takes a request and says nothing more, or only that it is alive, and answers after a minute.
async fn slow_sidecar(identity: Identity, alive: bool) -> SocketAddr {
    raw_app(move |tcp| {
        let config = identity.load().mesh_server().clone();
        async move {
            let tls = TlsAcceptor::from(config).accept(Transport::new(tcp)).await;
            let mut connection = h2::server::handshake(tls.unwrap()).await.unwrap();
            let (_, mut answer) = connection.accept().await.unwrap().unwrap();
            let minute = tokio::time::sleep(Duration::from_secs(60));
            if alive {
                tokio::select! {
                    _ = connection.accept() => {}
                    () = minute => {}
                }
            } else {
                minute.await;
            }
            let _ = answer.send_response(Response::new(()), true);
            let _ = connection.accept().await;
        }
    })
    .await
}

#[test]
fn a_peer_that_is_called_and_answers_no_ping_is_given_up_and_told_of() {
    run_paused(async {
        for (alive, status, told) in [(true, 200, 0), (false, 503, 1)] {
            let ca = Ca::new();
            let peer = slow_sidecar(ca.identity("reviews"), alive).await;
            let mut cluster = cluster("c", meshed(&[peer], "reviews"));
            cluster.http = UpstreamHttp::Http2;
            let mut forward = forward_to("c");
            forward.retry.attempts = 0;
            let route = route("/", RouteAction::Forward(forward));
            let snapshot = outbound(vec![route], vec![cluster]);
            let sidecar = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            let begun = tokio::time::Instant::now();
            let answer = client.get("/").await;
            assert_eq!(answer.status, status, "{alive}");
            assert_eq!(begun.elapsed() < Duration::from_secs(30), !alive);
            let count = || {
                let limits = &sidecar.worker.limits;
                limits.count(Limit::H2KeepAlive, Direction::Outbound)
            };
            // It is told once the connection is over.
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(count(), told, "{alive}");
        }
    });
}
