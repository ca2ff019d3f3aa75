//! Listeners: what to do with a captured connection before its bytes are understood.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::route::RouteTable;

/// An outbound destination: one original IP and port.
#[derive(Clone, Debug)]
pub struct OutboundListener {
    /// xDS name, `outbound|IP|PORT`.
    pub name: Arc<str>,
    /// The original destination that it stands for.
    pub address: SocketAddr,
    /// What flows through it.
    pub protocol: Protocol<RouteSource>,
}

/// What a connection carries, and where it goes then.
#[derive(Clone, Debug)]
pub enum Protocol<H> {
    /// Declared HTTP (version 1 or 2 by the client's first bytes).
    Http(H),
    /// Declared opaque, including TLS of the app's own.
    Tcp(TcpRoute),
    /// Undeclared: detect.
    Detect {
        /// Where HTTP goes.
        http: H,
        /// Where everything else goes.
        tcp: TcpRoute,
    },
}

/// Where the HTTP requests of a listener find their routes.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// In the snapshot, by RDS name.
    Named(Arc<str>),
    /// Right here.
    Inline(Arc<RouteTable>),
}

/// Where opaque connections go: clusters by weight (sum greater than zero).
#[derive(Clone, Debug)]
pub struct TcpRoute {
    /// Cluster names with their weights. Never empty.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// Whether connections are hashed by the client's address.
    pub by_source: bool,
}

/// Everything about connections that arrive at the pod.
#[derive(Clone, Debug)]
pub struct InboundListener {
    /// Ports that some Service or policy names.
    pub ports: HashMap<u16, InboundPort>,
    /// Every other port.
    pub default: InboundPort,
}

impl InboundListener {
    /// What applies to a destination port.
    #[must_use]
    pub fn port(&self, port: u16) -> &InboundPort {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

/// What a sidecar accepts on one port of its app. Mesh TLS is always accepted.
#[derive(Clone, Debug)]
pub struct InboundPort {
    /// Whether plaintext (and the app's own TLS) is accepted: false under STRICT, true under PERMISSIVE and DISABLE.
    pub plaintext: bool,
    /// Protocol declared for the port.
    pub protocol: Protocol<Arc<RouteTable>>,
    /// Service that telemetry names when the port belongs to exactly one.
    pub service: Option<Arc<ServiceName>>,
}

/// A Kubernetes Service, for the labels of telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Fully qualified host name.
    pub host: Arc<str>,
}
