//! What clients without a certificate make the program keep in memory, with all that they may send and no end to it.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::super::frames::{ACK, HELLO, PING, SETTINGS, first, frame};
use super::*;

const CONNECTIONS: usize = 40;
/// Far more than a stranger may have.
const STREAMS: u32 = 200;
/// What a request may say of its length, and how much of it is sent.
const LONGEST: u32 = 16 << 10;
const SENT: usize = 16_000;
/// What 40 connections may cost in KiB: with 128 streams each they took 200 MiB.
const COST: u64 = 30 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// A frame of a stream.
fn of_stream(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame(kind, flags, payload);
    frame[5..9].copy_from_slice(&stream.to_be_bytes());
    frame
}

/// A field as HPACK writes it in full.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len().min(127)).expect("small")];
        let mut rest = text.len().checked_sub(127);
        while let Some(left) = rest {
            let more = if left >= 128 { 128 } else { 0 };
            bytes.push(u8::try_from(left % 128 + more).expect("a byte"));
            rest = (left >= 128).then_some(left / 128);
        }
        [&bytes, text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

struct Stranger {
    io: TlsStream<TcpStream>,
    received: Vec<u8>,
    /// Streams that the server takes, and bytes that it takes of all of them now.
    streams: u32,
    room: u32,
    opened: u32,
}

impl Stranger {
    async fn connect(lender: &Plane, program: &Serving) -> Self {
        let mut io = lender.bare_to(program.xds, [127, 0, 0, 1].into()).await;
        let hello = [HELLO, &frame(SETTINGS, 0, &[])].concat();
        io.write_all(&hello).await.expect("it reads");
        let mut stranger = Self {
            io,
            received: Vec::new(),
            streams: STREAMS,
            room: 65_535,
            opened: 0,
        };
        stranger.pong().await;
        stranger
    }

    /// Waits until all that was sent has been read, and learns what may be sent.
    async fn pong(&mut self) {
        let ping = frame(PING, 0, b"is it so");
        self.io.write_all(&ping).await.expect("it reads");
        loop {
            while let Some((kind, flags, payload)) = first(&mut self.received) {
                match kind {
                    PING if flags == ACK => return,
                    SETTINGS if flags != ACK => {
                        let streams = payload.chunks(6).find(|it| it[..2] == [0, 3]);
                        self.streams = streams.map_or(STREAMS, |it| number(&it[2..])).min(STREAMS);
                        let ack = frame(SETTINGS, ACK, &[]);
                        self.io.write_all(&ack).await.expect("it reads");
                    }
                    WINDOW_UPDATE => self.room += number(&payload),
                    _ => {}
                }
            }
            let read = self.io.read_buf(&mut self.received).await;
            assert!(read.expect("it answers") > 0, "it goes on");
        }
    }

    /// Opens a stream with a head as large as it may be, and sends all of a message but its end.
    async fn ask(&mut self) {
        let head = [
            field(":method", "POST"),
            field(":scheme", "http"),
            field(":authority", "tulle-control"),
            field(
                ":path",
                "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            ),
            field("content-type", "application/grpc"),
            field("authorization", &format!("Bearer {}", "x".repeat(12 << 10))),
        ]
        .concat();
        let message = [&[0], &LONGEST.to_be_bytes()[..], &[7; SENT]].concat();
        let sent = u32::try_from(message.len()).expect("small");
        while self.room < sent {
            self.pong().await;
        }
        self.room -= sent;
        let stream = 2 * self.opened + 1;
        self.opened += 1;
        let frames = [
            of_stream(stream, HEADERS, END_HEADERS, &head),
            of_stream(stream, DATA, 0, &message),
        ]
        .concat();
        self.io.write_all(&frames).await.expect("it reads");
        self.pong().await;
    }

    async fn ask_all(&mut self) {
        while self.opened < self.streams {
            self.ask().await;
        }
    }
}

#[tokio::test]
async fn messages_without_end_on_connections_without_a_certificate_take_little_memory() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    put(dir.path(), "shop.yaml", SHOP);
    let mut program = serving(&words(&lender.args(), dir.path())).await;
    Stranger::connect(&lender, &program).await.ask_all().await;
    let before = memory(&program.process, "VmHWM:");
    let mut strangers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stranger = Stranger::connect(&lender, &program).await;
        stranger.ask_all().await;
        strangers.push(stranger);
    }
    let streams: u32 = strangers.iter().map(|it| it.opened).sum();
    let cost = memory(&program.process, "VmHWM:") - before;
    eprintln!("{streams} streams: {cost} KiB");
    assert!(streams as usize >= CONNECTIONS, "each has at least one");
    assert!(cost < COST, "{streams} streams: {cost} KiB");
    drop(strangers);
    assert_eq!(program.terminate().await, Some(0));
}
