//! Names of resources.

use std::net::{IpAddr, SocketAddr};

use crate::store::{MeshSettings, ObjectKey};

/// Says in a pod's name that its IPv6 address is meant.
const IPV6: &str = "ipv6";

/// The name of a listener, route table, cluster or load assignment.
///
/// Every resource has exactly one name: what does not print back to itself is no name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResourceName {
    /// `outbound|IP|PORT`: the listener of a destination.
    Outbound(SocketAddr),
    /// `inbound`: the listener of the client's own pod.
    Inbound,
    /// `outbound`: the listener of captured connections, for clients that have to be told to listen.
    Capture,
    /// `passthrough`: the cluster of destinations that are not known.
    Passthrough,
    /// `outbound|PORT||NAME.NS.svc.DOMAIN`: a port of a Service; route table, cluster and load assignment.
    Service {
        /// The Service.
        key: ObjectKey,
        /// Its port.
        port: u16,
    },
    /// `mtls|PORT||NAME.NS.svc.DOMAIN`: for gRPC, the endpoints of a port of a Service that are called with mTLS, as a load
    /// assignment. Under the Service's own name are the others.
    Meshed {
        /// The Service.
        key: ObjectKey,
        /// Its port.
        port: u16,
    },
    /// `pod|PORT||NAME.NS`, or `pod|PORT|ipv6|NAME.NS`: a port of a pod by its address of one family, because an app may
    /// listen on one of them only; cluster and load assignment.
    Pod {
        /// The pod.
        key: ObjectKey,
        /// Its port.
        port: u16,
        /// Whether its IPv6 address is meant.
        ipv6: bool,
    },
    /// `inbound|PORT||`: the app behind a port of the client's own pod; 0 stands for every port without an entry of its own.
    App(u16),
}

impl ResourceName {
    /// Reads a name; `None` if it is none of ours.
    #[must_use]
    pub fn parse(mesh: &MeshSettings, name: &str) -> Option<Self> {
        let parsed = Self::read(mesh, name)?;
        (parsed.format(mesh) == name).then_some(parsed)
    }

    fn read(mesh: &MeshSettings, name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split('|').collect();
        Some(match parts.as_slice() {
            ["inbound"] => Self::Inbound,
            ["outbound"] => Self::Capture,
            ["passthrough"] => Self::Passthrough,
            ["inbound", port, "", ""] => Self::App(port.parse().ok()?),
            ["outbound", ip, port] => Self::Outbound(SocketAddr::new(
                ip.parse::<IpAddr>().ok()?,
                port.parse().ok()?,
            )),
            ["outbound", port, "", host] => Self::Service {
                key: service(mesh, host)?,
                port: port.parse().ok()?,
            },
            ["mtls", port, "", host] => Self::Meshed {
                key: service(mesh, host)?,
                port: port.parse().ok()?,
            },
            ["pod", port, family, pod] => {
                let (name, namespace) = pod.rsplit_once('.')?;
                Self::Pod {
                    key: ObjectKey::new(namespace, name),
                    port: port.parse().ok()?,
                    ipv6: *family == IPV6,
                }
            }
            _ => return None,
        })
    }

    /// The name.
    #[must_use]
    pub fn format(&self, mesh: &MeshSettings) -> String {
        match self {
            Self::Outbound(address) => format!("outbound|{}|{}", address.ip(), address.port()),
            Self::Inbound => "inbound".to_owned(),
            Self::Capture => "outbound".to_owned(),
            Self::Passthrough => "passthrough".to_owned(),
            Self::Service { key, port } => format!("outbound|{port}||{}", host(mesh, key)),
            Self::Meshed { key, port } => format!("mtls|{port}||{}", host(mesh, key)),
            Self::Pod { key, port, ipv6 } => {
                let family = if *ipv6 { IPV6 } else { "" };
                format!("pod|{port}|{family}|{}.{}", key.name, key.namespace)
            }
            Self::App(port) => format!("inbound|{port}||"),
        }
    }
}

/// The fully qualified host name of a Service.
pub(super) fn host(mesh: &MeshSettings, service: &ObjectKey) -> String {
    format!(
        "{}.{}.svc.{}",
        service.name, service.namespace, mesh.cluster_domain
    )
}

/// The Service of a fully qualified host name.
fn service(mesh: &MeshSettings, host: &str) -> Option<ObjectKey> {
    let name = host
        .strip_suffix(&*mesh.cluster_domain)?
        .strip_suffix(".svc.")?;
    let (name, namespace) = name.rsplit_once('.')?;
    Some(ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_one_name() {
        let mesh = MeshSettings::default();
        for name in [
            "inbound",
            "outbound",
            "passthrough",
            "inbound|8080||",
            "outbound|10.0.0.1|80",
            "outbound|fd00::1|80",
            "outbound|80||reviews.shop.svc.cluster.local",
            "mtls|80||reviews.shop.svc.cluster.local",
            "pod|80||web-0.v1.shop",
            "pod|80|ipv6|web-0.v1.shop",
        ] {
            let parsed = ResourceName::parse(&mesh, name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(parsed.format(&mesh), name);
        }
        for name in [
            "",
            "*",
            "inbound|8080|",
            "outbound|10.0.0.1|080",
            "outbound|fd00:0::1|80",
            "outbound|80||reviews.shop.svc.other.domain",
            "outbound|65536||reviews.shop.svc.cluster.local",
            "outbound|80|v1|reviews.shop.svc.cluster.local",
            "pod|80||web",
            "pod|80|ipv4|web-0.shop",
        ] {
            assert_eq!(ResourceName::parse(&mesh, name), None, "{name}");
        }
        assert_eq!(
            ResourceName::parse(&mesh, "pod|80||web-0.v1.shop"),
            Some(ResourceName::Pod {
                key: ObjectKey::new("shop", "web-0.v1"),
                port: 80,
                ipv6: false,
            })
        );
    }
}
