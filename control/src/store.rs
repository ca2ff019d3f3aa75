//! The mesh as the control plane knows it: an immutable [`World`], replaced by one writer and read by everyone.
//!
//! Sources hand parsed room types to the [`StoreWriter`]; readers hold a [`Store`] and take `Arc<World>`. No Kubernetes
//! and no xDS type is named here. Every update says which objects changed, so that a reader redoes only what
//! depends on them; a reader that falls behind gets the newest world with all changes merged, never a queue.

pub mod endpoint;
mod index;
mod key;
pub mod namespace;
pub mod pod;
pub mod policy;
pub mod route;
pub mod service;
mod updates;
pub mod world;

pub use endpoint::{Endpoint, EndpointSlice};
pub use key::{Kind, Labels, ObjectKey, ObjectRef};
pub use namespace::Namespace;
pub use pod::{Node, Pod};
pub use policy::PeerAuthentication;
pub use route::Route;
pub use service::Service;
pub use updates::{Store, StoreWriter, Update, Updates};
pub use world::{MeshSettings, World};

/// What a source has to say about one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It exists, and looks like this.
    Apply(Object),
    /// It is gone.
    Delete(ObjectRef),
}

/// An object that the store keeps, parsed and valid.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A service account.
    ServiceAccount(ObjectKey),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A Service.
    Service(Service),
    /// An EndpointSlice of a Service.
    EndpointSlice(EndpointSlice),
    /// A route of any kind.
    Route(Route),
    /// A PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
}

impl Object {
    /// Kind and key.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        let (kind, key) = match self {
            Self::Namespace(namespace) => (Kind::Namespace, &namespace.key),
            Self::ServiceAccount(key) => (Kind::ServiceAccount, key),
            Self::Node(node) => (Kind::Node, &node.key),
            Self::Pod(pod) => (Kind::Pod, &pod.key),
            Self::Service(service) => (Kind::Service, &service.key),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.key),
            Self::Route(route) => (route.kind.into(), &route.key),
            Self::PeerAuthentication(policy) => (policy.kind(), &policy.key),
        };
        ObjectRef {
            kind,
            key: key.clone(),
        }
    }
}
