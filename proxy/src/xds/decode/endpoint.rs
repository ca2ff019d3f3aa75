//! `ClusterLoadAssignment`: the addresses of a cluster, and who is behind each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tulle_identity::SpiffeId;
use tulle_xds_proto::ENDPOINT_METADATA;
use tulle_xds_proto::envoy::config::core::v3::HealthStatus;
use tulle_xds_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier,
};
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::tulle::v1;

use super::address;
use super::error::{At, DecodeError, refuse, same_name, unpack};
use crate::config::Workload;
use crate::config::cluster::{Health, PeerIdentity};

/// The endpoints of a name, sorted by address, each address once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::xds) struct EndpointSet(pub(in crate::xds) Vec<EndpointSpec>);

/// An endpoint without the counters that outlive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::xds) struct EndpointSpec {
    pub(in crate::xds) address: SocketAddr,
    pub(in crate::xds) weight: u32,
    pub(in crate::xds) health: Health,
    pub(in crate::xds) mtls: Option<Arc<PeerIdentity>>,
    pub(in crate::xds) foreign: bool,
    pub(in crate::xds) workload: Arc<Workload>,
}

/// What the metadata of an endpoint says.
struct Peer {
    mtls: Option<Arc<PeerIdentity>>,
    foreign: bool,
    workload: Arc<Workload>,
}

pub(super) fn decode(name: &str, any: &Any) -> Result<EndpointSet, DecodeError> {
    let message: ClusterLoadAssignment = unpack(any)?;
    same_name("cluster_name", &message.cluster_name, name)?;
    set(&message)
}

/// Endpoints of one cluster.
const MAX_ENDPOINTS: usize = 50_000;

/// The endpoints of an assignment, sent by itself or inside a cluster.
pub(super) fn set(message: &ClusterLoadAssignment) -> Result<EndpointSet, DecodeError> {
    let drops = message
        .policy
        .as_ref()
        .is_some_and(|policy| !policy.drop_overloads.is_empty());
    refuse(drops, "policy.drop_overloads", "remove it")?;
    let count: usize = message
        .endpoints
        .iter()
        .map(|locality| locality.lb_endpoints.len())
        .sum();
    if count > MAX_ENDPOINTS {
        let remedy = format!("a cluster has at most {MAX_ENDPOINTS} endpoints");
        return Err(DecodeError::invalid("endpoints", count, remedy));
    }
    let mut shared = Shared::default();
    let mut endpoints = Vec::new();
    for (i, locality) in message.endpoints.iter().enumerate() {
        refuse(
            locality.priority > 0,
            "priority",
            "send only the endpoints that are to be used",
        )
        .at_index("endpoints", i)?;
        for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let decoded = shared.decode(endpoint).at_index("lb_endpoints", j);
            endpoints.push(decoded.at_index("endpoints", i)?);
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    Ok(EndpointSet(endpoints))
}

/// Endpoints of a cluster are mostly of one workload: equal parts are kept once.
#[derive(Default)]
struct Shared {
    workloads: HashMap<Workload, Arc<Workload>>,
    identities: HashMap<Vec<SpiffeId>, Arc<PeerIdentity>>,
}

impl Shared {
    fn decode(&mut self, message: &LbEndpoint) -> Result<EndpointSpec, DecodeError> {
        let endpoint = match &message.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => {
                return Err(DecodeError::unsupported("endpoint_name", "use endpoint"));
            }
            None => return Err(DecodeError::missing("endpoint", "set its address")),
        };
        let address = address::decode("endpoint.address", endpoint.address.as_ref())?;
        let weight = message
            .load_balancing_weight
            .as_ref()
            .map_or(1, |weight| weight.value);
        if weight == 0 {
            return Err(DecodeError::invalid(
                "load_balancing_weight",
                0,
                "it is at least 1",
            ));
        }
        let field = format!("metadata.typed_filter_metadata[{ENDPOINT_METADATA:?}]");
        let Peer {
            mtls,
            foreign,
            workload,
        } = self.metadata(message).at(field)?;
        let health = match message.health_status() {
            HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded => {
                Health::Healthy
            }
            HealthStatus::Draining => Health::Draining,
            HealthStatus::Unhealthy | HealthStatus::Timeout => Health::Unhealthy,
        };
        Ok(EndpointSpec {
            address,
            weight,
            health,
            mtls,
            foreign,
            workload,
        })
    }

    fn metadata(&mut self, message: &LbEndpoint) -> Result<Peer, DecodeError> {
        let any = message
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.typed_filter_metadata.get(ENDPOINT_METADATA));
        let Some(any) = any else {
            return Ok(Peer {
                mtls: None,
                foreign: false,
                workload: self.workload(Workload::default()),
            });
        };
        let endpoint: v1::Endpoint = unpack(any)?;
        let mtls = if endpoint.mtls {
            Some(self.identity(&endpoint.spiffe_ids)?)
        } else {
            None
        };
        let workload = Workload {
            name: endpoint.workload_name.into(),
            kind: endpoint.workload_kind.into(),
            namespace: endpoint.namespace.into(),
            service_account: endpoint.service_account.into(),
            app: endpoint.app.into(),
            version: endpoint.version.into(),
            canonical_name: endpoint.canonical_name.into(),
            canonical_revision: endpoint.canonical_revision.into(),
            cluster: endpoint.cluster.into(),
        };
        Ok(Peer {
            mtls,
            foreign: endpoint.foreign,
            workload: self.workload(workload),
        })
    }

    fn identity(&mut self, names: &[String]) -> Result<Arc<PeerIdentity>, DecodeError> {
        let mut ids = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            let id = name
                .parse::<SpiffeId>()
                .map_err(|error| DecodeError::invalid("", name, error))
                .at_index("spiffe_ids", i)?;
            ids.push(id);
        }
        ids.sort();
        ids.dedup();
        if ids.is_empty() {
            return Err(DecodeError::missing(
                "spiffe_ids",
                "an endpoint with mtls needs at least one",
            ));
        }
        let new = || Arc::new(PeerIdentity(ids.clone().into_boxed_slice()));
        Ok(self
            .identities
            .entry(ids.clone())
            .or_insert_with(new)
            .clone())
    }

    fn workload(&mut self, workload: Workload) -> Arc<Workload> {
        self.workloads
            .entry(workload)
            .or_insert_with_key(|key| Arc::new(key.clone()))
            .clone()
    }
}
