//! Resources as a control plane would send them, small and valid.

use tulle_xds_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tulle_xds_proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers};
use tulle_xds_proto::envoy::config::core::v3::TransportSocket;
use tulle_xds_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use tulle_xds_proto::envoy::config::core::v3::{Address, Metadata, SocketAddress, address};
use tulle_xds_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tulle_xds_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use tulle_xds_proto::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, filter, listener_filter,
};
use tulle_xds_proto::envoy::config::listener::v3::{FilterChainMatch, ListenerFilter};
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use tulle_xds_proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use tulle_xds_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use tulle_xds_proto::google::protobuf::{Any, UInt32Value};
use tulle_xds_proto::istio::workload;
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::{ENDPOINT_METADATA, pack, tulle};

pub(in crate::xds) const LISTENER: &str = "outbound|10.0.0.1|80";
pub(in crate::xds) const SERVICE: &str = "outbound|80||echo.demo.svc.cluster.local";

pub(in crate::xds) fn rds_manager(routes: &str) -> Filter {
    network_filter(&HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            route_config_name: routes.to_owned(),
            ..Rds::default()
        })),
        ..HttpConnectionManager::default()
    })
}

pub(in crate::xds) fn inline_manager(cluster: &str) -> Filter {
    network_filter(&HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(routes("inline", &[cluster]))),
        ..HttpConnectionManager::default()
    })
}

pub(in crate::xds) fn tcp(cluster: &str) -> Filter {
    network_filter(&TcpProxy {
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    })
}

pub(in crate::xds) fn network_filter<M: Message + Name>(config: &M) -> Filter {
    Filter {
        name: String::new(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(config))),
    }
}

pub(in crate::xds) fn chain(filter: Filter) -> FilterChain {
    FilterChain {
        filters: vec![filter],
        ..FilterChain::default()
    }
}

pub(in crate::xds) fn http_chain(filter: Filter) -> FilterChain {
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: vec!["http/1.1".to_owned(), "h2c".to_owned()],
            ..FilterChainMatch::default()
        }),
        ..chain(filter)
    }
}

pub(in crate::xds) fn inspectors() -> Vec<ListenerFilter> {
    [
        pack(&TlsInspector::default()),
        pack(&HttpInspector::default()),
    ]
    .map(|any| ListenerFilter {
        config_type: Some(listener_filter::ConfigType::TypedConfig(any)),
        ..ListenerFilter::default()
    })
    .to_vec()
}

pub(in crate::xds) fn listener(name: &str, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: name.to_owned(),
        filter_chains: chains,
        ..Listener::default()
    }
}

pub(in crate::xds) fn inbound_chain(port: Option<u32>, tls: bool, filter: Filter) -> FilterChain {
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.map(|value| UInt32Value { value }),
            ..FilterChainMatch::default()
        }),
        transport_socket: tls.then(TransportSocket::default),
        ..chain(filter)
    }
}

pub(in crate::xds) fn routes(name: &str, clusters: &[&str]) -> RouteConfiguration {
    let route = |cluster: &&str| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster((*cluster).to_owned())),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "*".to_owned(),
            domains: vec!["*".to_owned()],
            routes: clusters.iter().map(route).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

pub(in crate::xds) fn cluster(name: &str, max_requests: u32) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![circuit_breakers::Thresholds {
                max_requests: Some(UInt32Value {
                    value: max_requests,
                }),
                ..circuit_breakers::Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        ..Cluster::default()
    }
}

pub(in crate::xds) fn socket_address(ip: &str, port: u32) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}

pub(in crate::xds) fn endpoint(ip: &str) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket_address(ip, 8080)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

pub(in crate::xds) fn described(ip: &str, metadata: &tulle::v1::Endpoint) -> LbEndpoint {
    let typed = [(ENDPOINT_METADATA.to_owned(), pack(metadata))];
    LbEndpoint {
        metadata: Some(Metadata {
            typed_filter_metadata: typed.into(),
            ..Metadata::default()
        }),
        ..endpoint(ip)
    }
}

pub(in crate::xds) fn load_assignment(
    name: &str,
    endpoints: Vec<LbEndpoint>,
) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: endpoints,
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

pub(in crate::xds) fn workload(name: &str) -> workload::Address {
    workload::Address {
        r#type: Some(workload::address::Type::Workload(workload::Workload {
            name: format!("{name}-abc"),
            workload_name: name.to_owned(),
            namespace: "demo".to_owned(),
            service_account: name.to_owned(),
            canonical_name: name.to_owned(),
            ..workload::Workload::default()
        })),
    }
}

/// Bytes that are no message.
pub(in crate::xds) fn garbage(type_url: &str) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: vec![0xff; 7],
    }
}
