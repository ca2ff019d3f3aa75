//! Pods and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Labels, ObjectKey};

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its unique id, which tells it from an earlier pod of the same name; `None` where its object has none.
    pub uid: Option<Arc<str>>,
    /// Its addresses, sorted; none before it has any, and none once it has finished.
    pub ips: Vec<IpAddr>,
    /// The service account that it runs as.
    pub service_account: Arc<str>,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// Labels.
    pub labels: Labels,
    /// Whether its addresses are the node's.
    pub host_network: bool,
    /// Whether it runs a sidecar, or does by itself what a sidecar would.
    pub proxied: bool,
    /// Whether it runs a sidecar, by its spec, that its label does not tell of any more.
    pub relabelled: bool,
    /// Whether it does by itself what a sidecar would: its TLS knows no protocol of Tulle's own.
    pub foreign: bool,
    /// Ports that its sidecar does not capture, so that peers reach the app itself; sorted.
    pub uncaptured_ports: Vec<u16>,
    /// Named container ports, sorted by name.
    pub named_ports: Vec<(Arc<str>, u16)>,
    /// What owns it.
    pub workload: Workload,
    /// Whether its sidecar alone still runs, and nothing of it will start again.
    pub finished: bool,
}

/// The workload that a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Kind: `Deployment`, `StatefulSet`, `Pod` ...
    pub kind: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Pod {
    /// The number of a named container port.
    #[must_use]
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.named_ports
            .iter()
            .find(|(known, _)| &**known == name)
            .map(|(_, port)| *port)
    }
}

/// A node: where its pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; the namespace is empty.
    pub key: ObjectKey,
    /// `topology.kubernetes.io/region`.
    pub region: Option<Arc<str>>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}
