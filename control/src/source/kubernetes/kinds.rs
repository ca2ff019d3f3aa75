//! What is followed, and where it is.

use std::sync::Arc;

use super::definition;
use super::ledger::Item;
use super::watch::{Read, Reader};
use super::wire::Resource;
use super::written::Written;
use crate::api;
use crate::source::parse;
use crate::status::Claim;
use crate::store::Kind;

/// A kind that every cluster has.
pub(super) struct Fixed {
    pub(super) kind: Kind,
    pub(super) task: &'static str,
    group: &'static str,
    plural: &'static str,
    selector: Option<&'static str>,
    metadata_only: bool,
}

/// A kind that a CustomResourceDefinition brings.
#[derive(Debug)]
pub(super) struct Custom {
    pub(super) kind: Kind,
    pub(super) task: &'static str,
    group: &'static str,
    plural: &'static str,
    /// Versions that can be read, the best one first. They differ in nothing that is read.
    pub(super) versions: &'static [&'static str],
    /// Name of the definition.
    pub(super) definition: &'static str,
    /// The definition alone.
    selector: &'static str,
}

/// The version of all of the first kind.
pub(super) const VERSION: &str = "v1";

/// All of the first kind. Of namespaces, nodes and service accounts nothing but the metadata is read, and pods that have
/// finished have no address any more.
pub(super) const FIXED: [Fixed; 6] = [
    Fixed {
        metadata_only: true,
        ..core(Kind::Namespace, "source-namespaces", "namespaces")
    },
    Fixed {
        metadata_only: true,
        ..core(Kind::Node, "source-nodes", "nodes")
    },
    Fixed {
        selector: Some("status.phase!=Succeeded,status.phase!=Failed"),
        ..core(Kind::Pod, "source-pods", "pods")
    },
    core(Kind::Service, "source-services", "services"),
    Fixed {
        metadata_only: true,
        ..core(
            Kind::ServiceAccount,
            "source-service-accounts",
            "serviceaccounts",
        )
    },
    Fixed {
        group: "discovery.k8s.io",
        ..core(
            Kind::EndpointSlice,
            "source-endpoint-slices",
            "endpointslices",
        )
    },
];

/// All of the second kind.
pub(super) const OPTIONAL: [Custom; 6] = [
    Custom {
        kind: Kind::HttpRoute,
        task: "source-http-routes",
        group: "gateway.networking.k8s.io",
        plural: "httproutes",
        versions: &["v1", "v1beta1"],
        definition: "httproutes.gateway.networking.k8s.io",
        selector: "metadata.name=httproutes.gateway.networking.k8s.io",
    },
    Custom {
        kind: Kind::GrpcRoute,
        task: "source-grpc-routes",
        group: "gateway.networking.k8s.io",
        plural: "grpcroutes",
        versions: &["v1", "v1alpha2"],
        definition: "grpcroutes.gateway.networking.k8s.io",
        selector: "metadata.name=grpcroutes.gateway.networking.k8s.io",
    },
    Custom {
        kind: Kind::TcpRoute,
        task: "source-tcp-routes",
        group: "gateway.networking.k8s.io",
        plural: "tcproutes",
        versions: &["v1", "v1alpha2"],
        definition: "tcproutes.gateway.networking.k8s.io",
        selector: "metadata.name=tcproutes.gateway.networking.k8s.io",
    },
    Custom {
        kind: Kind::TlsRoute,
        task: "source-tls-routes",
        group: "gateway.networking.k8s.io",
        plural: "tlsroutes",
        versions: &["v1", "v1alpha3", "v1alpha2"],
        definition: "tlsroutes.gateway.networking.k8s.io",
        selector: "metadata.name=tlsroutes.gateway.networking.k8s.io",
    },
    Custom {
        kind: Kind::PeerAuthentication,
        task: "source-policies",
        group: api::GROUP,
        plural: "peerauthentications",
        versions: &[api::VERSION],
        definition: "peerauthentications.tulle.dev",
        selector: "metadata.name=peerauthentications.tulle.dev",
    },
    Custom {
        kind: Kind::IstioPeerAuthentication,
        task: "source-istio-policies",
        group: api::ISTIO_GROUP,
        plural: "peerauthentications",
        versions: &["v1", "v1beta1"],
        definition: "peerauthentications.security.istio.io",
        selector: "metadata.name=peerauthentications.security.istio.io",
    },
];

const fn core(kind: Kind, task: &'static str, plural: &'static str) -> Fixed {
    Fixed {
        kind,
        task,
        group: "",
        plural,
        selector: None,
        metadata_only: false,
    }
}

impl Fixed {
    /// `pods`, `endpointslices.discovery.k8s.io`.
    pub(super) fn name(&self) -> Arc<str> {
        match self.group {
            "" => self.plural.into(),
            group => format!("{}.{group}", self.plural).into(),
        }
    }

    pub(super) fn resource(&self) -> Resource {
        Resource {
            selector: self.selector,
            metadata_only: self.metadata_only,
            ..Resource::new(self.group, VERSION, self.plural)
        }
    }
}

impl Custom {
    /// Its definition, and no other.
    pub(super) fn definition_resource(&self) -> Resource {
        definition::resource(self.selector)
    }

    /// Its objects, in a version.
    pub(super) fn resource(&self, version: &str) -> Resource {
        Resource::new(self.group, version, self.plural)
    }
}

/// Reads objects of a kind, in a version of their API.
pub(super) fn reader(kind: Kind, version: &'static str) -> Reader<Item> {
    Box::new(move |text| {
        let known = parse::known(kind, text);
        Read {
            item: Item {
                key: known.key,
                version: known.version.as_deref().and_then(|it| it.parse().ok()),
                outcome: known.outcome,
                claim: Claim::of(kind, version, text),
                written: kind
                    .is_authored()
                    .then(|| Written::read(version, text))
                    .flatten(),
            },
            version: known.version,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_store_is_followed_once() {
        let mut kinds: Vec<_> = FIXED.iter().map(|it| it.kind).collect();
        kinds.extend(OPTIONAL.iter().map(|it| it.kind));
        kinds.sort();
        assert_eq!(kinds, Kind::ALL);
    }

    #[test]
    fn resources_have_the_paths_of_the_api() {
        let paths: Vec<_> = FIXED.iter().map(|it| it.resource().path).collect();
        assert_eq!(paths[2], "/api/v1/pods");
        assert_eq!(paths[5], "/apis/discovery.k8s.io/v1/endpointslices");
        for custom in &OPTIONAL {
            let name = format!("{}.{}", custom.plural, custom.group);
            assert_eq!(name, custom.definition);
            assert_eq!(format!("metadata.name={name}"), custom.selector);
        }
        let path = OPTIONAL[0].resource("v1beta1").path;
        assert_eq!(path, "/apis/gateway.networking.k8s.io/v1beta1/httproutes");
    }
}
