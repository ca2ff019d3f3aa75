//! Facts about one accepted connection, gathered once before its first request and never changed after.

use std::net::SocketAddr;
use std::sync::Arc;

use tulle_identity::SpiffeId;

/// A connection from the app (outbound) or to it (inbound), as far as it is known before its bytes are interpreted.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Which way it goes.
    pub direction: Direction,
    /// Who connected.
    pub peer: SocketAddr,
    /// Where the peer meant to connect to, before capture.
    pub original_dst: SocketAddr,
    /// What protects it, and who the peer proved to be.
    pub security: Security,
    /// Server name of the peer's ClientHello, if there was one.
    pub sni: Option<Arc<str>>,
}

impl Downstream {
    /// The SPIFFE id that the peer has proven, if it has.
    #[must_use]
    pub fn peer_id(&self) -> Option<&SpiffeId> {
        match &self.security {
            Security::Plaintext => None,
            Security::Mtls { peer, .. } => Some(peer),
        }
    }

    /// Whether the peer is a sidecar of the mesh with a verified identity: only its marks are believed.
    #[must_use]
    pub fn is_mesh_peer(&self) -> bool {
        matches!(self.security, Security::Mtls { sidecar: true, .. })
    }
}

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the app of this pod.
    Inbound,
    /// From the app of this pod.
    Outbound,
}

impl Direction {
    /// The word for it in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What protects a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nothing of ours.
    Plaintext,
    /// TLS with a verified SVID.
    Mtls {
        /// Who the peer is.
        peer: SpiffeId,
        /// Whether it speaks as a sidecar (a `tulle-*` ALPN) and not as a client of the standard protocols.
        sidecar: bool,
    },
}

/// The version of HTTP that a connection carries, known from ALPN or from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}
