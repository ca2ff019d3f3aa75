//! Clusters of ports of Services, as gRPC reads them.
//!
//! gRPC passes over endpoints that it cannot reach by itself and ejects by answers only, which this mesh never does: the
//! outlier detection is there and does nothing. Affinity by the client's address is affinity by channel.

use tulle_xds_proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use tulle_xds_proto::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use tulle_xds_proto::envoy::extensions::load_balancing_policies::ring_hash::v3::{
    RingHash, ring_hash::HashFunction,
};
use tulle_xds_proto::pack;

use super::super::cluster::{limits, outlier_detection, policies, policy};
use super::super::endpoints::{Reached, reached};
use super::super::filter;
use super::super::name::ResourceName;
use super::{NOWHERE, tls};
use crate::store::World;
use crate::store::service::Addressing;

/// The cluster of a name.
pub(in super::super) fn cluster(world: &World, name: &str) -> Option<Cluster> {
    if name == NOWHERE {
        return Some(eds(name, NOWHERE.to_owned(), policies(false)));
    }
    let ResourceName::Service { key, port } = ResourceName::parse(world.mesh(), name)? else {
        return None;
    };
    let service = world
        .service(&key)
        .filter(|service| service.addressing != Addressing::External)?;
    let policies = match service.client_ip_affinity {
        None => policies(false),
        Some(_) => sticky(),
    };
    let (endpoints, transport_socket) = match reached(world, service, service.port(port)?) {
        Reached::Mtls(ids) => (
            ResourceName::Meshed { key, port },
            Some(tls::upstream(world.mesh(), &ids)),
        ),
        Reached::Plaintext => (ResourceName::Service { key, port }, None),
    };
    Some(Cluster {
        transport_socket,
        ..eds(name, endpoints.format(world.mesh()), policies)
    })
}

fn eds(name: &str, service_name: String, policies: LoadBalancingPolicy) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(filter::ads()),
            service_name,
        }),
        load_balancing_policy: Some(policies),
        circuit_breakers: Some(limits()),
        outlier_detection: Some(outlier_detection()),
        ..Cluster::default()
    }
}

/// What keeps a channel with one endpoint, where the client knows it.
fn sticky() -> LoadBalancingPolicy {
    let ring = RingHash {
        hash_function: HashFunction::XxHash.into(),
        ..RingHash::default()
    };
    let mut sticky = policies(false);
    sticky.policies.insert(0, policy("ring_hash", pack(&ring)));
    sticky
}
