//! What a client is told: xDS resources as pure functions of a [`World`] and a [`ProxyView`].
//!
//! Nothing here remembers anything or looks at a clock, and what is encoded is encoded the same way every time (sorted
//! lists, no map of more than one key), so a resource's bytes are its version. The view is the cache key: whatever a
//! resource depends on besides the world is in the view that [`view_for`] gives for it. Shapes are described where they
//! are made: [`listener`], [`inbound`], [`route`], [`cluster`], [`endpoints`], [`workload`]; Envoy's in [`envoy`],
//! gRPC's in [`grpc`]. What there is at all says [`listing`].

mod affected;
pub(crate) mod attachment;
mod cluster;
mod endpoints;
mod envoy;
mod filter;
mod grpc;
mod inbound;
mod listener;
mod listing;
mod mtls;
mod name;
mod protocol;
mod route;
mod subject;
mod workload;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tulle_xds_proto::envoy::config::listener::v3::Listener;
use tulle_xds_proto::{ResourceType, prost};

pub use affected::Affected;
pub use listing::{is_listed, names, names_about};
pub(crate) use mtls::subjects;
pub use mtls::{Overruled, overruled};
pub use name::ResourceName;
pub(crate) use protocol::is_targeted;
pub use subject::{Reach, Subject};

#[cfg(feature = "fuzz")]
pub(crate) use grpc::target_of as grpc_target;
use name::host as host_of;

use crate::store::route::RouteKind;
use crate::store::{ObjectKey, Pod, World};

/// The one secret that the control plane serves: the trust bundle. Private keys never leave their workload.
pub(crate) const ROOT_CA: &str = "ROOTCA";

/// The kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// Tulle's own sidecar.
    Tulle,
    /// Envoy.
    Envoy,
    /// gRPC without a proxy.
    Grpc,
}

/// What is known of a client, as far as a resource depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyView {
    /// Its kind.
    pub kind: ClientKind,
    /// Its namespace, where routes of consumers count.
    pub namespace: Option<Arc<str>>,
    /// Its pod, for `inbound`.
    pub pod: Option<ObjectKey>,
    /// Its node, where only endpoints of the node count.
    pub node: Option<Arc<str>>,
    /// Its zone, where endpoints of the zone are preferred.
    pub zone: Option<Arc<str>>,
}

impl ProxyView {
    /// All that is known of the client that runs in a pod.
    #[must_use]
    pub fn of_pod(world: &World, kind: ClientKind, pod: &Pod) -> Self {
        Self {
            kind,
            namespace: Some(pod.key.namespace.clone()),
            pod: Some(pod.key.clone()),
            node: pod.node.clone(),
            zone: pod
                .node
                .as_ref()
                .and_then(|node| world.node(node))
                .and_then(|node| node.zone.clone()),
        }
    }

    /// A view of which nothing is known but the kind.
    #[must_use]
    pub fn of_kind(kind: ClientKind) -> Self {
        Self {
            kind,
            namespace: None,
            pod: None,
            node: None,
            zone: None,
        }
    }
}

/// The part of a client's view that a resource depends on: clients with the same part share the resource.
#[must_use]
pub fn view_for(world: &World, view: &ProxyView, resource: ResourceType, name: &str) -> ProxyView {
    let mut part = ProxyView::of_kind(view.kind);
    if (resource, view.kind) == (ResourceType::Listener, ClientKind::Grpc) {
        grpc::view_part(world.mesh(), view, name, &mut part);
        return part;
    }
    match (resource, ResourceName::parse(world.mesh(), name)) {
        (ResourceType::Listener, Some(ResourceName::Inbound | ResourceName::Capture)) => {
            part.pod = view.pod.clone();
        }
        (ResourceType::Route, Some(ResourceName::Service { key, .. })) => {
            part.namespace = view.namespace.clone().filter(|namespace| {
                route::has_consumers(world, &attachment::REQUESTS, &key, namespace)
            });
        }
        (ResourceType::Listener, Some(ResourceName::Outbound(address))) => {
            let service = world.service_by_vip(address.ip());
            let routed = service.filter(|service| route::has_opaque(world, &service.key));
            part.namespace = view.namespace.clone().filter(|namespace| {
                routed.is_some_and(|service| {
                    route::has_consumers(world, &RouteKind::ALL, &service.key, namespace)
                })
            });
        }
        (
            ResourceType::Endpoints,
            Some(ResourceName::Service { key, .. } | ResourceName::Meshed { key, .. }),
        ) => {
            let (node, zone) = endpoints::depends_on_place(world, &key);
            part.node = view.node.clone().filter(|_| node);
            part.zone = view.zone.clone().filter(|_| zone);
        }
        _ => {}
    }
    part
}

/// The encoded message of a resource (the `value` of an `Any` under `resource.type_url()`), or `None` if there is no such
/// resource. Takes a full view or one that [`view_for`] gave, with the same result.
#[must_use]
pub fn resource(
    world: &World,
    view: &ProxyView,
    resource: ResourceType,
    name: &str,
) -> Option<Bytes> {
    if resource == ResourceType::Address {
        return workload::address(world, name).map(|address| encode(&address));
    }
    if view.kind == ClientKind::Grpc
        && let Some(answer) = of_grpc(world, view, resource, name)
    {
        return answer;
    }
    let parsed = ResourceName::parse(world.mesh(), name)?;
    match resource {
        ResourceType::Listener => listener_of(world, view, name, &parsed).map(|it| encode(&it)),
        ResourceType::Route => match parsed {
            ResourceName::Service { key, port } => {
                route::table(world, view, name, &key, port).map(|it| encode(&it))
            }
            _ => None,
        },
        ResourceType::Cluster => {
            cluster::cluster(world, view.kind, name, &parsed).map(|it| encode(&it))
        }
        ResourceType::Endpoints => match parsed {
            ResourceName::Service { key, port } => {
                endpoints::of_service(world, view, name, (&key, port), None).map(|it| encode(&it))
            }
            ResourceName::Pod { key, port, ipv6 } => {
                endpoints::of_pod(world, view, name, (&key, port, ipv6)).map(|it| encode(&it))
            }
            _ => None,
        },
        ResourceType::Secret | ResourceType::Address => None,
    }
}

/// What gRPC is told in its own way; the outer `None` is what it is told as everybody is.
fn of_grpc(
    world: &World,
    view: &ProxyView,
    resource: ResourceType,
    name: &str,
) -> Option<Option<Bytes>> {
    Some(match resource {
        ResourceType::Listener => grpc::listener(world, view, name).map(|it| encode(&it)),
        ResourceType::Cluster => grpc::cluster(world, name).map(|it| encode(&it)),
        ResourceType::Endpoints => grpc::assignment(world, view, name).map(|it| encode(&it)),
        ResourceType::Route | ResourceType::Secret | ResourceType::Address => return None,
    })
}

fn listener_of(
    world: &World,
    view: &ProxyView,
    name: &str,
    parsed: &ResourceName,
) -> Option<Listener> {
    match (parsed, view.kind) {
        (ResourceName::Outbound(address), ClientKind::Envoy) => {
            envoy::outbound(world, view, name, *address)
        }
        (ResourceName::Outbound(address), _) => listener::outbound(world, view, name, *address),
        (ResourceName::Inbound, ClientKind::Envoy) => envoy::inbound(world, view.pod.as_ref()?),
        (ResourceName::Inbound, _) => inbound::listener(world, view.pod.as_ref()?),
        (ResourceName::Capture, ClientKind::Envoy) => envoy::capture(world, view.pod.as_ref()?),
        _ => None,
    }
}

fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

#[cfg(test)]
mod tests;
