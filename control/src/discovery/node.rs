//! Who a discovery client says it is: its `node.id`.
//!
//! `KIND~POD_IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`. Every field must be there; what is missing or empty does not
//! match anything. The claim is only ever compared with the identity that TLS proved.

use std::net::IpAddr;

use crate::translate::ClientKind;

/// A parsed `node.id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeId {
    pub(crate) kind: ClientKind,
    pub(crate) ip: IpAddr,
    pub(crate) pod: String,
    pub(crate) namespace: String,
}

/// A `node.id` that names no pod.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("node.id {id:?}: {problem}; expected KIND~POD_IP~POD.NAMESPACE~NAMESPACE.svc.{domain}")]
pub(crate) struct BadNodeId {
    id: String,
    domain: String,
    problem: &'static str,
}

/// How much of a bad id is repeated in the error.
const MAX_SHOWN: usize = 256;

impl NodeId {
    /// Parses an id of a cluster whose DNS domain is `domain`.
    pub(crate) fn parse(id: &str, domain: &str) -> Result<Self, BadNodeId> {
        Self::fields(id, domain).map_err(|problem| BadNodeId {
            id: id.chars().take(MAX_SHOWN).collect(),
            domain: domain.to_owned(),
            problem,
        })
    }

    fn fields(id: &str, domain: &str) -> Result<Self, &'static str> {
        let mut fields = id.split('~');
        let (Some(kind), Some(ip), Some(workload), Some(dns), None) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            return Err("not four fields");
        };
        let kind = match kind {
            "sidecar" => ClientKind::Tulle,
            "envoy" => ClientKind::Envoy,
            "grpc" => ClientKind::Grpc,
            _ => return Err("unknown kind (sidecar, envoy or grpc)"),
        };
        let ip = ip
            .parse()
            .map_err(|_| "the second field is not an IP address")?;
        // A pod's name may contain dots, a namespace's may not.
        let (pod, namespace) = workload
            .rsplit_once('.')
            .ok_or("the third field has no namespace")?;
        if pod.is_empty() || namespace.is_empty() {
            return Err("an empty pod or namespace");
        }
        let expected = dns
            .strip_prefix(namespace)
            .and_then(|rest| rest.strip_prefix(".svc."));
        if expected != Some(domain) {
            return Err("the fourth field does not fit");
        }
        Ok(Self {
            kind,
            ip,
            pod: pod.to_owned(),
            namespace: namespace.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let table = [
            ("sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local", true),
            ("sidecar~fd00::1~web-1.shop~shop.svc.cluster.local", true),
            ("envoy~10.0.0.1~web.v1.shop~shop.svc.cluster.local", true),
            ("grpc~10.0.0.1~web-1.shop~shop.svc.cluster.local", true),
            ("", false),
            ("~~~", false),
            ("router~10.0.0.1~web-1.shop~shop.svc.cluster.local", false),
            ("sidecar~~web-1.shop~shop.svc.cluster.local", false),
            ("sidecar~10.0.0.1~.shop~shop.svc.cluster.local", false),
            ("sidecar~10.0.0.1~web-1.~.svc.cluster.local", false),
            ("sidecar~10.0.0.1~web-1~shop.svc.cluster.local", false),
            ("sidecar~10.0.0.1~web-1.shop~", false),
            ("sidecar~10.0.0.1~web-1.shop~other.svc.cluster.local", false),
            ("sidecar~10.0.0.1~web-1.shop~shop.svc.evil.local", false),
            (
                "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local~x",
                false,
            ),
        ];
        for (id, expected) in table {
            assert_eq!(
                NodeId::parse(id, "cluster.local").is_ok(),
                expected,
                "{id:?}"
            );
        }
    }

    #[test]
    fn a_pod_name_with_dots_keeps_them() {
        let node = NodeId::parse(
            "envoy~10.0.0.1~web.v1.shop~shop.svc.cluster.local",
            "cluster.local",
        );
        let node = node.expect("a good id");
        assert_eq!(
            (&*node.pod, &*node.namespace, node.kind),
            ("web.v1", "shop", ClientKind::Envoy)
        );
    }
}
