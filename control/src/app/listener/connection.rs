//! One connection of a proxy: whose it is, how long it lives, and what on it is too much.
//!
//! It ends with the certificate that opened it, so that nobody lives on an identity that he could not show again. HTTP/2's
//! library answers control frames for as long as they come, and waits for ever for who reads nothing: what lies between it
//! and TLS ends both. A connection that ended so is counted and told once, when it is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;
use tulle_http2_guard::{Calm, Ended, FrameBounds, Frames, Whose};
use tulle_runtime::gate::Gates;

use super::{Bounds, Place};
use crate::discovery::Peer;
use crate::limit::{Reached, network};

/// Bytes that the fields of a head may be, which is what hyper's servers take.
const HEADER_LIST: u32 = 16 << 10;

/// The room that a connection takes: among all, and beside that.
pub(super) type Places = (OwnedSemaphorePermit, Place);

/// A connection whose other end is known.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Frames<TlsStream<TcpStream>>,
    calm: Calm,
    peer: Peer,
    expires: Pin<Box<Sleep>>,
    /// When another one needs the room that it has without a certificate.
    given_up: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ends: Ends,
    /// Given back when it ends.
    _places: Places,
}

impl Connection {
    pub(super) fn new(
        tls: TlsStream<TcpStream>,
        peer: Peer,
        life: Duration,
        bounds: Bounds,
        places: Places,
        ends: Ends,
    ) -> Self {
        let bounds = FrameBounds {
            control_frames: bounds.control_frames,
            header_list: HEADER_LIST,
            patience: bounds.unread,
        };
        let given_up = match &places.1 {
            Place::Anonymous(stranger) => Some(stranger.given_up.clone().cancelled_owned()),
            Place::Known(..) | Place::Refused(_) => None,
        };
        let (io, calm) = Frames::new(tls, Whose::Client, bounds);
        Self {
            io,
            calm,
            peer,
            expires: Box::pin(tokio::time::sleep(life)),
            given_up: given_up.map(Box::pin),
            ends,
            _places: places,
        }
    }

    /// Whether its client has shown who it is, and may stay.
    pub(super) fn is_known(&self) -> bool {
        self.peer.id.is_some() && self.peer.over.is_none()
    }

    /// An error once its time is up, or another one has its room.
    fn expired(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(given_up) = &mut self.given_up
            && given_up.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::other("given up for a newer one"));
        }
        if self.expires.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        let reason = match (self.peer.over, &self.peer.id) {
            (Some(why), _) => why,
            (None, Some(_)) => "the client certificate has expired",
            (None, None) => "a connection without a client certificate has had its time",
        };
        Err(io::Error::other(reason))
    }

    /// What came of writing. Whoever reads nothing may wait no longer than others: then nothing is read of him, either.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            self.expired(cx)?;
        }
        polled
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let heads = self.calm.take_refused();
        if heads > 0 {
            self.ends.refused(heads, &self.peer);
        }
        if let Some(ended) = self.calm.ended() {
            self.ends.tell(ended, &self.peer);
        }
    }
}

/// Counts and tells connections that had to end. Clones do so together.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    reached: Reached,
    told: Arc<Gates<&'static str>>,
}

impl Ends {
    pub(super) fn new(reached: Reached) -> Self {
        Self {
            reached,
            told: Arc::default(),
        }
    }

    /// HTTP/2's library has refused heads by itself.
    fn refused(&self, heads: u32, peer: &Peer) {
        self.reached.count_all("head", heads);
        if let Some(left_out) = self.told.pass(&"head", network(peer.address.ip())) {
            let id = peer.id.as_ref().map(ToString::to_string);
            tracing::warn!(client.addr = %peer.address, client.id = id, heads, left_out,
                "requests of a client had larger heads than they may, and were answered 431");
        }
    }

    fn tell(&self, ended: Ended, peer: &Peer) {
        let (limit, what) = match ended {
            Ended::ControlFrames => (
                "h2_control_frames",
                "more control frames than its messages need",
            ),
            Ended::Stalled => ("unread", "it took nothing of what waits for it"),
            Ended::Said(reason) => ("h2_flood", reason),
            // Nobody here asks for it, and only servers answer.
            Ended::Asked | Ended::Interim => return,
        };
        self.reached.count(limit);
        if let Some(left_out) = self.told.pass(&limit, network(peer.address.ip())) {
            let id = peer.id.as_ref().map(ToString::to_string);
            tracing::warn!(client.addr = %peer.address, client.id = id, limit, what, left_out,
                "the connection of a client was ended");
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.expired(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.wrote(cx, polled)
    }
}
