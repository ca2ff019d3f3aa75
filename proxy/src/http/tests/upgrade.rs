//! What holds for a connection that has switched protocols.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tulle_runtime::drain;

use super::harness::*;
use crate::config::{Lookup, Snapshot};
use crate::conn::HttpVersion::Http1;
use crate::conn::{Direction, Downstream, Security};
use crate::telemetry::ResponseFlag;

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";

/// An app that switches protocols and then echoes.
async fn switching() -> SocketAddr {
    raw_app(|mut tcp| async move {
        read_head(&mut tcp).await;
        tcp.write_all(SWITCH).await.unwrap();
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// A plaintext client that speaks WebSocket with the app; and the task that serves the connection.
async fn websocket(
    sidecar: &Sidecar,
    direction: Direction,
    app: SocketAddr,
) -> (DuplexStream, JoinHandle<()>) {
    let downstream = Downstream {
        direction,
        peer: CLIENT.into(),
        original_dst: app,
        security: Security::Plaintext,
        sni: None,
    };
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let worker = Rc::clone(&sidecar.worker);
    let serving = tokio::task::spawn_local(async move {
        let _ = super::super::serve(worker, downstream, ours, Http1).await;
    });
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    theirs.write_all(request).await.unwrap();
    let head = read_head(&mut theirs).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    echoes(&mut theirs).await;
    (theirs, serving)
}

async fn echoes(io: &mut DuplexStream) {
    let mut echo = [0; 4];
    io.write_all(b"ping").await.unwrap();
    io.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}

#[test]
fn a_websocket_survives_the_drain_until_it_ends() {
    run(async {
        let mut sidecar = Sidecar::new(inbound(true));
        let app = switching().await;
        let (mut client, serving) = websocket(&sidecar, Direction::Inbound, app).await;
        let begun = std::mem::replace(&mut sidecar.drain, drain::channel().0);
        tokio::task::spawn_local(begun.drain(Duration::from_secs(9)));
        sidecar.worker.drain.draining().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        echoes(&mut client).await;
        assert!(
            !serving.is_finished(),
            "the connection must count as open while bytes pass"
        );
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        drop(client);
        serving.await.unwrap();
        let record = sidecar.record().await;
        assert_eq!((record.bytes_sent, record.flags.is_empty()), (8, true));
    });
}

#[test]
fn turning_strict_on_ends_a_plaintext_websocket() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let app = switching().await;
        let (mut client, serving) = websocket(&sidecar, Direction::Inbound, app).await;
        sidecar.change(|snapshot| *snapshot = inbound(false));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        serving.await.unwrap();
        let flags = sidecar.record().await.flags;
        assert!(flags.contains(ResponseFlag::Unauthorized));
    });
}

#[test]
fn a_websocket_that_passes_through_ends_when_its_destination_joins_the_mesh() {
    run(async {
        let app = switching().await;
        let sidecar = Sidecar::new(Snapshot::default());
        sidecar.change(|snapshot| {
            snapshot.outbound.insert(app, Lookup::Unknown);
        });
        let (mut client, serving) = websocket(&sidecar, Direction::Outbound, app).await;
        let join = |snapshot: &mut Snapshot, endpoints| {
            *snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let listener = snapshot.outbound.remove(&SERVICE.into()).unwrap();
            snapshot.outbound.insert(app, listener);
        };
        sidecar.change(|snapshot| join(snapshot, plain(&[app])));
        echoes(&mut client).await;
        sidecar.change(|snapshot| join(snapshot, meshed(&[app], "reviews")));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        serving.await.unwrap();
        let record = sidecar.record().await;
        assert_eq!(record.details, "the destination has joined the mesh");
    });
}

#[test]
fn who_broke_a_websocket_is_told() {
    run(async {
        let breaking = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            tcp.write_all(SWITCH).await.unwrap();
            tcp.read_exact(&mut [0; 4]).await.unwrap();
            tcp.write_all(b"ping").await.unwrap();
            crate::net::reset(&tcp);
        })
        .await;
        let sidecar = Sidecar::new(inbound(true));
        let (client, serving) = websocket(&sidecar, Direction::Inbound, breaking).await;
        serving.await.unwrap();
        drop(client);
        let flags = sidecar.record().await.flags;
        assert!(flags.contains(ResponseFlag::UpstreamConnectionTermination));

        let app = switching().await;
        let (mut client, serving) = websocket(&sidecar, Direction::Inbound, app).await;
        // What is still on its way to the client has nobody to take it.
        client.write_all(&[b'x'; 4096]).await.unwrap();
        drop(client);
        serving.await.unwrap();
        let flags = sidecar.record().await.flags;
        assert!(flags.contains(ResponseFlag::DownstreamConnectionTermination));
    });
}

#[test]
fn a_side_that_has_nothing_more_to_say_still_hears_the_other() {
    run(async {
        let last = |who: &'static str| {
            raw_app(move |mut tcp| async move {
                read_head(&mut tcp).await;
                tcp.write_all(SWITCH).await.unwrap();
                let mut heard = String::new();
                if who == "client" {
                    tcp.shutdown().await.unwrap();
                    tcp.read_to_string(&mut heard).await.unwrap();
                    assert_eq!(heard, "from the client");
                } else {
                    tcp.read_to_string(&mut heard).await.unwrap();
                    let echo = format!("{heard}, and from the app");
                    tcp.write_all(echo.as_bytes()).await.unwrap();
                }
            })
        };
        for (who, expected) in [("client", ""), ("app", "from the client, and from the app")] {
            let sidecar = Sidecar::new(service(&[last(who).await]));
            let mut client = sidecar.client(Http1);
            let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
            client.write_all(request).await.unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            let mut heard = String::new();
            if who == "client" {
                client.read_to_string(&mut heard).await.unwrap();
                client.write_all(b"from the client").await.unwrap();
                client.shutdown().await.unwrap();
            } else {
                client.write_all(b"from the client").await.unwrap();
                client.shutdown().await.unwrap();
                client.read_to_string(&mut heard).await.unwrap();
            }
            assert_eq!(heard, expected, "the last word is the {who}'s");
            let record = sidecar.record().await;
            assert!(record.flags.is_empty(), "{}", record.flags);
        }
    });
}
