//! Opaque connections: a cluster by weight, an endpoint of it, and bytes both ways until both ends are done.
//!
//! An attempt is repeated only until its TLS handshake has ended: from then on the server may have acted on the
//! connection. No byte of the client is read before that, so nothing has to be replayed.

mod relay;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::time::timeout;
use tulle_runtime::names::alpn;

pub use relay::{Moved, RelayError, relay};

use crate::balance::{self, ActiveGuard};
use crate::config::listener::TcpRoute;
use crate::config::{Cluster, Endpoint};
use crate::conn::Downstream;
use crate::io::{IoStream, Transport};
use crate::net::{Reach, dial, reset};
use crate::scout;
use crate::telemetry::{ConnectionRecord, Limit, ResponseFlag};
use crate::tls::TlsError;
use crate::worker::Worker;

/// How often a connection is attempted.
const ATTEMPTS: usize = 3;

/// Why an opaque connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The route's cluster is not there.
    #[error("cluster {0} is not known")]
    NoCluster(Arc<str>),
    /// The cluster has no endpoint that may be used.
    #[error("cluster {0} has no endpoint that may be used")]
    NoEndpoint(Arc<str>),
    /// The last attempt failed to connect.
    #[error("could not connect to {address} ({source})")]
    Connect {
        /// The endpoint.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The last attempt failed in the handshake.
    #[error("could not secure the connection to {address} ({source})")]
    Tls {
        /// The endpoint.
        address: SocketAddr,
        /// What went wrong.
        source: TlsError,
    },
}

impl TcpError {
    /// How telemetry calls it.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoCluster(_) => ResponseFlag::NoCluster,
            Self::NoEndpoint(_) => ResponseFlag::NoHealthyUpstream,
            Self::Connect { .. } | Self::Tls { .. } => ResponseFlag::UpstreamConnectionFailure,
        }
    }

    /// Whether nobody answered in time.
    fn is_late(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }

    /// Why, in one word, for the access log.
    #[must_use]
    pub fn details(&self) -> &'static str {
        match self {
            Self::NoCluster(_) => "cluster_not_found",
            Self::NoEndpoint(_) => "no_healthy_upstream",
            Self::Connect { .. } => "connect_failure",
            Self::Tls { .. } => "tls_failure",
        }
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// Its bytes.
    pub io: IoStream,
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Counts the connection as active at its endpoint.
    pub active: ActiveGuard,
}

/// Connects a client to an endpoint of a route's clusters.
///
/// # Errors
///
/// When there is nothing to connect to, or the last attempt failed.
pub async fn connect(
    worker: &Worker,
    route: &TcpRoute,
    client: IpAddr,
) -> Result<Upstream, TcpError> {
    let name = choose(route);
    let key = route.by_source.then(|| balance::of_client(client));
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let cluster = worker.config.load().cluster(name).cloned();
        let cluster = cluster.ok_or_else(|| TcpError::NoCluster(name.clone()))?;
        let endpoint = balance::pick(
            &cluster,
            key,
            &tried,
            balance::now_ms(),
            &mut fastrand::Rng::new(),
        )
        .cloned();
        let endpoint = endpoint.ok_or_else(|| TcpError::NoEndpoint(name.clone()))?;
        tried.push(endpoint.address);
        let active = ActiveGuard::new(&cluster, &endpoint);
        match attempt(worker, &cluster, &endpoint).await {
            Ok(io) => {
                balance::report_connect_success(&endpoint);
                return Ok(Upstream {
                    io,
                    cluster,
                    endpoint,
                    active,
                });
            }
            Err(error) => {
                scout::connect_failed(worker, &cluster, &endpoint, error.is_late());
                tracing::debug!(cluster = %name, endpoint = %endpoint.address, %error, "attempt failed");
                if tried.len() >= ATTEMPTS {
                    return Err(error);
                }
            }
        }
    }
}

async fn attempt(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
) -> Result<IoStream, TcpError> {
    let address = endpoint.address;
    let connecting = async {
        let tcp = dial(&worker.settings, address, Reach::Out)
            .await
            .map_err(|source| TcpError::Connect { address, source })?;
        let Some(peer) = &endpoint.mtls else {
            return Ok(IoStream::from(tcp));
        };
        let secured = worker
            .tls
            .connect(Transport::new(tcp), peer, alpn::TCP)
            .await;
        secured.map_err(|source| TcpError::Tls { address, source })
    };
    let late = |_| TcpError::Connect {
        address,
        source: io::ErrorKind::TimedOut.into(),
    };
    let mut io = timeout(cluster.connect_timeout, connecting)
        .await
        .map_err(late)??;
    let watched = Some((cluster, endpoint));
    worker.silence.watch(worker, &mut io, watched);
    Ok(io)
}

/// Moves the bytes of a connection that has got its server, and tells telemetry when it is over. An end that did not
/// say goodbye is told on: the other one gets a reset.
pub async fn carry(
    worker: &Worker,
    mut record: ConnectionRecord,
    client: IoStream,
    server: IoStream,
    stop: impl Future<Output = &'static str>,
) -> (Moved, Result<(), RelayError>) {
    let session = worker.telemetry.connection_opened(&record);
    let tally = |received, sent| {
        session.received(received);
        session.sent(sent);
    };
    let idle = worker.settings.patience.tcp_idle;
    let mut ends = Ends {
        client,
        server,
        said_all: false,
    };
    let (moved, ended) = relay(&mut ends.client, &mut ends.server, tally, idle, stop).await;
    ends.said_all = ended.is_ok();
    drop(ends);
    if let Err(error) = &ended {
        record.flags.insert(error.flag());
        record.details = error.details();
        if matches!(error, RelayError::Idle) {
            tell_idle(worker, &record.downstream);
        }
    }
    record.bytes_received = moved.sent;
    record.bytes_sent = moved.received;
    record.duration = record.started.elapsed();
    worker.telemetry.connection(&record);
    (moved, ended)
}

/// The ends of an opaque connection. Whatever drops them before both have said all they had to say resets them.
struct Ends {
    client: IoStream,
    server: IoStream,
    said_all: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.said_all {
            reset(self.client.tcp());
            reset(self.server.tcp());
        }
    }
}

/// Tells whose connection was closed because nothing moved on it.
pub fn tell_idle(worker: &Worker, downstream: &Downstream) {
    let what = "an opaque connection is closed on which nothing moves";
    let limits = &worker.limits;
    limits.reached(Limit::Idle, downstream.direction, downstream.into(), what);
}

/// Tells telemetry that a connection did not come about.
pub fn failed(
    worker: &Worker,
    mut record: ConnectionRecord,
    flag: ResponseFlag,
    details: &'static str,
) {
    record.flags.insert(flag);
    record.details = details;
    record.duration = record.started.elapsed();
    worker.telemetry.connection_failed(&record);
}

/// One of a route's clusters, by weight.
fn choose(route: &TcpRoute) -> &Arc<str> {
    let total: u64 = route
        .clusters
        .iter()
        .map(|(_, weight)| u64::from(*weight))
        .sum();
    let mut left = fastrand::u64(..total.max(1));
    for (name, weight) in &route.clusters {
        if left < u64::from(*weight) {
            return name;
        }
        left -= u64::from(*weight);
    }
    &route.clusters[0].0
}
