//! The pieces that listeners are made of: filter chains, HTTP connection managers, TCP proxies, addresses.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_xds_proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address,
    config_source, socket_address,
};
use tulle_xds_proto::envoy::config::listener::v3::{Filter, filter};
use tulle_xds_proto::envoy::config::route::v3::RouteConfiguration;
use tulle_xds_proto::envoy::extensions::filters::http::router::v3::Router;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager, http_filter,
};
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use tulle_xds_proto::envoy::r#type::v3::{HashPolicy, hash_policy};
use tulle_xds_proto::google::protobuf::{self, UInt32Value};
use tulle_xds_proto::pack;

use super::route::Backends;

/// Where the routes of an HTTP connection manager are.
pub(super) enum Routes {
    /// In RDS, by name.
    Named(String),
    /// In the listener itself.
    Inline(Box<RouteConfiguration>),
}

/// The HTTP connection manager that ends a chain.
pub(super) fn http(stat_prefix: &str, routes: Routes) -> Filter {
    let route_specifier = match routes {
        Routes::Named(route_config_name) => http_connection_manager::RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name,
        }),
        Routes::Inline(table) => http_connection_manager::RouteSpecifier::RouteConfig(*table),
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(
            &Router::default(),
        ))),
        ..HttpFilter::default()
    };
    let websocket = http_connection_manager::UpgradeConfig {
        upgrade_type: "websocket".to_owned(),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router],
        upgrade_configs: vec![websocket],
        route_specifier: Some(route_specifier),
        ..HttpConnectionManager::default()
    };
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    }
}

/// The TCP proxy that ends a chain; `by_source` hashes connections by the client's address.
pub(super) fn tcp(cluster: &str, backends: &Backends) -> Filter {
    let proxy = tcp_proxy(cluster.to_owned(), backends);
    Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))),
    }
}

/// What a TCP proxy is told, whoever's it is.
pub(super) fn tcp_proxy(stat_prefix: String, backends: &Backends) -> TcpProxy {
    let source = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp::default());
    let hash = backends.sticky.then_some(HashPolicy {
        policy_specifier: Some(source),
    });
    TcpProxy {
        stat_prefix,
        hash_policy: hash.into_iter().collect(),
        cluster_specifier: Some(backends.specifier()),
        ..TcpProxy::default()
    }
}

/// "Over this same stream."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource {},
        )),
        ..ConfigSource::default()
    }
}

/// A TCP address.
pub(super) fn socket_address(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(
                address.port().into(),
            )),
            ..SocketAddress::default()
        })),
    }
}

/// A duration on the wire.
pub(super) fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A number that may be absent, present.
pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}
