//! How objects are named, and their labels.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Namespace and name; the namespace is empty for objects of the cluster's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The kinds of objects that the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Namespace.
    Namespace,
    /// ServiceAccount.
    ServiceAccount,
    /// Node.
    Node,
    /// Pod.
    Pod,
    /// Service.
    Service,
    /// EndpointSlice.
    EndpointSlice,
    /// HTTPRoute.
    HttpRoute,
    /// GRPCRoute.
    GrpcRoute,
    /// TCPRoute.
    TcpRoute,
    /// TLSRoute.
    TlsRoute,
    /// PeerAuthentication of `tulle.dev`.
    PeerAuthentication,
    /// PeerAuthentication of `security.istio.io`.
    IstioPeerAuthentication,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::PeerAuthentication,
        Self::IstioPeerAuthentication,
    ];

    /// Whether it has a status in which its author is told what becomes of it.
    #[must_use]
    pub fn is_told(self) -> bool {
        self.is_route() || self == Self::PeerAuthentication
    }

    /// Whether people write it for the mesh, or for the likes of it, and may ask for what it cannot do.
    #[must_use]
    pub fn is_authored(self) -> bool {
        self.is_told() || self == Self::IstioPeerAuthentication
    }

    /// Whether it is one of the kinds of routes.
    #[must_use]
    pub fn is_route(self) -> bool {
        matches!(
            self,
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute
        )
    }

    /// The kind as manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::IstioPeerAuthentication => "PeerAuthentication.security.istio.io",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: ObjectKey,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// Labels of an object, or the labels that a selector demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<Arc<str>, Arc<str>>);

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<str>> {
        self.0.get(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As a selector: whether an object with those labels is selected. An empty selector selects everything.
    #[must_use]
    pub fn selects(&self, labels: &Self) -> bool {
        self.0
            .iter()
            .all(|(name, value)| labels.0.get(name) == Some(value))
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}
