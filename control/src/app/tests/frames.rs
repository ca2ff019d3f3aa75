//! Floods of HTTP/2's own frames against the port, by clients that have shown no certificate.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tulle_xds_proto::ResourceType::Listener;

use super::harness::*;
use super::shop::*;
use crate::app::listener::Bounds;
use crate::discovery::Limits;
use crate::store::StoreWriter;

const STRANGER: [u8; 4] = [127, 0, 0, 9];
/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);

const HEAD: usize = 9;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(super) const ACK: u8 = 1;
/// What a client says first.
pub(super) const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `ENHANCE_YOUR_CALM`.
const CALM: u32 = 11;

pub(super) fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, 0], payload].concat()
}

fn ping() -> Vec<u8> {
    frame(PING, 0, &[7; 8])
}

/// Takes the first whole frame off: its kind, flags and payload.
pub(super) fn first(bytes: &mut Vec<u8>) -> Option<(u8, u8, Vec<u8>)> {
    let head = bytes.get(..HEAD)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let (kind, flags) = (head[3], head[4]);
    let payload = bytes.get(HEAD..HEAD + length)?.to_vec();
    bytes.drain(..HEAD + length);
    Some((kind, flags, payload))
}

fn bounded(connections: Bounds) -> Limits {
    Limits {
        connections,
        ..limits()
    }
}

/// A connection of a stranger that has said hello.
async fn hello(plane: &Plane) -> TlsStream<TcpStream> {
    let mut stream = plane.bare(STRANGER.into()).await;
    let hello = [HELLO, &frame(SETTINGS, 0, &[])].concat();
    stream.write_all(&hello).await.expect("it reads");
    stream
}

/// Sends that many and reads what comes back, until the connection ends. The code of its GOAWAY.
async fn flood(stream: TlsStream<TcpStream>, piece: &[u8], times: usize) -> Option<u32> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let pieces = piece.repeat(100);
    let sending = async {
        for _ in 0..times / 100 {
            if writer.write_all(&pieces).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let mut answers = Vec::new();
    let reading = reader.read_to_end(&mut answers);
    // The reader's error is only that what was on its way was not read.
    let both = async { tokio::join!(sending, reading) };
    drop(tokio::time::timeout(SOON, both).await.expect("it ends"));
    let mut code = None;
    while let Some((kind, _, payload)) = first(&mut answers) {
        if kind == GOAWAY {
            let bytes = payload[4..8].try_into().expect("four bytes");
            code = Some(u32::from_be_bytes(bytes));
        }
    }
    code
}

/// Waits until a limit was reached that many times.
async fn reached(plane: &Plane, limit: &str, times: usize) {
    let line = format!("tulle_control_limits_reached_total{{limit=\"{limit}\"}} {times}\n");
    let counted = async {
        while !plane.admin("/metrics").await.contains(&line) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, counted).await;
    assert!(waited.is_ok(), "{line}");
}

/// The stream goes on to hear of what it has subscribed to.
async fn goes_on(writer: &mut StoreWriter, proxy: &mut Proxy, host: u8) {
    writer.apply(vec![service(&format!("later-{host}"), [10, 1, 0, host])]);
    let listener = format!("outbound|10.1.0.{host}|80");
    assert_eq!(
        proxy.take().await,
        ("LDS", names(&[listener.as_str()]), vec![])
    );
}

async fn subscribed(proxy: &mut Proxy, host: u8) {
    let listener = format!("outbound|10.1.0.{host}|80");
    proxy.subscribe(Listener, &[listener.as_str()]).await;
    assert_eq!(
        proxy.take().await,
        ("LDS", vec![], names(&[listener.as_str()]))
    );
}

#[tokio::test]
async fn row_16_a_flood_of_control_frames_ends_its_connection_and_no_other() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (mut plane, mut proxy) = plane_and_proxy().await;
    let floods = [
        ("PING", ping()),
        ("PING answers", frame(PING, ACK, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, &[])),
        ("WINDOW_UPDATE", frame(8, 0, &[0, 0, 0, 1])),
        ("unknown", frame(200, 0, b"what is this")),
    ];
    for (host, (name, piece)) in (20..).zip(&floods) {
        subscribed(&mut proxy, host).await;
        let code = flood(hello(&plane).await, piece, 20_000).await;
        assert_eq!(code, Some(CALM), "{name}");
        goes_on(&mut plane.writer, &mut proxy, host).await;
    }
    reached(&plane, "h2_control_frames", floods.len()).await;
    let told = lines.with("limit=\"h2_control_frames\"");
    assert!((1..=floods.len()).contains(&told.len()), "{told:?}");
    assert!(told[0].text.contains("127.0.0.9"), "{told:?}");
}

#[tokio::test]
async fn row_16_a_client_that_keeps_its_connection_alive_is_answered() {
    let plane = Plane::start().await;
    let mut stream = hello(&plane).await;
    let (mut answers, mut pings) = (Vec::new(), 0);
    stream.write_all(&ping()).await.expect("it reads");
    let answered = async {
        while pings < 900 {
            stream.read_buf(&mut answers).await.expect("it answers");
            while let Some((kind, flags, payload)) = first(&mut answers) {
                assert_ne!(kind, GOAWAY, "after {pings}: {payload:?}");
                match kind {
                    SETTINGS if flags & ACK == 0 => {
                        stream.write_all(&frame(SETTINGS, ACK, &[])).await?;
                    }
                    PING if flags & ACK == 0 => {
                        stream.write_all(&frame(PING, ACK, &payload)).await?;
                    }
                    PING => {
                        pings += 1;
                        stream.write_all(&ping()).await?;
                    }
                    _ => {}
                }
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let answered = tokio::time::timeout(SOON, answered).await;
    answered.expect("it answers soon").expect("it reads");
    let metrics = plane.admin("/metrics").await;
    assert!(!metrics.contains("h2_control_frames"), "{metrics}");
}

#[tokio::test]
async fn row_16_a_stream_may_send_what_its_messages_need() {
    let plane = Plane::start_with(
        bounded(Bounds {
            control_frames: 10,
            ..Bounds::default()
        }),
        |_| {},
    );
    let mut plane = plane.await;
    plane.pod("shop", "web-1", "web", IP);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    for _ in 0..300 {
        proxy.expect_silence().await;
    }
    assert_eq!(
        flood(hello(&plane).await, &ping(), 20_000).await,
        Some(CALM)
    );
    proxy.expect_silence().await;
    reached(&plane, "h2_control_frames", 1).await;
}

/// Asks for answers and reads none of them, until the connection is broken.
async fn ask_and_read_nothing(plane: &Plane) {
    let mut stream = hello(plane).await;
    let pings = ping().repeat(1_000);
    let sending = async { while stream.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(SOON, sending)
        .await
        .expect("it is broken");
}

#[tokio::test]
async fn row_16_a_client_that_reads_no_answer_is_given_up() {
    let plane = Plane::start_with(
        bounded(Bounds {
            control_frames: u32::MAX,
            unread: Duration::from_millis(200),
            ..Bounds::default()
        }),
        |_| {},
    );
    let plane = plane.await;
    ask_and_read_nothing(&plane).await;
    reached(&plane, "unread", 1).await;
}

#[tokio::test]
async fn row_16_a_client_that_reads_no_answer_outlives_no_other() {
    let plane = Plane::start_with(
        bounded(Bounds {
            control_frames: u32::MAX,
            unread: Duration::from_secs(3600),
            anonymous_life: Duration::from_millis(500),
            ..Bounds::default()
        }),
        |_| {},
    );
    let plane = plane.await;
    ask_and_read_nothing(&plane).await;
    let metrics = plane.admin("/metrics").await;
    assert!(!metrics.contains("limit=\"unread\""), "{metrics}");
}

#[tokio::test]
async fn row_21_a_head_that_is_too_large_is_refused_and_counted() {
    let plane = Plane::start().await;
    let channel = plane.channel(None).await.expect("it listens");
    let long = "x".repeat(20 << 10);
    let answer = super::certificates::certify_over(channel, &long).await;
    assert!(answer.is_err(), "{answer:?}");
    // Its connection has ended with the channel.
    reached(&plane, "head", 1).await;
}
