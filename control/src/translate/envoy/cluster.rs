//! What Envoy's clusters have beside what all clients' have.
//!
//! An EDS cluster has two transport sockets: mTLS for endpoints that say so, plaintext for the others. It pins the ids of
//! all its endpoints, ready or not, so that it changes only when another service account comes or goes. It offers the ALPN
//! that it is mostly called with: `tulle-http1` unless HTTP/2 or opaque bytes are declared.

use std::collections::BTreeSet;

use tulle_runtime::names::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6, alpn};
use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, LbPolicy, TransportSocketMatch,
};
use tulle_xds_proto::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, SocketAddress, socket_address::PortSpecifier,
};
use tulle_xds_proto::envoy::r#type::v3::Percent;
use tulle_xds_proto::google::protobuf::Struct;

use super::super::endpoints::transport_match;
use super::super::name::ResourceName;
use super::super::{cluster, endpoints, filter};
use super::{stat_name, tls};
use crate::store::World;
use crate::store::service::AppProtocol;

/// Makes a cluster of all clients Envoy's.
pub(in super::super) fn for_envoy(
    world: &World,
    parsed: &ResourceName,
    protocol: AppProtocol,
    mut cluster: Cluster,
) -> Cluster {
    cluster.alt_stat_name = stat_name(&cluster.name);
    let ids = match parsed {
        ResourceName::Service { key, .. } => endpoints::identities(world, key),
        ResourceName::Pod { key, port, .. } => {
            endpoints::identity(world, key, *port).into_iter().collect()
        }
        ResourceName::App(_) => {
            cluster.upstream_bind_config = Some(from_loopback());
            return cluster;
        }
        _ => return cluster,
    };
    cluster.transport_socket_matches = sockets(world, protocol, &ids);
    cluster.common_lb_config = Some(CommonLbConfig {
        // What is draining or ejected is not called because there is little else.
        healthy_panic_threshold: Some(Percent { value: 0.0 }),
        ..CommonLbConfig::default()
    });
    cluster
}

/// The cluster of destinations that are not known: as if there were no sidecar.
pub(in super::super) fn passthrough(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(filter::duration(cluster::PASSTHROUGH_CONNECT_TIMEOUT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(cluster::limits()),
        ..Cluster::default()
    }
}

fn sockets(
    world: &World,
    protocol: AppProtocol,
    ids: &BTreeSet<String>,
) -> Vec<TransportSocketMatch> {
    let offered = match protocol {
        AppProtocol::Http | AppProtocol::Detect => alpn::HTTP1,
        AppProtocol::Http2 | AppProtocol::Grpc => alpn::H2,
        AppProtocol::Tcp => alpn::TCP,
    };
    vec![
        TransportSocketMatch {
            name: "mtls".to_owned(),
            r#match: Some(transport_match()),
            transport_socket: Some(tls::upstream(world.mesh(), offered, ids)),
        },
        TransportSocketMatch {
            name: "plaintext".to_owned(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::plaintext()),
        },
    ]
}

/// The connection to the app comes from where capture lets it through.
fn from_loopback() -> BindConfig {
    let from = |address: String| SocketAddress {
        address,
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    BindConfig {
        source_address: Some(from(INBOUND_SOURCE_V4.to_string())),
        extra_source_addresses: vec![ExtraSourceAddress {
            address: Some(from(INBOUND_SOURCE_V6.to_string())),
            ..ExtraSourceAddress::default()
        }],
        ..BindConfig::default()
    }
}
