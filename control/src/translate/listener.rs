//! Listeners of outbound destinations, `outbound|IP|PORT`.
//!
//! - HTTP declared: one chain, an HTTP connection manager with RDS.
//! - Opaque declared: one chain, a TCP proxy.
//! - Nothing declared: `tls_inspector` and `http_inspector` (their presence means "detect"), one chain on `http/1.1` and
//!   `h2c` with the HTTP connection manager, and the TCP proxy as the default chain.
//!
//! A route of connections makes the port of a Service opaque (see [`super::route`]).
//!
//! A Service's virtual address has its routes in RDS under the name of the cluster; a pod's own address has an inline
//! table with one route, because no HTTPRoute applies to it.

use std::net::{IpAddr, SocketAddr};

use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
};
use tulle_xds_proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use tulle_xds_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use tulle_xds_proto::google::protobuf::BoolValue;
use tulle_xds_proto::pack;

use super::filter::{self, Routes};
use super::name::ResourceName;
use super::route::Backends;
use super::{ClientKind, ProxyView, protocol, route};
use crate::store::service::AppProtocol;
use crate::store::{Pod, Service, World};

/// What an original destination turns out to be.
pub(super) struct Destination {
    pub(super) protocol: AppProtocol,
    /// The cluster behind it.
    pub(super) cluster: String,
    /// Where connections go that are opaque.
    pub(super) backends: Backends,
    /// Whether it is a Service, whose routes are in RDS under the name of the cluster.
    pub(super) is_service: bool,
}

impl Destination {
    /// What is known of an address, if anything is.
    pub(super) fn of(world: &World, view: &ProxyView, address: SocketAddr) -> Option<Self> {
        if let Some(service) = world.service_by_vip(address.ip()) {
            Self::service(world, view, address, service)
        } else {
            Self::pod(world, address, world.pod_by_ip(address.ip())?)
        }
    }

    fn service(
        world: &World,
        view: &ProxyView,
        address: SocketAddr,
        service: &Service,
    ) -> Option<Self> {
        let port = service.port(address.port())?;
        let cluster = ResourceName::Service {
            key: service.key.clone(),
            port: port.port,
        };
        let cluster = cluster.format(world.mesh());
        let routed = Backends::of(world, view, service, port);
        Some(Self {
            protocol: match routed {
                Some(_) => AppProtocol::Tcp,
                None => port.protocol,
            },
            backends: routed
                .unwrap_or_else(|| Backends::one(&cluster, service.client_ip_affinity.is_some())),
            cluster,
            is_service: true,
        })
    }

    fn pod(world: &World, address: SocketAddr, pod: &Pod) -> Option<Self> {
        if address.port() == 0 {
            return None;
        }
        let declared = protocol::pod_ports(world, pod)
            .get(&address.port())
            .map(|port| port.protocol);
        let cluster = ResourceName::Pod {
            key: pod.key.clone(),
            port: address.port(),
            ipv6: address.is_ipv6(),
        };
        let cluster = cluster.format(world.mesh());
        Some(Self {
            protocol: declared.unwrap_or_default(),
            backends: Backends::one(&cluster, false),
            cluster,
            is_service: false,
        })
    }

    /// Where its routes are.
    pub(super) fn routes(&self, kind: ClientKind) -> Routes {
        if self.is_service {
            Routes::Named(self.cluster.clone())
        } else {
            Routes::Inline(Box::new(route::to_cluster(kind, &self.cluster)))
        }
    }
}

/// The listener of an original destination.
pub(super) fn outbound(
    world: &World,
    view: &ProxyView,
    name: &str,
    address: SocketAddr,
) -> Option<Listener> {
    let destination = Destination::of(world, view, address)?;
    let http = filter::http(&destination.cluster, destination.routes(ClientKind::Tulle));
    let tcp = filter::tcp(&destination.cluster, &destination.backends);
    Some(listener(name, address, destination.protocol, http, tcp))
}

fn listener(
    name: &str,
    address: SocketAddr,
    protocol: AppProtocol,
    http: Filter,
    tcp: Filter,
) -> Listener {
    let mut listener = Listener {
        name: name.to_owned(),
        address: Some(filter::socket_address(address)),
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: Some(BoolValue { value: false }),
        ..Listener::default()
    };
    let chain = |filter| FilterChain {
        filters: vec![filter],
        ..FilterChain::default()
    };
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            listener.filter_chains = vec![chain(http)]
        }
        AppProtocol::Tcp => listener.filter_chains = vec![chain(tcp)],
        AppProtocol::Detect => {
            listener.listener_filters = inspectors().to_vec();
            listener.filter_chains = vec![FilterChain {
                filter_chain_match: Some(plain_http()),
                ..chain(http)
            }];
            listener.default_filter_chain = Some(chain(tcp));
        }
    }
    listener
}

/// Connections whose first bytes are HTTP.
pub(super) fn plain_http() -> FilterChainMatch {
    FilterChainMatch {
        application_protocols: vec!["http/1.1".to_owned(), "h2c".to_owned()],
        ..FilterChainMatch::default()
    }
}

/// What makes a listener detect protocols.
pub(super) fn inspectors() -> [ListenerFilter; 2] {
    let filter = |name: &str, config| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    };
    [
        filter(
            "envoy.filters.listener.tls_inspector",
            pack(&TlsInspector::default()),
        ),
        filter(
            "envoy.filters.listener.http_inspector",
            pack(&HttpInspector {}),
        ),
    ]
}

/// Any address, for listeners that do not bind.
pub(super) fn any_address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port)
}
