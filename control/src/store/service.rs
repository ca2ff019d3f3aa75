//! Services.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Labels, ObjectKey, Pod};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// What kind of address it has.
    pub addressing: Addressing,
    /// Its TCP ports, in the order of the manifest.
    pub ports: Vec<ServicePort>,
    /// Which pods it selects; `None`: its endpoints are kept by hand.
    pub selector: Option<Labels>,
    /// Endpoints count as ready whatever their state.
    pub publish_not_ready: bool,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub client_ip_affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub local_only: bool,
    /// `trafficDistribution`.
    pub distribution: Distribution,
}

/// What kind of address a Service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Virtual addresses, sorted; none before they are allocated.
    Virtual(Vec<IpAddr>),
    /// Headless: DNS gives the pods' addresses.
    Headless,
    /// ExternalName: DNS only.
    External,
}

/// Which endpoints a Service prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// Any.
    #[default]
    Any,
    /// Those that the EndpointSlice's hints give to the client's zone.
    SameZone,
    /// Those that the hints give to the client's node, then its zone.
    SameNode,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it is the only one and unnamed.
    pub name: Arc<str>,
    /// The port that clients use.
    pub port: u16,
    /// The port of the pods.
    pub target: TargetPort,
    /// What it speaks.
    pub protocol: AppProtocol,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(Arc<str>),
}

/// The protocol that a port declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// None declared: detect.
    #[default]
    Detect,
    /// HTTP/1.1, and whatever its clients upgrade to.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes, including TLS of the app's own.
    Tcp,
}

impl Service {
    /// Its virtual addresses.
    #[must_use]
    pub fn vips(&self) -> &[IpAddr] {
        match &self.addressing {
            Addressing::Virtual(vips) => vips,
            Addressing::Headless | Addressing::External => &[],
        }
    }

    /// One of its ports.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether its selector selects a pod. Used for what a port of a pod speaks, never for endpoints.
    #[must_use]
    pub fn selects(&self, pod: &Pod) -> bool {
        self.key.namespace == pod.key.namespace
            && self
                .selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty() && selector.selects(&pod.labels))
    }
}

impl ServicePort {
    /// The port of a pod that it leads to.
    #[must_use]
    pub fn target_of(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.named_port(name),
        }
    }
}
