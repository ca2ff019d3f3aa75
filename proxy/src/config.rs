//! What the data path acts on: immutable room types that cannot be invalid, gathered in one [`Snapshot`].
//!
//! `xds` decodes the wire into these types at the edge and publishes a snapshot; the data path loads one snapshot per
//! request and follows names inside it. What must outlive a snapshot (ejections, breakers, budgets) hangs on the
//! [`cluster::Cluster`] and its endpoints as shared state of atomics, carried over from the snapshot before.

pub mod cluster;
pub mod endpoints;
pub mod listener;
pub mod route;
pub mod store;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use cluster::{Cluster, Endpoint, Workload};
pub use endpoints::Endpoints;
pub use listener::{InboundListener, InboundPort, OutboundListener, Protocol};
pub use route::{Route, RouteTable};
pub use store::{Config, Resolution};

use crate::map::Map;

/// Everything the control plane has told this sidecar, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every published snapshot; pools compare it to know when to sweep.
    pub generation: u64,
    /// Outbound destinations that were asked for, by original destination address.
    pub outbound: Map<SocketAddr, Lookup<Arc<OutboundListener>>>,
    /// What to do with connections to the pod. `None` until the control plane has answered once.
    pub inbound: Option<Arc<InboundListener>>,
    /// Route tables by RDS name.
    pub routes: Map<Arc<str>, Arc<RouteTable>>,
    /// Clusters, each with its endpoints, by name.
    pub clusters: Map<Arc<str>, Arc<Cluster>>,
    /// Workloads by IP address, for telemetry of the destination side.
    pub workloads: Map<IpAddr, Lookup<Arc<Workload>>>,
    /// Which of the answers above the data path uses: what it does not use for long is dropped.
    pub used: Map<store::Ask, Arc<store::Used>>,
}

/// The answer to a question put to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// The control plane knows it, and all that it refers to has arrived.
    Known(T),
    /// The control plane said that it does not know it.
    Unknown,
}

impl Snapshot {
    /// What is known of an outbound destination; asking keeps the answer in use.
    #[must_use]
    pub fn lookup(&self, destination: SocketAddr) -> Option<&Lookup<Arc<OutboundListener>>> {
        self.mark(store::Ask::Outbound(destination));
        self.outbound.get(&destination)
    }

    fn mark(&self, answered: store::Ask) {
        if let Some(used) = self.used.get(&answered) {
            used.mark();
        }
    }

    /// The cluster of a name, if it has arrived.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The route table that an HTTP listener uses.
    #[must_use]
    pub fn route_table<'a>(
        &'a self,
        source: &'a listener::RouteSource,
    ) -> Option<&'a Arc<RouteTable>> {
        match source {
            listener::RouteSource::Named(name) => self.routes.get(name),
            listener::RouteSource::Inline(table) => Some(table),
        }
    }
}
