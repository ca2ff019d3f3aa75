//! Clusters and their endpoints, and the shared state that outlives a snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use tokio::sync::Notify;
use tulle_identity::SpiffeId;

use super::endpoints::Endpoints;
use super::listener::ServiceName;
use crate::retry::RetryWindow;

/// A set of endpoints that serve the same thing, and how to reach them.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// xDS name, such as `outbound|80||reviews.shop.svc.cluster.local`.
    pub name: Arc<str>,
    /// Service that telemetry names, if the cluster is one.
    pub service: Option<Arc<ServiceName>>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How one is picked.
    pub lb_policy: LbPolicy,
    /// Which version of HTTP its endpoints are spoken to.
    pub http: UpstreamHttp,
    /// TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// What one sidecar may have open at a time.
    pub limits: CircuitBreaker,
    /// When an endpoint is taken out.
    pub outlier: OutlierDetection,
    /// The endpoints, sorted by address. Empty for [`Discovery::OriginalDst`].
    pub endpoints: Endpoints,
    /// Counters shared by every snapshot that has a cluster of this name.
    pub state: Arc<ClusterState>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// EDS.
    Eds,
    /// The cluster itself.
    Inline,
    /// The connection's original destination: the app behind inbound, or a destination that the mesh does not know.
    OriginalDst,
}

/// Load-balancing policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LbPolicy {
    /// Of two random endpoints the one with fewer active requests per weight.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// The one that the request's hash prefers; any where its route does not hash.
    ConsistentHash,
}

/// Which version of HTTP endpoints are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// That of the client.
    #[default]
    Downstream,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Limits of one sidecar towards one cluster (Envoy circuit breaker thresholds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Open connections, all endpoints together.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending_requests: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retry budget: retries may be this share of the requests of the last ten seconds, in percent; 0: no share, but a
    /// limit of `min_retry_concurrency` retries at a time.
    pub retry_budget_percent: u32,
    /// Retries a second that the budget allows however few the requests are.
    pub min_retry_concurrency: u32,
}

impl CircuitBreaker {
    /// No limits at all.
    pub const NONE: Self = Self {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        retry_budget_percent: 20,
        min_retry_concurrency: 10,
    };
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_pending_requests: 10_000,
            max_requests: 100_000,
            retry_budget_percent: 20,
            min_retry_concurrency: 10,
        }
    }
}

/// Passive ejection of endpoints that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Connect failures or timeouts in a row that eject.
    pub consecutive_local_failures: u32,
    /// First ejection; doubles with each one that follows, up to `max_ejection_time`.
    pub base_ejection_time: Duration,
    /// Longest ejection.
    pub max_ejection_time: Duration,
    /// Share of the endpoints that may be ejected at a time, in percent.
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_local_failures: 3,
            base_ejection_time: Duration::from_secs(1),
            max_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 50,
        }
    }
}

/// One address of a cluster.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// Whether it takes new requests.
    pub health: Health,
    /// How its sidecar is called; `None`: it has none, and gets plaintext.
    pub mtls: Option<Arc<PeerIdentity>>,
    /// Whether its app ends mTLS itself, and knows no protocol of Tulle's own.
    pub foreign: bool,
    /// Who it is, for telemetry.
    pub workload: Arc<Workload>,
    /// Counters that outlive snapshots, shared by cluster name and address.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// Whether it has a sidecar of ours: its app does not end mTLS itself.
    #[must_use]
    pub fn is_sidecar(&self) -> bool {
        self.mtls.is_some() && !self.foreign
    }
}

/// Whether an endpoint takes new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Healthy,
    /// It is going away: used only if nothing else is there; its idle connections are closed.
    Draining,
    /// No.
    Unhealthy,
}

/// The SPIFFE ids that a peer's certificate may carry: sorted, not empty. Pools never mix identities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity(pub Box<[SpiffeId]>);

/// Labels of a workload in telemetry. Empty strings are reported as `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Name of the owning workload.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// `app` label.
    pub app: Arc<str>,
    /// `version` label.
    pub version: Arc<str>,
    /// Canonical service name.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
}

/// Counters of a cluster, over all workers.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// Open upstream connections.
    pub connections: AtomicU32,
    /// Requests waiting for a connection.
    pub pending: AtomicU32,
    /// Requests for which there is no connection, because there are as many as there may be.
    pub starved: AtomicU32,
    /// Wakes one of them: a connection has closed.
    pub closed: Notify,
    /// Asks all workers to close a connection that lies idle.
    pub wanted: Notify,
    /// Requests in flight.
    pub active: AtomicU32,
    /// Retries in flight.
    pub retries: AtomicU32,
    /// Endpoints ejected now.
    pub ejected: AtomicU32,
    /// When the sidecar last looked around among its endpoints, in milliseconds since the process's start.
    pub looked_around: AtomicU64,
    /// Round-robin position.
    pub next: AtomicU32,
    /// Requests and retries of the last seconds.
    pub window: RetryWindow,
}

/// Counters of an endpoint, over all workers.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests in flight.
    pub active: AtomicU32,
    /// Connect failures and timeouts since the last success.
    pub consecutive_failures: AtomicU32,
    /// Ejections so far without a success in between: the exponent of the back-off.
    pub ejections: AtomicU32,
    /// Milliseconds since the process's start at which the ejection ends; 0: not ejected.
    pub ejected_until: AtomicU64,
    /// Until when somebody finds out whether the endpoint can be reached; others pass it by.
    pub trial_until: AtomicU64,
    /// Whether the sidecar itself looks after it.
    pub scouted: AtomicBool,
    /// Whether it gave the sidecar no answer when that tried, and has not been connected to since.
    pub silent: AtomicBool,
    /// Milliseconds since the process's start until which failed responses make it less attractive.
    pub troubled_until: AtomicU64,
}
