//! What becomes of connections and their requests when a sidecar ends.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::AsyncReadExt;
use tulle_runtime::drain;

use super::harness::*;
use super::inbound::{mesh_peer, pair};
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::Security;

#[test]
fn a_draining_sidecar_closes_after_answers_and_sends_goaway() {
    run(async {
        let (drain, watch) = drain::channel();
        drop(watch);
        let mut sidecar = Sidecar::new(inbound(true));
        let app = echo(Http1, "a").await;
        let mut mesh = Client::new(sidecar.caller(app, mesh_peer(), Http1), Http1).await;
        assert_eq!(mesh.get("/").await.header("connection"), "");
        let begun = std::mem::replace(&mut sidecar.drain, drain);
        tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
        tokio::task::yield_now().await;
        let last = mesh.send(Method::POST, "/", "x").await;
        assert_eq!(
            (last.status, last.header("connection")),
            (StatusCode::OK, "close")
        );
    });
    run(async {
        let (drain, _) = drain::channel();
        let mut sidecar = Sidecar::new(inbound(true));
        let app = echo(Http2, "a").await;
        let mut client = Client::new(sidecar.caller(app, mesh_peer(), Http2), Http2).await;
        assert_eq!(client.get("/").await.status, StatusCode::OK);
        let begun = std::mem::replace(&mut sidecar.drain, drain);
        tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
        let Client::Http2(sender) = &mut client else {
            unreachable!()
        };
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_draining_sidecar_keeps_an_idle_mesh_connection_for_a_while() {
    run_paused(async {
        // Without any config every request is answered here.
        let mut sidecar = Sidecar::new(crate::config::Snapshot::default());
        let mesh = sidecar.caller(CLIENT.into(), mesh_peer(), Http1);
        let mut plain = sidecar.caller(CLIENT.into(), Security::Plaintext, Http1);
        let mut client = Client::new(mesh, Http1).await;
        client.get("/").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (drain, _) = drain::channel();
        let begun = std::mem::replace(&mut sidecar.drain, drain);
        tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
        assert_eq!(
            plain.read(&mut [0; 1]).await.unwrap(),
            0,
            "others are closed at once"
        );
        tokio::time::sleep(Duration::from_millis(1_900)).await;
        let Client::Http1(sender) = &client else {
            unreachable!()
        };
        assert!(!sender.is_closed());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(sender.is_closed());
    });
}

#[test]
fn a_connection_that_is_opened_during_the_drain_is_served() {
    run(async {
        for version in [Http1, Http2] {
            let (drain, _) = drain::channel();
            let mut sidecar = Sidecar::new(inbound(true));
            let app = echo(version, "a").await;
            let begun = std::mem::replace(&mut sidecar.drain, drain);
            tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
            tokio::task::yield_now().await;
            for security in [mesh_peer(), Security::Plaintext] {
                let io = sidecar.caller(app, security, version);
                let mut client = Client::new(io, version).await;
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let answer = client.send(Method::POST, "/", "x").await;
                assert_eq!(answer.status, StatusCode::OK, "{version:?}");
            }
        }
    });
}

#[test]
fn no_request_is_lost_while_the_only_peer_drains() {
    run(async {
        for version in [Http1, Http2] {
            let (client, mut server) = pair(echo(version, "a").await).await;
            let mut sender = Client::new(client.client(version), version).await;
            for n in 0..30 {
                if n == 10 {
                    let begun = std::mem::replace(&mut server.drain, drain::channel().0);
                    tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
                }
                let answer = sender.send(Method::POST, "/", "x").await;
                assert_eq!(answer.status, StatusCode::OK, "{version:?}: request {n}");
            }
        }
    });
}
