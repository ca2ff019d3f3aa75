//! Responses: good ones, small and plain, and the tools to spoil them.

use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tulle_xds_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use tulle_xds_proto::envoy::config::core::v3::{Address, SocketAddress, address};
use tulle_xds_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tulle_xds_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use tulle_xds_proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
};
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::{ResourceType, pack};

/// A response of a type with these resources.
pub(super) fn response(kind: ResourceType, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

pub(super) fn removal(kind: ResourceType, name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        removed_resources: vec![name.to_owned()],
        ..response(kind, Vec::new())
    }
}

pub(super) fn one<M: Message + Name>(
    kind: ResourceType,
    name: &str,
    message: &M,
) -> DeltaDiscoveryResponse {
    response(kind, vec![resource(name, pack(message))])
}

/// A resource; its version is the hash of nothing in particular.
pub(super) fn resource(name: &str, any: Any) -> Resource {
    Resource {
        name: name.to_owned(),
        version: any.value.len().to_string(),
        resource: Some(any),
        ..Resource::default()
    }
}

pub(super) fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..Cluster::default()
    }
}

pub(super) fn assignment(cluster: &str, ip: &str) -> ClusterLoadAssignment {
    let endpoint = Endpoint {
        address: Some(socket(ip)),
        ..Endpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..LbEndpoint::default()
            }],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

/// A listener whose routes lead to one cluster.
pub(super) fn listener(name: &str, ip: &str, cluster: &str) -> Listener {
    inline_listener(name, ip, routes(name, cluster))
}

/// A listener with these routes.
pub(super) fn inline_listener(name: &str, ip: &str, routes: RouteConfiguration) -> Listener {
    with_manager(name, ip, RouteSpecifier::RouteConfig(routes))
}

/// A listener whose routes come by RDS.
pub(super) fn rds_listener(name: &str, ip: &str, routes: &str) -> Listener {
    let rds = Rds {
        route_config_name: routes.to_owned(),
        ..Rds::default()
    };
    with_manager(name, ip, RouteSpecifier::Rds(rds))
}

fn with_manager(name: &str, ip: &str, routes: RouteSpecifier) -> Listener {
    let manager = HttpConnectionManager {
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    };
    Listener {
        name: name.to_owned(),
        address: Some(socket(ip)),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

pub(super) fn routes(name: &str, cluster: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
                    ..RouteAction::default()
                })),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn socket(ip: &str) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(8080)),
            ..SocketAddress::default()
        })),
    }
}

/// Bytes under a type's name that are no message of it.
pub(super) fn garbage(kind: ResourceType) -> Any {
    Any {
        type_url: kind.type_url().to_owned(),
        value: vec![0xff; 64],
    }
}

/// Half of a message.
pub(super) fn truncated<M: Message + Name>(message: &M) -> Any {
    let mut any = pack(message);
    any.value.truncate(any.value.len() / 2);
    any
}

/// An `Any` in an `Any` in an `Any`, as deep as asked, with a listener's name on the outside.
pub(super) fn nested(depth: usize) -> Any {
    let mut any = Any::default();
    for _ in 0..depth {
        any = Any {
            type_url: "type.googleapis.com/google.protobuf.Any".to_owned(),
            value: any.encode_to_vec(),
        };
    }
    any
}
