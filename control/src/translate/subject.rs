//! What a resource is about.
//!
//! A [`Subject`] is read from a resource's name once, when a client asks for it; from then on a change finds everybody
//! whom it may concern by looking up a few subjects, whatever else is subscribed to.

use std::net::IpAddr;

use tulle_xds_proto::ResourceType;

use super::name::ResourceName;
use super::{ClientKind, ProxyView, grpc};
use crate::store::{MeshSettings, ObjectKey};

/// The one thing in the world that decides whether a resource of a given type may differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An address: listeners of its ports, and its workload.
    Address(IpAddr),
    /// A pod: clusters and endpoints of its ports, and its `inbound`.
    Pod(ObjectKey),
    /// A Service: clusters, endpoints and route tables of its ports.
    Service(ObjectKey),
    /// No object: what has such a name never changes, or never exists.
    Nothing,
}

impl Subject {
    /// The subject of a resource, for a client that asks for it.
    #[must_use]
    pub fn of(mesh: &MeshSettings, resource: ResourceType, name: &str, view: &ProxyView) -> Self {
        if resource == ResourceType::Address {
            let ip = name.strip_prefix('/').and_then(|ip| ip.parse().ok());
            return ip.map_or(Self::Nothing, Self::Address);
        }
        use ResourceType::{Cluster, Endpoints, Listener, Route};
        if (resource, view.kind) == (Listener, ClientKind::Grpc) {
            return grpc::subject(mesh, view, name);
        }
        match (resource, ResourceName::parse(mesh, name)) {
            (Listener, Some(ResourceName::Outbound(address))) => Self::Address(address.ip()),
            (Listener, Some(ResourceName::Inbound | ResourceName::Capture)) => {
                view.pod.clone().map_or(Self::Nothing, Self::Pod)
            }
            (Route | Cluster | Endpoints, Some(ResourceName::Service { key, .. }))
            | (Endpoints, Some(ResourceName::Meshed { key, .. })) => Self::Service(key),
            (Cluster | Endpoints, Some(ResourceName::Pod { key, .. })) => Self::Pod(key),
            _ => Self::Nothing,
        }
    }
}

/// How far a change reaches among the resources of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// None of them.
    Nothing,
    /// Those that are about one of these.
    Subjects(Vec<Subject>),
    /// Perhaps any of them.
    Everything,
}
