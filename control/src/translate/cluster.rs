//! Clusters: `outbound|PORT||HOST` of Services and `pod|PORT||NAME.NS` of pods by EDS, `inbound|PORT||` by original
//! destination.
//!
//! Declared HTTP/2 and gRPC say so in `HttpProtocolOptions`; declared HTTP keeps the client's version. Identities are pinned
//! per endpoint, so nothing that endpoints do changes a cluster.

use std::collections::HashMap;
use std::time::Duration;

use tulle_xds_proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use tulle_xds_proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection, circuit_breakers,
    load_balancing_policy,
};
use tulle_xds_proto::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, TypedExtensionConfig,
};
use tulle_xds_proto::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use tulle_xds_proto::envoy::r#type::v3::Percent;
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::pack;

use super::filter::{self, number};
use super::name::ResourceName;
use super::{ClientKind, endpoints, envoy, protocol};
use crate::store::World;
use crate::store::service::{Addressing, AppProtocol};

/// How long connecting to an endpoint may take: there are others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long connecting to the pod's own app may take. There is no other, and one with a full queue answers the kernel's
/// second or third attempt, after 1 and 3 s.
const APP_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection to a destination that is not known may take to come about: as long as without a sidecar.
pub(super) const PASSTHROUGH_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// The cluster of a name, as a kind of client sees it.
pub(super) fn cluster(
    world: &World,
    kind: ClientKind,
    name: &str,
    parsed: &ResourceName,
) -> Option<Cluster> {
    if let (ResourceName::Passthrough, ClientKind::Envoy) = (parsed, kind) {
        return Some(envoy::passthrough(name));
    }
    let (protocol, cluster) = of_all(world, name, parsed)?;
    Some(match kind {
        ClientKind::Envoy => envoy::for_envoy(world, parsed, protocol, cluster),
        ClientKind::Tulle | ClientKind::Grpc => cluster,
    })
}

/// What all clients' clusters have, and what they speak.
fn of_all(world: &World, name: &str, parsed: &ResourceName) -> Option<(AppProtocol, Cluster)> {
    match parsed {
        ResourceName::Service { key, port } => {
            let service = world
                .service(key)
                .filter(|service| service.addressing != Addressing::External)?;
            let protocol = service.port(*port)?.protocol;
            let sticky = service.client_ip_affinity.is_some();
            Some((protocol, eds(name, protocol, sticky)))
        }
        ResourceName::Pod { key, port, ipv6 } => {
            let pod = world.pod(key)?;
            endpoints::pod_address(pod, *port, *ipv6)?;
            let protocol = protocol::pod_ports(world, pod)
                .get(port)
                .map(|port| port.protocol)
                .unwrap_or_default();
            Some((protocol, eds(name, protocol, false)))
        }
        ResourceName::App(_) => Some((AppProtocol::Detect, app(name))),
        ResourceName::Outbound(_)
        | ResourceName::Inbound
        | ResourceName::Capture
        | ResourceName::Passthrough
        | ResourceName::Meshed { .. } => None,
    }
}

fn app(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(filter::duration(APP_CONNECT_TIMEOUT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(limits()),
        typed_extension_protocol_options: protocol_options(AppProtocol::Detect),
        ..Cluster::default()
    }
}

fn eds(name: &str, protocol: AppProtocol, sticky: bool) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(filter::duration(CONNECT_TIMEOUT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(filter::ads()),
            ..EdsClusterConfig::default()
        }),
        load_balancing_policy: Some(policies(sticky)),
        circuit_breakers: Some(limits()),
        outlier_detection: Some(outlier_detection()),
        typed_extension_protocol_options: protocol_options(protocol),
        ..Cluster::default()
    }
}

/// What a client picks endpoints by: the first of these that it knows.
pub(super) fn policies(sticky: bool) -> LoadBalancingPolicy {
    let mut policies = vec![
        policy("least_request", pack(&LeastRequest::default())),
        policy("round_robin", pack(&RoundRobin::default())),
    ];
    if sticky {
        policies.insert(0, policy("maglev", pack(&Maglev::default())));
    }
    LoadBalancingPolicy { policies }
}

pub(super) fn policy(name: &str, config: Any) -> load_balancing_policy::Policy {
    load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: format!("envoy.load_balancing_policies.{name}"),
            typed_config: Some(config),
        }),
    }
}

pub(super) fn limits() -> CircuitBreakers {
    let budget = circuit_breakers::thresholds::RetryBudget {
        budget_percent: Some(Percent { value: 20.0 }),
        min_retry_concurrency: number(10),
        ..Default::default()
    };
    CircuitBreakers {
        thresholds: vec![circuit_breakers::Thresholds {
            max_connections: number(10_000),
            max_pending_requests: number(10_000),
            max_requests: number(100_000),
            retry_budget: Some(budget),
            ..Default::default()
        }],
        ..CircuitBreakers::default()
    }
}

/// Only failures to reach an endpoint count, never its answers.
pub(super) fn outlier_detection() -> OutlierDetection {
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: number(3),
        enforcing_consecutive_local_origin_failure: number(100),
        enforcing_consecutive_5xx: number(0),
        enforcing_consecutive_gateway_failure: number(0),
        enforcing_success_rate: number(0),
        enforcing_local_origin_success_rate: number(0),
        interval: Some(filter::duration(Duration::from_secs(1))),
        base_ejection_time: Some(filter::duration(Duration::from_secs(1))),
        max_ejection_time: Some(filter::duration(Duration::from_secs(30))),
        max_ejection_percent: number(50),
        ..OutlierDetection::default()
    }
}

fn protocol_options(protocol: AppProtocol) -> HashMap<String, Any> {
    let options = match protocol {
        AppProtocol::Tcp => return HashMap::new(),
        AppProtocol::Http2 | AppProtocol::Grpc => {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                    Http2ProtocolOptions::default(),
                )),
            })
        }
        AppProtocol::Http | AppProtocol::Detect => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions {
                    enable_trailers: true,
                    ..Http1ProtocolOptions::default()
                }),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        ..HttpProtocolOptions::default()
    };
    HashMap::from([(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
        pack(&options),
    )])
}
