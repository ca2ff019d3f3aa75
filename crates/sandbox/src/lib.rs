//! Runs pods as network namespaces on one machine, straight from Kubernetes manifests.
//!
//! Rooms in the order in which a pod meets them: the node that it lives in (`node`), manifests and the workloads they
//! describe, the cluster's task that decides, the network, the pod itself and the stage that starts its processes; beside
//! them the names and addresses of services (`endpoints`, `rules`, `dns`), tokens, and the files that others watch (`state`).
//!
//! Invariant: nothing outlives the node, and nothing is written outside of it.

mod cluster;
mod dns;
mod endpoints;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod host;
mod key;
mod kubelet;
mod manifests;
mod network;
mod node;
mod pod;
mod remote;
mod rules;
mod sandbox;
mod stage;
mod state;
mod tokens;
mod view;
mod workload;

pub use error::Error;
pub use host::HostProcess;
pub use key::ObjectKey;
pub use network::{BRIDGE, GATEWAY_V4, GATEWAY_V6, PacketCapture, PodIps};
pub use node::{Ids, Node, dispatch, enter_node};
pub use remote::{Client, PodLine, Request, others};
pub use sandbox::{Options, Output, Sandbox};
pub use tokens::ISSUER;
pub use view::{ContainerView, Event, PodView, Problem, What};

/// Name of the only node.
pub const NODE_NAME: &str = "tulle-sandbox";
