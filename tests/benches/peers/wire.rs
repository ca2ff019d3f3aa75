//! What the sidecars agreed on, read from the wire: the ServerHello is the last of a TLS 1.3 handshake that can be read.
//!
//! The same for every system, whoever it is made of, so that nobody is measured with cheaper cryptography than another.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// What it must be, for all.
pub(crate) const VERSION: &str = "TLSv1.3";
pub(crate) const CIPHER: &str = "TLS_AES_128_GCM_SHA256";
pub(crate) const GROUP: &str = "X25519MLKEM768";
/// How often to look whether it is enough.
const LOOK: Duration = Duration::from_millis(20);
const BUFFER: usize = 8 << 20;
/// Random of a ServerHello that asks for another ClientHello (RFC 8446, 4.1.3), its first bytes.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

/// What a server chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hello {
    version: u16,
    cipher: u16,
    group: u16,
    resumed: bool,
    retry: bool,
}

impl Hello {
    /// Whether it is what all must choose, in full and at once.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let same = self.version == 0x0304 && self.cipher == 0x1301 && self.group == 0x11ec;
        ensure!(
            same && !self.resumed && !self.retry,
            "the sidecars agreed on {self}, not on {VERSION}, {CIPHER}, {GROUP}"
        );
        Ok(())
    }

    /// Whether the cipher is AES-256-GCM.
    pub(crate) fn is_stronger(&self) -> bool {
        self.cipher == 0x1302
    }
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            cipher,
            group,
            ..
        } = self;
        write!(
            f,
            "version {version:#06x}, cipher {cipher:#06x}, group {group:#06x}"
        )?;
        if self.resumed {
            write!(f, ", resumed")?;
        }
        if self.retry {
            write!(f, ", after another try")?;
        }
        Ok(())
    }
}

/// A running look at everything that leaves one port of one pod.
pub(crate) struct Wire {
    enough: Arc<AtomicBool>,
    seen: JoinHandle<std::io::Result<BTreeSet<Hello>>>,
}

impl Wire {
    pub(crate) fn listen(pod: Ipv4Addr, port: u16) -> anyhow::Result<Self> {
        let ipv4 = i32::from((libc::ETH_P_IP as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ipv4)))
            .context("the wire cannot be read")?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_read_timeout(Some(LOOK))?;
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let seen = std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || listen(socket, pod, port, &stop))?;
        Ok(Self { enough, seen })
    }

    /// Ends it; what was seen.
    pub(crate) fn seen(self) -> anyhow::Result<BTreeSet<Hello>> {
        self.enough.store(true, Ordering::Relaxed);
        let seen = self.seen.join();
        Ok(seen.map_err(|_| anyhow::anyhow!("the reader of the wire panicked"))??)
    }
}

fn listen(
    mut socket: Socket,
    pod: Ipv4Addr,
    port: u16,
    enough: &AtomicBool,
) -> std::io::Result<BTreeSet<Hello>> {
    // Longer packets are cut: what is looked for comes first.
    let mut buffer = [0; 2048];
    let mut seen = BTreeSet::new();
    while !enough.load(Ordering::Relaxed) {
        match socket.read(&mut buffer) {
            Ok(length) => {
                let payload = payload(&buffer[..length], pod, port);
                seen.extend(payload.and_then(parse));
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(seen)
}

/// What a TCP segment carries, if it comes from there.
fn payload(packet: &[u8], pod: Ipv4Addr, port: u16) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let segment = packet.get(header..)?;
    let from = packet.get(12..16)? == pod.octets() && segment.get(..2)? == port.to_be_bytes();
    let offset = usize::from(segment.get(12)? >> 4) * 4;
    segment.get(offset..).filter(|_| from && packet[9] == 6)
}

/// The ServerHello at the beginning of these bytes.
fn parse(bytes: &[u8]) -> Option<Hello> {
    let mut rest = Reader(bytes);
    let record = rest.take(5)?;
    let message = rest.take(4)?;
    if record[..2] != [22, 3] || message[0] != 2 {
        return None;
    }
    let mut version = rest.number()?;
    let random = rest.take(32)?;
    let session = usize::from(*rest.take(1)?.first()?);
    rest.take(session)?;
    let cipher = rest.number()?;
    rest.take(1)?;
    let length = rest.number()?;
    let mut extensions = Reader(rest.take(usize::from(length))?);
    let (mut group, mut resumed) = (0, false);
    while let Some(kind) = extensions.number() {
        let length = extensions.number()?;
        let mut body = Reader(extensions.take(usize::from(length))?);
        match kind {
            41 => resumed = true,
            43 => version = body.number()?,
            51 => group = body.number()?,
            _ => {}
        }
    }
    Some(Hello {
        version,
        cipher,
        group,
        resumed,
        retry: random[..4] == RETRY,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}
