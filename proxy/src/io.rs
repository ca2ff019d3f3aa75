//! Byte streams: what every later stage reads from and writes to, whatever lies underneath.
//!
//! [`IoStream`] is an enum, so nothing on the data path is boxed behind a trait. All its variants stand on
//! [`Transport`], which replays the bytes that detection has read, reads ahead under TLS, and advertises vectored
//! writes. Everything here is `Send`, because hyper's upgrades ask for it; nothing here is shared between workers.

mod answers;
mod guard;
mod intake;
mod probe;
mod transport;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

pub use answers::{Answers, Asked, TooManyInterim};
pub(crate) use guard::is_port;
#[cfg(feature = "fuzz")]
pub(crate) use guard::message_ends;
pub use guard::{Gate, Guard, Heads, REFUSED, Refusal, Refused};
pub use intake::Intake;
pub use probe::Probe;
pub use transport::Transport;
pub use tulle_http2_guard::{Calm, Ended, FrameBounds, Frames, Pieces, Whose};

/// How much is moved at a time of what only passes through. With what TLS adds it leaves as one segment of the largest
/// size that the kernel's offload makes of any usual MTU, and not as that and a tiny one.
pub const PIECE: usize = 61 * 1024;

/// A connection, with or without TLS.
#[derive(Debug)]
pub enum IoStream {
    /// Bytes as they are on the wire.
    Plain(Transport),
    /// TLS that a peer opened towards us.
    Server(Box<server::TlsStream<Transport>>),
    /// TLS that we opened.
    Client(Box<client::TlsStream<Transport>>),
}

impl IoStream {
    /// The socket underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.transport().tcp()
    }

    /// A handle that can tell later, from outside, whether the peer is still there.
    ///
    /// # Errors
    ///
    /// When the process has no file descriptor left.
    pub fn probe(&mut self) -> io::Result<Probe> {
        self.transport_mut().probe()
    }

    /// Reads no more from now on than may be taken in.
    pub fn takes_in(&mut self, intake: Intake) {
        self.transport_mut().takes_in(intake);
    }

    fn transport(&self) -> &Transport {
        match self {
            Self::Plain(io) => io,
            Self::Server(io) => io.get_ref().0,
            Self::Client(io) => io.get_ref().0,
        }
    }

    fn transport_mut(&mut self) -> &mut Transport {
        match self {
            Self::Plain(io) => io,
            Self::Server(io) => io.get_mut().0,
            Self::Client(io) => io.get_mut().0,
        }
    }
}

/// Can be made to end otherwise than in peace.
pub trait Abrupt {
    /// Has its end, when it is dropped, tell its peer that something went wrong.
    fn abrupt(&self);
}

impl Abrupt for IoStream {
    fn abrupt(&self) {
        crate::net::reset(self.tcp());
    }
}

#[cfg(test)]
impl Abrupt for tokio::io::DuplexStream {
    fn abrupt(&self) {}
}

impl From<TcpStream> for IoStream {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(Transport::new(tcp))
    }
}

/// Calls one poll function of whatever stream is inside.
macro_rules! delegate {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Self::Plain(io) => Pin::new(io).$method($($argument),*),
            Self::Server(io) => Pin::new(io.as_mut()).$method($($argument),*),
            Self::Client(io) => Pin::new(io.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for IoStream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for IoStream {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, buf))
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write_vectored(cx, bufs))
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}
