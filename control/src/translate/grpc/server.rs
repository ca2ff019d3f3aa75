//! The listener of an xDS-enabled server in the client's own pod.
//!
//! One chain for everything, because a gRPC server cannot tell TLS from plaintext on one port: under STRICT it requires the
//! client's certificate, under PERMISSIVE it takes one but does not insist, under DISABLE it is plaintext.

use std::net::SocketAddr;

use tulle_runtime::names::agent;
use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use tulle_xds_proto::envoy::config::route::v3::{
    NonForwardingAction, Route, RouteConfiguration, VirtualHost, route,
};
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use tulle_xds_proto::pack;

use super::super::filter::socket_address;
use super::super::mtls::Effective;
use super::super::route::matching;
use super::{manager, tls};
use crate::store::policy::MtlsMode;
use crate::store::{ObjectKey, World};

/// The address in a server's name for its listener, if it is one.
pub(super) fn address(name: &str) -> Option<SocketAddr> {
    let (before, after) = agent::SERVER_LISTENER_TEMPLATE.split_once("%s")?;
    let address = name.strip_prefix(before)?.strip_suffix(after)?;
    address
        .parse()
        .ok()
        .filter(|parsed: &SocketAddr| parsed.to_string() == address)
}

/// Builds the listener; a pod only has one on an address of its own.
pub(super) fn listener(
    world: &World,
    name: &str,
    pod: &ObjectKey,
    address: SocketAddr,
) -> Option<Listener> {
    let pod = world.pod(pod)?;
    let ip = address.ip();
    if !ip.is_unspecified() && !ip.is_loopback() && !pod.ips.contains(&ip) {
        return None;
    }
    let mode = Effective::of(world, pod).mode(address.port());
    let transport_socket = match mode {
        MtlsMode::Strict => Some(tls::downstream(true)),
        MtlsMode::Permissive => Some(tls::downstream(false)),
        MtlsMode::Disable => None,
    };
    let chain = FilterChain {
        name: "all".to_owned(),
        filters: vec![to_app()],
        transport_socket,
        ..FilterChain::default()
    };
    Some(Listener {
        name: name.to_owned(),
        address: Some(socket_address(address)),
        traffic_direction: TrafficDirection::Inbound.into(),
        filter_chains: vec![chain],
        ..Listener::default()
    })
}

/// Everything, to the handlers of the server.
fn to_app() -> Filter {
    let everything = Route {
        r#match: Some(matching::everything()),
        action: Some(route::Action::NonForwardingAction(NonForwardingAction {})),
        ..Route::default()
    };
    let table = RouteConfiguration {
        name: "app".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "app".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager(
            RouteSpecifier::RouteConfig(table),
        )))),
    }
}
