//! What goes over the bridge, byte for byte.
//!
//! Pod traffic is routed, so every packet between pods crosses the bridge and is seen here, twice in fact.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{LinkAddr, recvfrom};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;

/// All protocols, in network byte order.
const EVERYTHING: i32 = (nix::libc::ETH_P_ALL as u16).to_be() as i32;
/// More than this is not kept; what came first is.
const LIMIT: usize = 256 << 20;
const RECEIVE_BUFFER: usize = 16 << 20;
const POLL: Duration = Duration::from_millis(20);

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct PacketCapture {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    frames: Mutex<Frames>,
    stop: AtomicBool,
    /// How often the receiver has found nothing more to read.
    idle: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    dropped: usize,
}

impl PacketCapture {
    pub(crate) fn start(link: u32) -> Result<Self, Error> {
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            socket.set_read_timeout(Some(POLL))?;
            Ok(socket)
        };
        let socket = open().map_err(Error::io("open a packet socket"))?;
        let shared = Arc::new(Shared::default());
        let receiver = shared.clone();
        std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || receive(&socket, link, &receiver))
            .map_err(Error::io("start a thread"))?;
        Ok(Self { shared })
    }

    /// Waits until everything that was sent before this call has been taken in.
    pub async fn settle(&self) {
        let asked = Instant::now();
        while self.shared.idle.lock().is_none_or(|idle| idle < asked) {
            tokio::time::sleep(POLL / 4).await;
        }
    }

    /// Whether one of the frames so far has these bytes in it.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.count(needle) > 0
    }

    /// How many of the frames so far have these bytes in them.
    #[must_use]
    pub fn count(&self, needle: &[u8]) -> usize {
        let frames = self.shared.frames.lock();
        frames.iter().filter(|frame| find(frame, needle)).count()
    }

    /// How many frames were seen.
    #[must_use]
    pub fn frames(&self) -> usize {
        let frames = self.shared.frames.lock();
        frames.ends.len() + frames.dropped
    }

    /// How many bytes were kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.frames.lock().bytes.len()
    }
}

impl Drop for PacketCapture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Frames {
    fn push(&mut self, frame: &[u8]) {
        if self.bytes.len() + frame.len() > LIMIT {
            self.dropped += 1;
            return;
        }
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }
}

fn find(frame: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && frame.windows(needle.len()).any(|window| window == needle)
}

fn receive(socket: &Socket, link: u32, shared: &Shared) {
    let mut buffer = vec![0; 1 << 17];
    while !shared.stop.load(Ordering::Relaxed) {
        let before = Instant::now();
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == link as usize => {
                shared.frames.lock().push(&buffer[..length]);
            }
            Ok(_) => {}
            Err(errno) => match io::Error::from(errno).kind() {
                ErrorKind::WouldBlock => *shared.idle.lock() = Some(before),
                ErrorKind::Interrupted => {}
                _ => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_in_one_frame_but_not_across_two() {
        let mut frames = Frames::default();
        frames.push(b"hello ");
        frames.push(b"world");
        let count = |needle: &[u8]| frames.iter().filter(|frame| find(frame, needle)).count();
        assert_eq!(count(b"llo"), 1);
        assert_eq!(count(b"o"), 2);
        assert_eq!(count(b"o w"), 0);
        assert_eq!(count(b""), 0);
    }
}
