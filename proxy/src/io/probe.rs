//! Looks at a pooled connection from outside, without disturbing the task that drives it.
//!
//! The second descriptor belongs to the connection; a [`Probe`] only borrows it while the connection lives, so it
//! never delays the close that a peer waits for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// The second descriptor of a socket, closed together with the first.
#[derive(Debug)]
pub(super) struct Duplicate(OwnedFd);

impl Duplicate {
    pub(super) fn of(tcp: &TcpStream) -> io::Result<Self> {
        tcp.as_fd().try_clone_to_owned().map(Self)
    }
}

/// Tells whether an idle connection is still good.
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
        let socket: SockRef<'_> = (&duplicate.0).into();
        let peeked = Socket::recv_with_flags(
            &socket,
            &mut byte,
            nix::libc::MSG_PEEK | nix::libc::MSG_DONTWAIT,
        );
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
