//! From the wire to room types that cannot be invalid.
//!
//! One function a resource type. What it cannot honour it refuses by field, value and remedy, so that a config never
//! means less than its author thinks; what does not change the meaning for this proxy is ignored. A bad resource
//! rejects only itself.

mod address;
mod balancing;
mod cluster;
mod endpoint;
mod error;
mod header;
mod listener;
mod matching;
mod protocol;
mod retry;
mod route;
mod virtual_host;
mod workload;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use tulle_xds_proto::google::protobuf::Any;

pub(super) use cluster::{ClusterSpec, EndpointSource};
pub(super) use endpoint::{EndpointSet, EndpointSpec};
pub use error::DecodeError;
pub(super) use listener::Listener;

use crate::config::{RouteTable, Workload};

/// Prefix of the names of outbound listeners.
const OUTBOUND: &str = "outbound|";
/// Name of the listener for everything that arrives at the pod.
pub(super) const INBOUND: &str = "inbound";

/// The name of the listener that stands for a destination.
pub(super) fn listener_name(destination: SocketAddr) -> String {
    format!("{OUTBOUND}{}|{}", destination.ip(), destination.port())
}

/// The destination that the name of an outbound listener stands for.
pub(super) fn listener_address(name: &str) -> Option<SocketAddr> {
    let (ip, port) = name.strip_prefix(OUTBOUND)?.split_once('|')?;
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

/// LDS.
pub(super) fn listener(name: &str, any: &Any) -> Result<Listener, DecodeError> {
    listener::decode(name, any)
}

/// The destination that a bad listener was meant for.
pub(super) fn destination(any: &Any) -> Option<SocketAddr> {
    listener::destination(any)
}

/// RDS.
pub(super) fn route_table(name: &str, any: &Any) -> Result<RouteTable, DecodeError> {
    route::decode(name, any)
}

/// CDS.
pub(super) fn cluster(name: &str, any: &Any) -> Result<ClusterSpec, DecodeError> {
    cluster::decode(name, any)
}

/// EDS.
pub(super) fn endpoints(name: &str, any: &Any) -> Result<EndpointSet, DecodeError> {
    endpoint::decode(name, any)
}

/// WDS.
pub(super) fn workload(any: &Any) -> Result<Workload, DecodeError> {
    workload::decode(any)
}
