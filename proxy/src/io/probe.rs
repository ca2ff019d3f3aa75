//! Looks at a connection from outside, without disturbing the task that drives it, and ends it if need be.
//!
//! The second descriptor belongs to the connection; a [`Probe`] only borrows it while the connection lives, so it
//! never delays the close that a peer waits for.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

use crate::net::unheard;

/// The second descriptor of a socket, closed together with the first.
#[derive(Debug)]
pub(super) struct Duplicate {
    descriptor: OwnedFd,
    broken: AtomicBool,
}

impl Duplicate {
    pub(super) fn of(tcp: &TcpStream) -> io::Result<Self> {
        Ok(Self {
            descriptor: tcp.as_fd().try_clone_to_owned()?,
            broken: AtomicBool::new(false),
        })
    }

    /// What the end of its stream means: nothing that the peer has said, if it was broken off here.
    pub(super) fn ended(&self) -> io::Result<()> {
        match self.broken.load(Relaxed) {
            false => Ok(()),
            true => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer acknowledges nothing",
            )),
        }
    }
}

/// A handle to look at a connection by.
#[derive(Clone, Debug)]
pub struct Probe(Weak<Duplicate>);

impl Probe {
    pub(super) fn of(duplicate: &Arc<Duplicate>) -> Self {
        Self(Arc::downgrade(duplicate))
    }

    /// True if the peer has closed or broken the connection, or sent something that nobody asked for: an idle
    /// connection with bytes in it is not at a message boundary.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let Some(duplicate) = self.0.upgrade() else {
            return true;
        };
        let mut byte = [MaybeUninit::uninit(); 1];
        let socket = SockRef::from(&duplicate.descriptor);
        let peeked = Socket::recv_with_flags(
            &socket,
            &mut byte,
            nix::libc::MSG_PEEK | nix::libc::MSG_DONTWAIT,
        );
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// How long nothing has come from the peer's kernel, although it has to acknowledge what was sent to it and repeated since; zero
    /// if it has not to. `None`: the connection is gone.
    #[must_use]
    pub fn unheard(&self) -> Option<Duration> {
        let duplicate = self.0.upgrade()?;
        Some(unheard(&duplicate.descriptor).unwrap_or_default())
    }

    /// Ends a connection whose peer is gone: reading and writing fail from now on.
    pub fn break_off(&self) {
        let Some(duplicate) = self.0.upgrade() else {
            return;
        };
        duplicate.broken.store(true, Relaxed);
        let socket = SockRef::from(&duplicate.descriptor);
        // They fail only on a connection that has ended already. The kernel need not repeat itself once it is closed.
        let _ = socket.set_linger(Some(Duration::ZERO));
        let _ = socket.shutdown(Shutdown::Both);
    }
}
