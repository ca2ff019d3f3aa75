//! How much of a message may be under way: between machines enough to fill the way, within a pod no more than that takes.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::HttpVersion::Http2;
use crate::conn::Security;
use crate::settings::Settings;

/// One way between the sidecars: so long that what a busy machine takes besides does not matter.
const DELAY: Duration = Duration::from_millis(40);
/// What is sent, or asked for.
const BYTES: usize = 1 << 20;

/// Moves bytes, each so much later.
async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(64 << 10);
            match from.read_buf(&mut piece).await {
                Ok(1..) => {
                    let _ = sender.send((Instant::now() + DELAY, piece));
                }
                _ => return,
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// A place that is as far away from one as another machine.
async fn far_from(address: std::net::SocketAddr) -> std::net::SocketAddr {
    raw_app(move |tcp| async move {
        let there = TcpStream::connect(address).await.unwrap();
        for socket in [&tcp, &there] {
            socket.set_nodelay(true).unwrap();
        }
        let ((from, to), (from_there, to_there)) = (tcp.into_split(), there.into_split());
        tokio::join!(carry(from, to_there), carry(from_there, to));
    })
    .await
}

/// How long it takes to get a message from an app far away, and to send it one.
async fn transfers(stream_window: u32) -> [Duration; 2] {
    let mut settings = Settings::default();
    settings.http2.stream_window = stream_window;
    let app = app(Http2, |request| async move {
        let Ok(asked) = request.uri().path()[1..].parse() else {
            return Response::default();
        };
        let sent = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(sent.len(), BYTES - asked);
        Response::new(Full::new(Bytes::from(vec![b'x'; asked])))
    })
    .await;
    let ca = Ca::new();
    let server = Sidecar::build(inbound(true), ca.identity("web"), settings.clone());
    let server = far_from(server.listen(app).await).await;
    let mut cluster = cluster("c", meshed(&[server], "web"));
    cluster.http = UpstreamHttp::Http2;
    let snapshot = outbound(vec![route_to("c")], vec![cluster]);
    let sidecar = Sidecar::build(snapshot, ca.identity("client"), settings);
    let mut client = Client::new(sidecar.client(Http2), Http2).await;
    // What it takes to connect does not count.
    assert_eq!(client.get("/").await.status, StatusCode::OK);
    let mut took = [Duration::ZERO; 2];
    for (asked, took) in [BYTES, 0].into_iter().zip(&mut took) {
        let path = format!("/{asked}");
        let request = client.build(Method::POST, &path);
        let request = request.body(Full::new(vec![b'x'; BYTES - asked].into()));
        let begun = Instant::now();
        let answer = client.request(request.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, asked));
        *took = begun.elapsed();
    }
    took
}

#[test]
fn a_message_crosses_a_distance_at_more_than_64_kib_a_round_trip() {
    run(async {
        let narrow = transfers(64 << 10).await;
        let wide = transfers(Settings::default().http2.stream_window).await;
        for (way, narrow, wide) in [
            ("towards the client", narrow[0], wide[0]),
            ("towards the app", narrow[1], wide[1]),
        ] {
            let rate = |took: Duration| BYTES as f64 / took.as_secs_f64() / 1e6;
            let (before, after) = (rate(narrow), rate(wide));
            eprintln!("{way}, 80 ms there and back: {before:.2} MB/s, now {after:.2} MB/s");
            assert!(narrow > wide * 3 / 2, "{way}: {narrow:?}, {wide:?}");
        }
    });
}

/// The window of a stream that the other end of a connection advertises in its first frame.
async fn advertised(io: &mut (impl AsyncReadExt + Unpin)) -> u32 {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS come first");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    io.read_exact(&mut settings).await.unwrap();
    let window = settings
        .chunks(6)
        .find(|setting| setting[..2] == [0, 4])
        .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()));
    window.unwrap_or(65_535)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

#[test]
fn what_stays_within_the_pod_has_a_narrow_window() {
    run(async {
        let (far, near) = (256 << 10, 64 << 10);
        // Whoever connects: peers, strangers, and the app of this pod.
        let sidecar = Sidecar::new(inbound(true));
        let peer = Security::Mtls {
            peer: id("client"),
            sidecar: true,
        };
        let somewhere = nobody().await;
        for (mut io, expected) in [
            (sidecar.caller(somewhere, peer, Http2), far),
            (sidecar.caller(somewhere, Security::Plaintext, Http2), far),
            (sidecar.client(Http2), near),
        ] {
            io.write_all(&[PREFACE, &NO_SETTINGS].concat())
                .await
                .unwrap();
            assert_eq!(advertised(&mut io).await, expected);
        }

        // Whom it connects to.
        let (sender, mut windows) = mpsc::unbounded_channel();
        let server = raw_app(move |mut tcp| {
            let sender = sender.clone();
            async move {
                let mut preface = [0; PREFACE.len()];
                tcp.read_exact(&mut preface).await.unwrap();
                sender.send(advertised(&mut tcp).await).unwrap();
            }
        })
        .await;
        let mut cluster = cluster("c", plain(&[server]));
        cluster.http = UpstreamHttp::Http2;
        let away = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        for (io, expected) in [
            (away.client(Http2), far),
            (sidecar.caller(server, Security::Plaintext, Http2), near),
        ] {
            let mut client = Client::new(io, Http2).await;
            let asked = tokio::task::spawn_local(async move { client.get("/").await });
            assert_eq!(windows.recv().await, Some(expected));
            asked.abort();
        }
    });
}
