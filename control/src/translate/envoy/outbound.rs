//! Envoy's outbound listeners: the one that captured connections reach, and one for each destination.
//!
//! A destination's listener does not bind. Declared HTTP has a chain for each version that the HTTP inspector finds, the
//! rest counts as HTTP/1; where nothing is declared the rest is opaque; what is declared opaque is not looked at. Clusters
//! offer what they are mostly called with, and a chain says so where it differs (see [`super::cluster`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tulle_runtime::names::{alpn, ports};
use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};
use tulle_xds_proto::google::protobuf::BoolValue;

use super::super::ClientKind;
use super::super::ProxyView;
use super::super::filter::{self, duration, number};
use super::super::listener::{Destination, inspectors};
use super::super::name::ResourceName;
use super::super::route::Backends;
use super::http::{Client, manager, offer, offer_tcp, tcp};
use super::{Version, any_address, original_destination};
use crate::store::service::{Addressing, AppProtocol};
use crate::store::{EndpointSlice, ObjectKey, Service, World};

/// How long the first byte of a client is waited for where the server may speak first.
const SILENCE: Duration = Duration::from_millis(100);

/// The listener that captured connections reach.
pub(in super::super) fn capture(world: &World, pod: &ObjectKey) -> Option<Listener> {
    let pod = world.pod(pod)?;
    let (address, additional_addresses) = any_address(pod, ports::OUTBOUND);
    let passthrough = passthrough(world);
    Some(Listener {
        name: ResourceName::Capture.format(world.mesh()),
        address: Some(address),
        additional_addresses,
        traffic_direction: TrafficDirection::Outbound.into(),
        use_original_dst: Some(BoolValue { value: true }),
        listener_filters: vec![original_destination()],
        // Whoever connects to this very port would go round in circles: a chain without filters closes.
        filter_chains: vec![FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                destination_port: number(ports::OUTBOUND.into()),
                ..FilterChainMatch::default()
            }),
            ..FilterChain::default()
        }],
        default_filter_chain: Some(chain(vec![passthrough])),
        ..Listener::default()
    })
}

/// The listener of an original destination.
pub(in super::super) fn listener(
    world: &World,
    view: &ProxyView,
    name: &str,
    address: SocketAddr,
) -> Option<Listener> {
    let destination = Destination::of(world, view, address)?;
    let http = |version| {
        let routes = destination.routes(ClientKind::Envoy);
        let manager = manager(&destination.cluster, version, Client::App(address), routes);
        match version {
            // What HTTP/1 becomes upstream is the cluster's affair.
            Version::Http1 => vec![manager],
            Version::Http2 => vec![offer(alpn::H2), manager],
        }
    };
    let opaque = || {
        vec![
            offer_tcp(),
            tcp(&destination.cluster, &destination.backends),
        ]
    };
    let found = || {
        Version::BOTH.map(|version| FilterChain {
            filter_chain_match: Some(version.found()),
            ..chain(http(version))
        })
    };
    let mut listener = Listener {
        name: name.to_owned(),
        address: Some(filter::socket_address(address)),
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: Some(BoolValue { value: false }),
        ..Listener::default()
    };
    match destination.protocol {
        AppProtocol::Tcp => listener.filter_chains = vec![chain(opaque())],
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            listener.listener_filters = inspectors().to_vec();
            // The app may take its time before its first request.
            listener.listener_filters_timeout = Some(duration(Duration::ZERO));
            listener.filter_chains = found().to_vec();
            listener.default_filter_chain = Some(chain(http(Version::Http1)));
        }
        AppProtocol::Detect => {
            listener.listener_filters = inspectors().to_vec();
            listener.listener_filters_timeout = Some(duration(SILENCE));
            listener.continue_on_listener_filters_timeout = true;
            listener.filter_chains = found().to_vec();
            listener.default_filter_chain = Some(chain(opaque()));
        }
    }
    Some(listener)
}

/// A port of a pod that is an endpoint of a headless Service.
#[derive(Debug)]
pub(in super::super) struct HeadlessEndpoint {
    pod: ObjectKey,
    address: IpAddr,
    port: u16,
}

impl HeadlessEndpoint {
    pub(in super::super) fn pod(&self) -> &ObjectKey {
        &self.pod
    }

    pub(in super::super) fn port(&self) -> u16 {
        self.port
    }

    /// The name of its listener.
    pub(in super::super) fn listener(&self) -> ResourceName {
        ResourceName::Outbound((self.address, self.port).into())
    }

    /// The name of its cluster.
    pub(in super::super) fn cluster(&self) -> ResourceName {
        ResourceName::Pod {
            key: self.pod.clone(),
            port: self.port,
            ipv6: self.address.is_ipv6(),
        }
    }
}

/// The endpoints of a Service, if it is headless.
pub(in super::super) fn headless<'w>(
    world: &'w World,
    service: &'w Service,
) -> impl Iterator<Item = HeadlessEndpoint> + use<'w> {
    let is_headless = service.addressing == Addressing::Headless;
    let slices = is_headless.then(|| world.slices_of(&service.key));
    slices
        .into_iter()
        .flatten()
        .flat_map(|slice| ports(world, slice, |_| true))
}

/// The endpoints of headless Services at an address.
pub(in super::super) fn headless_at(
    world: &World,
    address: IpAddr,
) -> impl Iterator<Item = HeadlessEndpoint> {
    let is_headless = |slice: &&Arc<EndpointSlice>| {
        let service = world.service(&slice.service_key());
        service.is_some_and(|service| service.addressing == Addressing::Headless)
    };
    let slices = world.slices_by_address(address).filter(is_headless);
    slices.flat_map(move |slice| ports(world, slice, |ip| ip == address))
}

/// The ports of endpoints that are pods.
fn ports(
    world: &World,
    slice: &EndpointSlice,
    wanted: impl Fn(IpAddr) -> bool,
) -> Vec<HeadlessEndpoint> {
    let mut found = Vec::new();
    for endpoint in slice
        .endpoints
        .iter()
        .filter(|endpoint| wanted(endpoint.address))
    {
        let Some(pod) = world.pod_by_ip(endpoint.address) else {
            continue;
        };
        found.extend(slice.ports.iter().map(|(_, port)| HeadlessEndpoint {
            pod: pod.key.clone(),
            address: endpoint.address,
            port: *port,
        }));
    }
    found
}

/// To wherever a connection was meant to go.
fn passthrough(world: &World) -> Filter {
    let cluster = ResourceName::Passthrough.format(world.mesh());
    tcp(&cluster, &Backends::one(&cluster, false))
}

fn chain(filters: Vec<Filter>) -> FilterChain {
    FilterChain {
        filters,
        ..FilterChain::default()
    }
}
