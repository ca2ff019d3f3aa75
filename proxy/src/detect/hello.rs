//! Reads a TLS ClientHello: the server name and the protocols that it offers, nothing else.
//!
//! The handshake message may come in any number of records. Everything is bounded by the bytes at hand, and no length
//! that the client sends is trusted.

use std::sync::Arc;

pub(super) const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 1 << 14;
const MAX_HELLO: usize = 64 * 1024;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const HOST_NAME: u8 = 0;

/// What a ClientHello says of where it wants to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server name, lower case.
    pub server_name: Option<Arc<str>>,
    /// The protocols offered, in the client's order.
    pub protocols: Vec<Box<[u8]>>,
}

impl Hello {
    /// Whether a sidecar of the mesh is calling.
    #[must_use]
    pub fn is_mesh(&self) -> bool {
        self.protocols
            .iter()
            .any(|protocol| protocol.starts_with(b"tulle-"))
    }
}

pub(super) enum Read {
    More,
    Hello(Hello),
    NotHello,
}

/// What has come of a ClientHello. A record is looked at once, however small it is and however slowly others follow.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// Bytes of the connection whose records are in `message`.
    taken: usize,
    message: Vec<u8>,
}

impl Partial {
    /// Reads the ClientHello that `bytes` begin with: what came before, and more.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Read {
        loop {
            let rest = bytes.get(self.taken..).unwrap_or_default();
            let fragment = match record(rest) {
                Record::More => &[],
                Record::NotHandshake => return Read::NotHello,
                Record::Fragment(fragment) => fragment,
            };
            if !fragment.is_empty() {
                self.taken += RECORD_HEADER + fragment.len();
                self.message.extend_from_slice(fragment);
            }
            let message = &self.message;
            if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Read::NotHello;
            }
            if let Some((header, body)) = message.split_at_checked(4) {
                let length = usize::from(header[1]) << 16
                    | usize::from(header[2]) << 8
                    | usize::from(header[3]);
                if length > MAX_HELLO {
                    return Read::NotHello;
                }
                if let Some(body) = body.get(..length) {
                    return parse(body).map_or(Read::NotHello, Read::Hello);
                }
            }
            if fragment.is_empty() {
                return Read::More;
            }
        }
    }
}

enum Record<'a> {
    More,
    NotHandshake,
    /// The payload.
    Fragment(&'a [u8]),
}

fn record(bytes: &[u8]) -> Record<'_> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD)
        || bytes.get(1).is_some_and(|major| *major != 3)
    {
        return Record::NotHandshake;
    }
    let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else {
        return Record::More;
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_RECORD {
        return Record::NotHandshake;
    }
    rest.get(..length).map_or(Record::More, Record::Fragment)
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version, random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    let mut hello = Hello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(content: &[u8]) -> Option<Option<Arc<str>>> {
    let mut names = Reader(Reader(content).vector16()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?;
        if kind == HOST_NAME {
            let name = std::str::from_utf8(name)
                .ok()
                .filter(|name| name.is_ascii())?;
            // The dot at the end of a full name is not to be sent, and means nothing where it is.
            let name = name.strip_suffix('.').unwrap_or(name);
            let name = Some(name).filter(|name| !name.is_empty());
            return Some(name.map(|name| name.to_ascii_lowercase().into()));
        }
    }
    Some(None)
}

fn protocols(content: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut list = Reader(Reader(content).vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.into());
    }
    Some(protocols)
}

/// Takes things off the front of a slice; `None` when there is not enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(length.into())
    }
}
