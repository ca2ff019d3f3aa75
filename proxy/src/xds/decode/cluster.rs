//! `Cluster`: how to reach a set of endpoints, which come by EDS or, as IP addresses, inside the cluster.
//!
//! Names are not resolved here: where Envoy would ask DNS (`STRICT_DNS`, `LOGICAL_DNS`), addresses are taken for what
//! they are, and a host name is refused.

use std::sync::Arc;
use std::time::Duration;

use tulle_xds_proto::envoy::config::cluster::v3 as pb;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tulle_xds_proto::envoy::config::core::v3::RoutingPriority;
use tulle_xds_proto::google::protobuf::{Any, UInt32Value};

use super::balancing::lb_policy;
use super::endpoint::{self, EndpointSet};
use super::error::{At, DecodeError, duration, refuse, same_name, unpack};
use super::protocol::upstream_http;
use crate::config::cluster::{CircuitBreaker, LbPolicy, OutlierDetection, UpstreamHttp};
use crate::config::listener::ServiceName;

/// A cluster without its endpoints and counters.
#[derive(Clone, Debug)]
pub(in crate::xds) struct ClusterSpec {
    pub(in crate::xds) service: Option<Arc<ServiceName>>,
    pub(in crate::xds) source: EndpointSource,
    pub(in crate::xds) lb_policy: LbPolicy,
    pub(in crate::xds) http: UpstreamHttp,
    pub(in crate::xds) connect_timeout: Duration,
    pub(in crate::xds) limits: CircuitBreaker,
    pub(in crate::xds) outlier: OutlierDetection,
}

/// Where its endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::xds) enum EndpointSource {
    /// EDS, by this name.
    Eds(Arc<str>),
    /// None: they are these.
    Inline(Arc<EndpointSet>),
    /// The original destination of the connection.
    OriginalDst,
}

/// Unless the resource says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn decode(name: &str, any: &Any) -> Result<ClusterSpec, DecodeError> {
    let message: pb::Cluster = unpack(any)?;
    same_name("name", &message.name, name)?;
    let tls_remedy = "TLS is chosen per endpoint, by typed_filter_metadata[\"tulle.dev\"]";
    refuse(
        message.transport_socket.is_some(),
        "transport_socket",
        tls_remedy,
    )?;
    refuse(
        !message.transport_socket_matches.is_empty(),
        "transport_socket_matches",
        tls_remedy,
    )?;
    refuse(
        !message.health_checks.is_empty(),
        "health_checks",
        "send health_status with the endpoints",
    )?;
    refuse(
        message.lb_subset_config.is_some(),
        "lb_subset_config",
        "use one cluster for each subset",
    )?;
    refuse(!message.filters.is_empty(), "filters", "remove them")?;
    Ok(ClusterSpec {
        service: service_of(name).map(Arc::new),
        source: source(&message)?,
        lb_policy: lb_policy(&message)?,
        http: upstream_http(&message)?,
        connect_timeout: match duration("connect_timeout", message.connect_timeout.as_ref())? {
            Some(timeout) if !timeout.is_zero() => timeout,
            _ => CONNECT_TIMEOUT,
        },
        limits: limits(message.circuit_breakers.as_ref()).at("circuit_breakers")?,
        outlier: outlier(message.outlier_detection.as_ref()).at("outlier_detection")?,
    })
}

/// The Service in a name such as `outbound|80||reviews.shop.svc.cluster.local`.
pub(super) fn service_of(cluster: &str) -> Option<ServiceName> {
    let mut parts = cluster.splitn(4, '|');
    let (direction, _port, _subset, host) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if matches!(direction, "outbound" | "inbound") {
        service_of_host(host)
    } else {
        None
    }
}

/// The Service that a host such as `reviews.shop.svc.cluster.local` names.
pub(super) fn service_of_host(host: &str) -> Option<ServiceName> {
    let (name, rest) = host.split_once('.')?;
    let (namespace, domain) = rest.split_once('.')?;
    let is_service = (domain == "svc" || domain.starts_with("svc.")) && !name.is_empty();
    is_service.then(|| ServiceName {
        name: name.into(),
        namespace: namespace.into(),
        host: host.into(),
    })
}

fn source(message: &pb::Cluster) -> Result<EndpointSource, DecodeError> {
    let remedy = "use EDS, STATIC or ORIGINAL_DST";
    let kind = match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        Some(ClusterDiscoveryType::ClusterType(_)) => None,
        // Proto3: the first of the enum.
        None => Some(DiscoveryType::Static),
    };
    match kind {
        Some(DiscoveryType::Eds) => {
            let service_name = message
                .eds_cluster_config
                .as_ref()
                .map(|eds| eds.service_name.as_str());
            let name = service_name
                .filter(|name| !name.is_empty())
                .unwrap_or(&message.name);
            Ok(EndpointSource::Eds(name.into()))
        }
        Some(DiscoveryType::Static | DiscoveryType::StrictDns | DiscoveryType::LogicalDns) => {
            let Some(assignment) = &message.load_assignment else {
                return Err(DecodeError::missing(
                    "load_assignment",
                    "list the endpoints",
                ));
            };
            let set = endpoint::set(assignment).at("load_assignment")?;
            Ok(EndpointSource::Inline(Arc::new(set)))
        }
        Some(DiscoveryType::OriginalDst) => Ok(EndpointSource::OriginalDst),
        _ => Err(DecodeError::unsupported("type", remedy)),
    }
}

fn limits(message: Option<&pb::CircuitBreakers>) -> Result<CircuitBreaker, DecodeError> {
    let mut limits = CircuitBreaker::default();
    let of_default_priority = |threshold: &&pb::circuit_breakers::Thresholds| {
        threshold.priority == RoutingPriority::Default as i32
    };
    let Some(threshold) =
        message.and_then(|breakers| breakers.thresholds.iter().find(of_default_priority))
    else {
        return Ok(limits);
    };
    set(
        &mut limits.max_connections,
        threshold.max_connections.as_ref(),
    );
    set(
        &mut limits.max_pending_requests,
        threshold.max_pending_requests.as_ref(),
    );
    set(&mut limits.max_requests, threshold.max_requests.as_ref());
    if let Some(budget) = &threshold.retry_budget {
        if let Some(percent) = &budget.budget_percent {
            let field = "retry_budget.budget_percent";
            limits.retry_budget_percent = percentage(field, percent.value)?;
        }
        set(
            &mut limits.min_retry_concurrency,
            budget.min_retry_concurrency.as_ref(),
        );
    } else if let Some(max) = &threshold.max_retries {
        // A fixed number of retries at a time, whatever the load.
        limits.retry_budget_percent = 0;
        limits.min_retry_concurrency = max.value;
    }
    Ok(limits)
}

fn outlier(message: Option<&pb::OutlierDetection>) -> Result<OutlierDetection, DecodeError> {
    let mut outlier = OutlierDetection::default();
    let Some(message) = message else {
        return Ok(outlier);
    };
    set(
        &mut outlier.consecutive_local_failures,
        message.consecutive_local_origin_failure.as_ref(),
    );
    if let Some(base) = duration("base_ejection_time", message.base_ejection_time.as_ref())? {
        outlier.base_ejection_time = base;
    }
    if let Some(max) = duration("max_ejection_time", message.max_ejection_time.as_ref())? {
        outlier.max_ejection_time = max;
    }
    outlier.max_ejection_time = outlier.max_ejection_time.max(outlier.base_ejection_time);
    if let Some(percent) = &message.max_ejection_percent {
        outlier.max_ejection_percent =
            percentage("max_ejection_percent", f64::from(percent.value))?;
    }
    let enforcing = message.enforcing_consecutive_local_origin_failure.as_ref();
    if enforcing.is_some_and(|enforcing| enforcing.value == 0) {
        outlier.max_ejection_percent = 0;
    }
    Ok(outlier)
}

fn set(target: &mut u32, value: Option<&UInt32Value>) {
    if let Some(value) = value {
        *target = value.value;
    }
}

fn percentage(field: &str, value: f64) -> Result<u32, DecodeError> {
    if (0.0..=100.0).contains(&value) {
        // In range, so neither sign nor size is lost.
        return Ok(value.round() as u32);
    }
    Err(DecodeError::invalid(
        field,
        value,
        "it is between 0 and 100",
    ))
}
