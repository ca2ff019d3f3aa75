//! The config client: follows the control plane by delta ADS and publishes snapshots.
//!
//! One task, on the control runtime. It asks for what the data path asks for ([`Ask`](crate::config::store::Ask)),
//! decodes at the edge (`decode`), keeps what it was told (`state`), acknowledges or refuses it by name, and saves the
//! last good config (`cache`). No other room names a type of the wire.

mod cache;
mod client;
mod decode;
mod metrics;
mod pace;
mod state;
mod status;
mod told;
mod tracker;

#[cfg(feature = "fuzz")]
pub mod fuzz;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;

pub use client::XdsClient;
pub use decode::DecodeError;
pub use metrics::XdsMetrics;
pub use status::{TypeReport, XdsReport, XdsStatus};

/// How this sidecar presents itself, and how it discovers.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// Who this is; see [`node_id`].
    pub node_id: String,
    /// Group of sidecars that it belongs to, which foreign control planes choose a config by: `ACCOUNT.NAMESPACE`.
    pub node_cluster: String,
    /// Subscribe `*` to listeners and clusters instead of asking for each: for foreign control planes. These may be silent
    /// about what does not exist and about inbound, and know no workloads.
    pub wildcard: bool,
    /// Destinations, and as many addresses of clients, that are asked about at a time.
    pub max_subscriptions: usize,
    /// Memory-backed directory for the last good config; `None`: it is not kept.
    pub state_dir: Option<PathBuf>,
}

/// The node id of a sidecar, which the control plane compares with its SVID.
#[must_use]
pub fn node_id(ip: IpAddr, pod: &str, namespace: &str, domain: &str) -> String {
    format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.{domain}")
}
