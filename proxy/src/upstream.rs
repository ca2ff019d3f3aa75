//! Connections to whatever answers: peers' sidecars, plain endpoints, and the app of this pod.
//!
//! Every worker has [`Pools`] of its own, so nothing here is shared or locked across threads; only what
//! [`ClusterState`](crate::config::cluster::ClusterState) holds is: counters, and how to wake who waits for a
//! connection that other workers have. A connection is driven by one task of its own; what
//! is handed out is a [`Lease`] on it, and a lease that is dropped before its exchange is over takes an HTTP/1
//! connection with it. Connections are never shared between endpoints, peer identities, SVID generations, protocols
//! or directions.

pub(crate) mod calm;
mod connect;
mod crowd;
mod drive;
mod error;
mod form;
mod lease;
mod pool;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::cluster::{PeerIdentity, UpstreamHttp};
use crate::config::{Cluster, Endpoint};
use crate::conn::{Direction, HttpVersion};
use crate::net::Reach;
use crate::telemetry::{Limit, Limits, Who};

pub use drive::LocalExecutor;
pub use error::{ConnectError, SendError, UpstreamError, is_fault, is_refused};
pub use lease::{Head, Lease};
pub use pool::Pools;

/// Where one attempt goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The cluster that it belongs to: its limits apply.
    pub cluster: Arc<Cluster>,
    /// The endpoint that was picked; `None` where the destination is the connection's own.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Where to connect.
    pub address: SocketAddr,
    /// Whether it is a destination outside the pod or its app.
    pub reach: Reach,
    /// When the attempt has to have brought a response head.
    pub ends: Option<Instant>,
}

impl Target {
    /// An endpoint of a cluster.
    #[must_use]
    pub fn endpoint(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        Self {
            cluster,
            address: endpoint.address,
            endpoint: Some(endpoint),
            reach: Reach::Out,
            ends: None,
        }
    }

    /// A connection's original destination.
    #[must_use]
    pub fn original(cluster: Arc<Cluster>, address: SocketAddr, reach: Reach) -> Self {
        Self {
            cluster,
            address,
            endpoint: None,
            reach,
            ends: None,
        }
    }

    /// What its endpoints are spoken to for a client that speaks a version. Whoever switches protocols on a connection
    /// needs it for itself, as only the client's version has it.
    #[must_use]
    pub fn version(&self, client: HttpVersion, upgrades: bool) -> HttpVersion {
        match self.cluster.http {
            UpstreamHttp::Downstream => client,
            _ if upgrades => client,
            UpstreamHttp::Http1 => HttpVersion::Http1,
            UpstreamHttp::Http2 => HttpVersion::Http2,
        }
    }

    /// Who the peer must prove to be; `None`: plaintext.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<PeerIdentity>> {
        self.endpoint
            .as_ref()
            .and_then(|endpoint| endpoint.mtls.as_ref())
    }

    /// A limit was reached on what is done for requests to it.
    fn reached(&self, limits: &Limits, limit: Limit, what: impl Display) {
        let listener = match self.reach {
            Reach::App => Direction::Inbound,
            Reach::Out => Direction::Outbound,
        };
        let who = Who {
            address: self.address,
            id: self.identity().and_then(|peer| peer.0.first()),
        };
        limits.reached(limit, listener, who, what);
    }

    /// Whether it is another sidecar of ours.
    fn is_sidecar(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|it| it.is_sidecar())
    }

    /// Whether the app itself ends mTLS, not a sidecar of ours.
    fn is_foreign(&self) -> bool {
        self.endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.foreign)
    }
}
