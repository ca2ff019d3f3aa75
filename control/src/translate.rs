//! What a client is told: xDS resources as pure functions of a [`World`] and a [`ProxyView`].
//!
//! Nothing here remembers anything or looks at a clock, and what is encoded is encoded the same way every time (sorted
//! lists, no map of more than one key), so a resource's bytes are its version. The view is the cache key: whatever a
//! resource depends on besides the world is in the view that [`view_for`] gives for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tulle_xds_proto::ResourceType;

use crate::store::{ObjectKey, ObjectRef, Pod, World};

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
}

/// The part of a client's view that a resource depends on: clients with the same part share the resource.
#[must_use]
pub fn view_for(world: &World, view: &ProxyView, resource: ResourceType, name: &str) -> ProxyView {
    let _ = (world, resource, name);
    view.clone()
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
    let _ = (world, view, resource, name);
    None
}

/// Names of all resources of a type that a client may see, sorted: what `*` means.
#[must_use]
pub fn names(world: &World, view: &ProxyView, resource: ResourceType) -> Vec<String> {
    let _ = (world, view, resource);
    Vec::new()
}

/// Which resources may differ between two worlds.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    everything: bool,
}

impl Affected {
    /// What may differ, given the objects that do.
    #[must_use]
    pub fn between(before: &World, after: &World, changed: &BTreeSet<ObjectRef>) -> Self {
        let _ = (before, after, changed);
        Self { everything: true }
    }

    /// Whether any resource of a type may differ; if not, no name of it needs asking.
    #[must_use]
    pub fn touches_type(&self, resource: ResourceType) -> bool {
        let _ = resource;
        self.everything
    }

    /// Whether a resource may differ for a client.
    #[must_use]
    pub fn touches(&self, resource: ResourceType, name: &str, view: &ProxyView) -> bool {
        let _ = (resource, name, view);
        self.everything
    }
}
