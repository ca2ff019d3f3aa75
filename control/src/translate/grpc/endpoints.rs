//! Load assignments, as gRPC reads them: it passes over localities that have no name, even an empty one, or no weight.

use tulle_xds_proto::envoy::config::core::v3::Locality;
use tulle_xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::super::ProxyView;
use super::super::endpoints;
use super::super::filter::number;
use super::super::name::ResourceName;
use super::NOWHERE;
use crate::store::World;

/// The load assignment of a name.
pub(in super::super) fn assignment(
    world: &World,
    view: &ProxyView,
    name: &str,
) -> Option<ClusterLoadAssignment> {
    if name == NOWHERE {
        return Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            ..ClusterLoadAssignment::default()
        });
    }
    let (key, port, mtls) = match ResourceName::parse(world.mesh(), name)? {
        ResourceName::Meshed { key, port } => (key, port, true),
        ResourceName::Service { key, port } => (key, port, false),
        _ => return None,
    };
    let mut assignment = endpoints::of_service(world, view, name, (&key, port), Some(mtls))?;
    for locality in &mut assignment.endpoints {
        locality.locality.get_or_insert_with(Locality::default);
        let weight = u32::try_from(locality.lb_endpoints.len()).unwrap_or(u32::MAX);
        locality.load_balancing_weight = number(weight);
        for endpoint in &mut locality.lb_endpoints {
            endpoint.metadata = None;
        }
    }
    Some(assignment)
}
