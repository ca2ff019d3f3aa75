//! xDS resource types: type URL, push order, wildcard rule, and packing into `Any`.
//!
//! Source: the xDS v3 protocol specification (xds_protocol.rst), "Resource Types" and "Eventual consistency
//! considerations".

use prost::{Message, Name};

use crate::google::protobuf::Any;

/// A kind of resource that travels over ADS.
///
/// The order of the variants is the order in which a server pushes changes and a client applies them
/// (make before break): clusters before their endpoints, both before the listeners and routes that name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS: `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
    /// LDS: `envoy.config.listener.v3.Listener`.
    Listener,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// SDS: `envoy.extensions.transport_sockets.tls.v3.Secret`; trust bundles only.
    Secret,
    /// WDS: `istio.workload.Address`.
    Address,
}

impl ResourceType {
    /// Every type, in push order.
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
        Self::Secret,
        Self::Address,
    ];

    /// The type URL on the wire, `type.googleapis.com/<full name>`.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Address => "type.googleapis.com/istio.workload.Address",
        }
    }

    /// The type of a type URL, or `None` for one that Tulle does not serve.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a client that names no resources subscribes to all of them (LDS and CDS only).
    #[must_use]
    pub fn supports_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The field's short name (`CDS`, `EDS` ...), for logs and tables.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
            Self::Address => "WDS",
        }
    }
}

/// Characters of a type URL that an error repeats.
const MAX_SHOWN: usize = 256;

/// Why an `Any` could not be read as the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The `Any` carries another type.
    #[error("expected a {expected}, found type URL {found:?}")]
    Type {
        /// Full name of the expected message.
        expected: String,
        /// Type URL found, its first part.
        found: String,
    },
    /// The bytes are not such a message.
    #[error("malformed {message}")]
    Decode {
        /// Full name of the message.
        message: String,
        /// What prost said.
        #[source]
        source: prost::DecodeError,
    },
}

/// Packs a message into an `Any` under its `type.googleapis.com/` URL.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: type_url::<M>(),
        value: message.encode_to_vec(),
    }
}

/// Reads the message that an `Any` carries.
///
/// # Errors
/// If the type URL names another message or the bytes do not decode.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    // Only the part behind the last slash names the type (google/protobuf/any.proto).
    if any.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
        return Err(UnpackError::Type {
            expected: M::full_name(),
            found: any.type_url.chars().take(MAX_SHOWN).collect(),
        });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Decode {
        message: M::full_name(),
        source,
    })
}

fn type_url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;
    use crate::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use crate::envoy::config::listener::v3::Listener;
    use crate::envoy::config::route::v3::RouteConfiguration;
    use crate::envoy::extensions::transport_sockets::tls::v3::Secret;
    use crate::istio::workload::Address;

    #[test]
    fn type_urls_are_the_names_of_the_messages() {
        let named = [
            (ResourceType::Cluster, type_url::<Cluster>()),
            (ResourceType::Endpoints, type_url::<ClusterLoadAssignment>()),
            (ResourceType::Listener, type_url::<Listener>()),
            (ResourceType::Route, type_url::<RouteConfiguration>()),
            (ResourceType::Secret, type_url::<Secret>()),
            (ResourceType::Address, type_url::<Address>()),
        ];
        for (kind, url) in named {
            assert_eq!(kind.type_url(), url);
            assert_eq!(ResourceType::from_type_url(&url), Some(kind));
        }
        assert_eq!(
            ResourceType::from_type_url("type.googleapis.com/evil.Type"),
            None
        );
    }

    #[test]
    fn only_clusters_and_listeners_can_be_wanted_all_at_once() {
        let wildcard = ResourceType::ALL.map(|kind| (kind.short_name(), kind.supports_wildcard()));
        let expected = [
            ("CDS", true),
            ("EDS", false),
            ("LDS", true),
            ("RDS", false),
            ("SDS", false),
            ("WDS", false),
        ];
        assert_eq!(wildcard, expected);
    }

    #[test]
    fn push_order_is_make_before_break() {
        let mut sorted = ResourceType::ALL;
        sorted.sort();
        assert_eq!(
            sorted.map(ResourceType::short_name),
            ["CDS", "EDS", "LDS", "RDS", "SDS", "WDS"]
        );
    }

    #[test]
    fn unpack_reads_what_pack_wrote_and_refuses_another_type() {
        let cluster = Cluster {
            name: "outbound|80||a.b".to_owned(),
            ..Cluster::default()
        };
        let any = pack(&cluster);
        assert_eq!(any.type_url, ResourceType::Cluster.type_url());
        assert_eq!(unpack::<Cluster>(&any).expect("packed above"), cluster);
        let error = unpack::<Listener>(&any).expect_err("a cluster is no listener");
        assert!(
            error
                .to_string()
                .contains("envoy.config.listener.v3.Listener"),
            "{error}"
        );
        let any = Any {
            type_url: "x".repeat(100_000),
            value: Vec::new(),
        };
        let error = unpack::<Listener>(&any).expect_err("no listener either");
        assert!(error.to_string().len() < 1_000, "what is repeated is cut");
    }

    #[test]
    fn unpack_reports_malformed_bytes() {
        let any = Any {
            type_url: ResourceType::Cluster.type_url().to_owned(),
            value: vec![0xff; 3],
        };
        assert!(matches!(
            unpack::<Cluster>(&any),
            Err(UnpackError::Decode { .. })
        ));
    }
}
