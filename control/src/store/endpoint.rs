//! EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use super::ObjectKey;

/// Some endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service in the same namespace.
    pub service: Arc<str>,
    /// TCP ports: the name of the Service's port, and the number at the endpoint.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// The key of its Service.
    #[must_use]
    pub fn service_key(&self) -> ObjectKey {
        ObjectKey {
            namespace: self.key.namespace.clone(),
            name: self.service.clone(),
        }
    }
}

/// One address of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Is able to answer, even while it terminates.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// The pod behind it.
    pub pod: Option<ObjectKey>,
    /// Its unique id, if it is one of the slice's namespace.
    pub pod_uid: Option<Arc<str>>,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Zones that should use it.
    pub for_zones: Vec<Arc<str>>,
    /// Nodes that should use it.
    pub for_nodes: Vec<Arc<str>>,
}
