//! Load assignments: the endpoints of a Service's port (from EndpointSlices only), or the one of a pod.
//!
//! Each endpoint carries `tulle.v1.Endpoint` in its metadata if a pod is behind it. An endpoint that names a pod which is not
//! known, or not under that address, is held back: it might be meshed, and is never called in plaintext by accident. One whose
//! pod is known for sure to be outside of the mesh is called as it is, at whatever address.
//! Ready endpoints are HEALTHY, serving ones that terminate DRAINING (HEALTHY for foreign clients when nothing is ready,
//! who would not use them otherwise), all others are left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tulle_xds_proto::envoy::config::core::v3::{HealthStatus, Locality, Metadata};
use tulle_xds_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use tulle_xds_proto::google::protobuf::{Struct, Value, value};
use tulle_xds_proto::{ENDPOINT_METADATA, pack};

use super::{ClientKind, ProxyView, filter, mtls, workload};
use crate::store::service::{Addressing, Distribution, ServicePort};
use crate::store::{Endpoint, ObjectKey, Pod, Service, World};

/// Whether the endpoints of a Service depend on the client's node, and on its zone.
pub(super) fn depends_on_place(world: &World, service: &ObjectKey) -> (bool, bool) {
    let Some(service) = world.service(service) else {
        return (false, false);
    };
    match service.distribution {
        Distribution::Any => (service.local_only, false),
        Distribution::SameZone => (service.local_only, true),
        Distribution::SameNode => (true, true),
    }
}

/// The endpoints of a port of a Service, or only those that are called with mTLS or without; there may be none.
pub(super) fn of_service(
    world: &World,
    view: &ProxyView,
    name: &str,
    (key, port): (&ObjectKey, u16),
    only: Option<bool>,
) -> Option<ClusterLoadAssignment> {
    let service = world
        .service(key)
        .filter(|service| service.addressing != Addressing::External)?;
    let mut candidates = candidates(world, service, &service.port(port)?.name);
    if let Some(mtls) = only {
        candidates.retain(|address, it| {
            let pod = it.pod.as_ref();
            mtls == pod.is_some_and(|pod| mtls::is_mtls(world, pod, address.port()))
        });
    }
    let candidates = preferred(service, view, candidates);
    let none_ready = !candidates.values().any(|it| it.ready);
    let mut zones: BTreeMap<Option<Arc<str>>, Vec<LbEndpoint>> = BTreeMap::new();
    for (address, candidate) in &candidates {
        let health = match (candidate.ready, view.kind) {
            (true, _) => HealthStatus::Healthy,
            (false, ClientKind::Envoy | ClientKind::Grpc) if none_ready => HealthStatus::Healthy,
            (false, _) => HealthStatus::Draining,
        };
        let endpoint = endpoint(world, view, *address, candidate.pod.as_deref(), health);
        zones
            .entry(candidate.endpoint.zone.clone())
            .or_default()
            .push(endpoint);
    }
    Some(assignment(name, zones))
}

/// Where a port of a pod is reached by one family; `None` where it is not the pod's alone.
pub(super) fn pod_address(pod: &Pod, port: u16, ipv6: bool) -> Option<SocketAddr> {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv6() == ipv6)?;
    (!pod.host_network && port > 0).then(|| SocketAddr::new(*ip, port))
}

/// The one endpoint of a pod; it is called directly, so its readiness does not matter.
pub(super) fn of_pod(
    world: &World,
    view: &ProxyView,
    name: &str,
    (key, port, ipv6): (&ObjectKey, u16, bool),
) -> Option<ClusterLoadAssignment> {
    let pod = world.pod(key)?;
    let address = pod_address(pod, port, ipv6)?;
    let endpoint = endpoint(world, view, address, Some(pod), HealthStatus::Healthy);
    Some(assignment(name, BTreeMap::from([(None, vec![endpoint])])))
}

/// An endpoint that may be used.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    pod: Option<Arc<Pod>>,
    /// Takes new connections; if not, it is serving and terminating.
    ready: bool,
}

/// Every endpoint of the Service's port that may be used, by address: an endpoint that moves from one slice to another
/// is in both for a while, and the better state counts.
fn candidates<'a>(
    world: &'a World,
    service: &Service,
    port: &str,
) -> BTreeMap<SocketAddr, Candidate<'a>> {
    let mut found: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
    for slice in world.slices_of(&service.key) {
        for (_, number) in slice.ports.iter().filter(|(name, _)| **name == *port) {
            for endpoint in &slice.endpoints {
                let ready = endpoint.ready || service.publish_not_ready;
                let drains = endpoint.serving && endpoint.terminating;
                if !ready && !drains {
                    continue;
                }
                let Ok(pod) = pod_behind(world, endpoint) else {
                    continue;
                };
                let address = SocketAddr::new(endpoint.address, *number);
                if !found
                    .get(&address)
                    .is_some_and(|known| known.ready || !ready)
                {
                    found.insert(
                        address,
                        Candidate {
                            endpoint,
                            pod: pod.cloned(),
                            ready,
                        },
                    );
                }
            }
        }
    }
    found
}

/// The endpoint names a pod that is not (yet, or no longer) at its address.
struct Unsettled;

fn pod_behind<'a>(
    world: &'a World,
    endpoint: &Endpoint,
) -> Result<Option<&'a Arc<Pod>>, Unsettled> {
    match &endpoint.pod {
        None => Ok(world.pod_by_ip(endpoint.address)),
        Some(key) => match world.pod(key) {
            Some(pod) if pod.ips.contains(&endpoint.address) => Ok(Some(pod)),
            Some(pod) if is_elsewhere(world, pod, endpoint) => Ok(None),
            _ => Err(Unsettled),
        },
    }
}

/// Whether it is a pod outside of the mesh at an address that its status does not have, as of a second network. It is the
/// very pod that is meant, which gets no sidecar any more, and not a later one of its name.
fn is_elsewhere(world: &World, pod: &Pod, endpoint: &Endpoint) -> bool {
    let is_meant = endpoint.pod_uid.is_some() && endpoint.pod_uid == pod.uid;
    let is_settled = !pod.ips.is_empty() && world.pod_by_ip(endpoint.address).is_none();
    is_meant && is_settled && !pod.proxied
}

/// For which nodes or zones an endpoint is.
type Hint = fn(&Endpoint) -> &[Arc<str>];

/// Leaves out what `internalTrafficPolicy` and `trafficDistribution` leave out for this client. As in kube-proxy, hints
/// count only if every ready endpoint has them and some endpoint is for the client.
fn preferred<'a>(
    service: &Service,
    view: &ProxyView,
    mut candidates: BTreeMap<SocketAddr, Candidate<'a>>,
) -> BTreeMap<SocketAddr, Candidate<'a>> {
    if service.local_only {
        // A node that is not known is nobody's.
        candidates.retain(|_, it| view.node.is_some() && it.endpoint.node == view.node);
        return candidates;
    }
    let hints: [(bool, &Option<Arc<str>>, Hint); 2] = [
        (
            service.distribution == Distribution::SameNode,
            &view.node,
            |it| &it.for_nodes,
        ),
        (
            service.distribution != Distribution::Any,
            &view.zone,
            |it| &it.for_zones,
        ),
    ];
    for (_, place, hint) in hints.into_iter().filter(|(wanted, ..)| *wanted) {
        let Some(place) = place else { continue };
        let ready = || candidates.values().filter(|it| it.ready);
        if ready().all(|it| !hint(it.endpoint).is_empty())
            && ready().any(|it| hint(it.endpoint).contains(place))
        {
            candidates.retain(|_, it| hint(it.endpoint).contains(place));
            break;
        }
    }
    candidates
}

fn endpoint(
    world: &World,
    view: &ProxyView,
    address: SocketAddr,
    pod: Option<&Pod>,
    health: HealthStatus,
) -> LbEndpoint {
    let metadata = pod.and_then(|pod| {
        let mtls = mtls::is_mtls(world, pod, address.port());
        match view.kind {
            ClientKind::Envoy => mtls.then(|| Metadata {
                filter_metadata: HashMap::from([(
                    "envoy.transport_socket_match".to_owned(),
                    transport_match(),
                )]),
                ..Metadata::default()
            }),
            ClientKind::Tulle | ClientKind::Grpc => {
                let ours = pack(&workload::endpoint(world, pod, mtls));
                Some(Metadata {
                    typed_filter_metadata: HashMap::from([(ENDPOINT_METADATA.to_owned(), ours)]),
                    ..Metadata::default()
                })
            }
        }
    });
    let address = Some(filter::socket_address(address));
    LbEndpoint {
        health_status: health.into(),
        metadata,
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(WireEndpoint {
            address,
            ..WireEndpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

/// What makes Envoy choose the mTLS transport socket of the cluster.
pub(super) fn transport_match() -> Struct {
    let yes = Value {
        kind: Some(value::Kind::StringValue("true".to_owned())),
    };
    Struct {
        fields: HashMap::from([("mtls".to_owned(), yes)]),
    }
}

/// The SPIFFE ids of all endpoints of a Service that are called with mTLS, ready or not.
pub(super) fn identities(world: &World, service: &ObjectKey) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for slice in world.slices_of(service) {
        let pods = slice
            .endpoints
            .iter()
            .filter_map(|it| pod_behind(world, it).ok()?);
        for pod in pods {
            let is_mtls = |(_, port): &(Arc<str>, u16)| mtls::is_mtls(world, pod, *port);
            if slice.ports.iter().any(is_mtls) {
                found.insert(mtls::spiffe_id(world.mesh(), pod));
            }
        }
    }
    found
}

/// How a client that has one way for all endpoints of a cluster calls it.
pub(super) enum Reached {
    /// With mTLS: some endpoint wants it, or there is none yet. These are the ids that they may have.
    Mtls(BTreeSet<String>),
    /// In plaintext: none of the endpoints wants more.
    Plaintext,
}

/// How the endpoints of a Service's port are called, ready or not.
pub(super) fn reached(world: &World, service: &Service, port: &ServicePort) -> Reached {
    let (mut ids, mut others) = (BTreeSet::new(), false);
    for slice in world.slices_of(&service.key) {
        for (_, number) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            let settled = slice
                .endpoints
                .iter()
                .filter_map(|it| pod_behind(world, it).ok());
            for pod in settled {
                match pod.filter(|pod| mtls::is_mtls(world, pod, *number)) {
                    Some(pod) => drop(ids.insert(mtls::spiffe_id(world.mesh(), pod))),
                    None => others = true,
                }
            }
        }
    }
    if ids.is_empty() && others {
        Reached::Plaintext
    } else {
        Reached::Mtls(ids)
    }
}

/// The SPIFFE id of a pod, if that port is called with mTLS.
pub(super) fn identity(world: &World, pod: &ObjectKey, port: u16) -> Option<String> {
    let pod = world.pod(pod)?;
    mtls::is_mtls(world, pod, port).then(|| mtls::spiffe_id(world.mesh(), pod))
}

fn assignment(
    name: &str,
    zones: BTreeMap<Option<Arc<str>>, Vec<LbEndpoint>>,
) -> ClusterLoadAssignment {
    let endpoints = zones
        .into_iter()
        .map(|(zone, lb_endpoints)| LocalityLbEndpoints {
            locality: zone.map(|zone| Locality {
                zone: zone.to_string(),
                ..Locality::default()
            }),
            lb_endpoints,
            ..LocalityLbEndpoints::default()
        })
        .collect();
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints,
        ..ClusterLoadAssignment::default()
    }
}
