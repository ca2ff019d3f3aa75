//! What a connection carries, told from its first bytes.
//!
//! Bytes are read, not peeked, and given back with the answer: whoever serves the connection sees all of them. The
//! client is waited for only for a budget, because in some protocols the server speaks first. Nothing in here can
//! fail on what a client sends: bytes that make no sense are opaque.

mod hello;

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

pub use hello::Hello;

use crate::conn::HttpVersion;

/// How long a client may stay silent before its protocol counts as one in which the server speaks first.
pub const SILENCE: Duration = Duration::from_millis(100);
/// How long a client may take from its first byte until its protocol is clear.
pub const HESITATION: Duration = Duration::from_secs(5);

/// Bytes that are looked at, at most: a ClientHello with the largest key shares and many extensions fits.
const MAX_BYTES: usize = 32 * 1024;
/// Bytes of an HTTP request line that are waited for, at most; a longer one is taken for what its beginning says.
const MAX_REQUEST_LINE: usize = 8 * 1024;
/// Empty lines that may come before a request.
const MAX_EMPTY_LINES: usize = 2;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carries {
    /// HTTP.
    Http(HttpVersion),
    /// TLS, with what its ClientHello says.
    Tls(Box<Hello>),
    /// Anything else.
    Opaque,
    /// The client has not said anything yet.
    Silence,
}

/// Reads from a connection until it is clear what it carries. The bytes read so far are in `seen`, and more are added.
///
/// `silence` limits the wait for the first byte, if there is none yet; `None`: as long as it takes.
///
/// # Errors
///
/// When the connection broke.
pub async fn detect(
    tcp: &mut TcpStream,
    seen: &mut BytesMut,
    silence: Option<Duration>,
) -> io::Result<Carries> {
    let mut deadline = match silence {
        Some(silence) if seen.is_empty() => Some(Instant::now() + silence),
        None if seen.is_empty() => None,
        _ => Some(Instant::now() + HESITATION),
    };
    let mut classifier = Classifier::default();
    loop {
        match classifier.look(seen) {
            Some(carries) => return Ok(carries),
            None if seen.len() >= MAX_BYTES => return Ok(Carries::Opaque),
            None => {}
        }
        let first = seen.is_empty();
        // Reserved as needed, because most first flights are short.
        seen.reserve(if first { 1024 } else { 4096 });
        let reading = tcp.read_buf(seen);
        let read = match deadline {
            Some(deadline) => timeout_at(deadline, reading).await.ok(),
            None => Some(reading.await),
        };
        match read.transpose()? {
            None if first => return Ok(Carries::Silence),
            None | Some(0) => return Ok(Carries::Opaque),
            Some(_) if first => deadline = Some(Instant::now() + HESITATION),
            Some(_) => {}
        }
    }
}

/// The bytes that were read, for whoever serves the connection.
#[must_use]
pub fn replay(seen: BytesMut) -> Bytes {
    if seen.is_empty() {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(&seen)
    }
}

/// What bytes are the beginning of; `None`: more are needed.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<Carries> {
    Classifier::default().look(bytes)
}

/// Looks at the first bytes of a connection each time that more of them have come.
#[derive(Debug, Default)]
pub struct Classifier {
    hello: hello::Partial,
}

impl Classifier {
    /// What the connection carries; `bytes` are all that came so far. `None`: more are needed.
    pub fn look(&mut self, bytes: &[u8]) -> Option<Carries> {
        if *bytes.first()? == hello::HANDSHAKE_RECORD {
            return match self.hello.read(bytes) {
                hello::Read::More => None,
                hello::Read::Hello(hello) => Some(Carries::Tls(Box::new(hello))),
                hello::Read::NotHello => Some(Carries::Opaque),
            };
        }
        http(bytes)
    }
}

fn http(bytes: &[u8]) -> Option<Carries> {
    let compared = bytes.len().min(H2_PREFACE.len());
    if bytes[..compared] == H2_PREFACE[..compared] {
        return (compared == H2_PREFACE.len()).then_some(Carries::Http(HttpVersion::Http2));
    }
    match request_line(bytes) {
        Line::More => None,
        Line::Request => Some(Carries::Http(HttpVersion::Http1)),
        Line::Other => Some(Carries::Opaque),
    }
}

/// Whether an HTTP/1 request is one for a forward proxy: `CONNECT`, or a target in absolute form (RFC 9112, 3.2).
#[must_use]
pub fn asks_a_proxy(request: &[u8]) -> bool {
    let line = request.split(|byte| *byte == b'\n').next();
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let absolute = !target.starts_with(b"/") && target.windows(3).any(|three| three == b"://");
    method == Some(b"CONNECT") || absolute
}

enum Line {
    More,
    Request,
    Other,
}

/// Whether bytes begin with an HTTP/1 request line, as far as they go: `METHOD SP target SP HTTP/...`. The version is
/// what tells it from the text protocols that look alike (`GET key`, `HELO host`).
fn request_line(bytes: &[u8]) -> Line {
    // An empty line or two before a request is allowed by RFC 9112, 2.2.
    let mut rest = bytes;
    for _ in 0..MAX_EMPTY_LINES {
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
        if rest.is_empty() || rest == b"\r" {
            return Line::More;
        }
    }
    let line = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => &rest[..end],
        None if rest.len() < MAX_REQUEST_LINE => return beginning_of_request(rest),
        None => rest,
    };
    let complete = line.len() < rest.len();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next_back());
    let is_request = match version {
        Some(version) => version.starts_with(b"HTTP/"),
        None => !complete && target.is_some_and(|target| target.starts_with(b"/")),
    };
    if is_request && method.is_some_and(is_method) {
        Line::Request
    } else {
        Line::Other
    }
}

fn beginning_of_request(bytes: &[u8]) -> Line {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    if is_method(method) {
        Line::More
    } else {
        Line::Other
    }
}

fn is_method(token: &[u8]) -> bool {
    const LONGEST: usize = 24;
    !token.is_empty()
        && token.len() <= LONGEST
        && token
            .iter()
            .all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
}

#[cfg(test)]
mod tests;
