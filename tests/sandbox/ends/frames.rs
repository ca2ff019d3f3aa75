//! HTTP/2, frame by frame: an end of a connection that says what a test wants and nothing else, and heads that no table
//! has a part in. Only SETTINGS and PING are answered by themselves.

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Of DATA and HEADERS: the last of their stream.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of SETTINGS and PING.
const ACK: u8 = 1;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field without indexing whose name has that place in the static table, and 14 or less in front of a larger one.
fn field(name: &[u8], value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(127);
    [name, &[length], value.as_bytes()].concat()
}

fn length(length: Option<&str>) -> Vec<u8> {
    length.map_or_else(Vec::new, |length| field(&[15, 13], length))
}

fn ends(last: bool) -> u8 {
    if last { END_STREAM } else { 0 }
}

/// The head of a POST.
pub(super) fn post(stream: u32, path: &str, content_length: Option<&str>) -> Vec<u8> {
    let head = [
        vec![0x83, 0x86],
        field(&[1], "web"),
        field(&[4], path),
        length(content_length),
    ];
    frame(HEADERS, END_HEADERS, stream, &head.concat())
}

/// The head of an answer that says 200.
pub(super) fn answer(stream: u32, content_length: Option<&str>, last: bool) -> Vec<u8> {
    let head = [vec![OK], length(content_length)].concat();
    frame(HEADERS, END_HEADERS | ends(last), stream, &head)
}

/// How the head of an answer that says 200 begins.
pub(super) const OK: u8 = 0x88;

pub(super) fn trailers(stream: u32) -> Vec<u8> {
    let fields = [0, 1, b'x', 1, b'y'];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields)
}

pub(super) fn data(stream: u32, data: &[u8], last: bool) -> Vec<u8> {
    frame(DATA, ends(last), stream, data)
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

/// There will be no more than that stream, and nothing is wrong.
pub(super) fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

pub(super) fn grow(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    pub(super) fn is_last(&self) -> bool {
        [DATA, HEADERS].contains(&self.kind) && self.flags & END_STREAM != 0
    }

    /// Of a reset.
    pub(super) fn code(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.first_chunk().copied()?))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) tcp: TcpStream,
    coming: BytesMut,
}

impl Peer {
    /// A client that takes so much of each answer before it says more.
    pub(super) async fn client(tcp: TcpStream, window: u32) -> anyhow::Result<Self> {
        let window = [&[0, 4][..], &window.to_be_bytes()].concat();
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &window)].concat();
        Self::new(tcp, &hello).await
    }

    pub(super) async fn server(mut tcp: TcpStream) -> anyhow::Result<Self> {
        tcp.set_nodelay(true)?;
        let mut preface = [0; PREFACE.len()];
        tcp.read_exact(&mut preface).await?;
        anyhow::ensure!(preface == PREFACE, "no preface: {preface:?}");
        Self::new(tcp, &frame(SETTINGS, 0, 0, &[])).await
    }

    async fn new(tcp: TcpStream, hello: &[u8]) -> anyhow::Result<Self> {
        let coming = BytesMut::new();
        let mut peer = Self { tcp, coming };
        peer.say(hello).await?;
        Ok(peer)
    }

    pub(super) async fn say(&mut self, frames: &[u8]) -> anyhow::Result<()> {
        Ok(self.tcp.write_all(frames).await?)
    }

    /// The next frame, even if it was not waited for before; `None`: the connection is over.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.take() {
                match (frame.kind, frame.flags) {
                    (SETTINGS, 0) => self.acknowledge(SETTINGS, &[]),
                    (PING, 0) => self.acknowledge(PING, &frame.payload),
                    _ => return Some(frame),
                }
            }
            if self.tcp.read_buf(&mut self.coming).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let [a, b, c, kind, flags, stream @ ..] = *self.coming.first_chunk::<9>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        if self.coming.len() < 9 + length {
            return None;
        }
        self.coming.advance(9);
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload: self.coming.split_to(length).to_vec(),
        })
    }

    /// In one piece or, if the other end takes nothing, not at all.
    fn acknowledge(&self, kind: u8, payload: &[u8]) {
        let _ = self.tcp.try_write(&frame(kind, ACK, 0, payload));
    }
}
