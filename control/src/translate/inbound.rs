//! The listener `inbound`: what a sidecar accepts for the app in its own pod.
//!
//! Ports that a Service targets or a policy names have chains with their `destination_port`; chains without one are for
//! every other port. For each port:
//!
//! - Mesh TLS is always there: `transport_protocol: tls`, a `DownstreamTlsContext` that requires a client certificate, and
//!   an HTTP connection manager on ALPN `tulle-h2`/`tulle-http1`, or a TCP proxy on `tulle-tcp`, or a chain for each where
//!   nothing is declared. Under STRICT the HTTP chain also takes `h2` and `http/1.1`.
//! - Plaintext is absent under STRICT: a chain without transport socket, which also gets the app's own TLS; where nothing
//!   is declared, one on `raw_buffer` with `http/1.1`/`h2c` for HTTP and one for the rest.
//!
//! Every chain leads to cluster `inbound|PORT||` (port 0 for the other ports); HTTP chains carry an inline table with one
//! route without retries. `metadata.filter_metadata["tulle.dev"]` of a chain has the one field `service`, the host of the
//! Service that the port belongs to, if it is exactly one.

use std::collections::{BTreeSet, HashMap};

use tulle_runtime::names::{alpn, ports};
use tulle_xds_proto::envoy::config::core::v3::{
    Metadata, TrafficDirection, TransportSocket, transport_socket,
};
use tulle_xds_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext,
};
use tulle_xds_proto::google::protobuf::{BoolValue, Struct, Value, value};
use tulle_xds_proto::{ENDPOINT_METADATA, pack};

use super::filter::{self, Routes};
use super::mtls::Effective;
use super::name::{ResourceName, host};
use super::protocol::PodPort;
use super::route::Backends;
use super::{listener, protocol, route};
use crate::store::policy::MtlsMode;
use crate::store::service::AppProtocol;
use crate::store::{ObjectKey, World};

/// Builds the listener of a pod.
pub(super) fn listener(world: &World, pod: &ObjectKey) -> Option<Listener> {
    let pod = world.pod(pod)?;
    let policies = Effective::of(world, pod);
    let declared = protocol::pod_ports(world, pod);
    let numbers: BTreeSet<u16> = declared.keys().copied().chain(policies.ports()).collect();

    let unnamed = PodPort {
        protocol: AppProtocol::Detect,
        service: None,
    };
    let mut chains = Vec::new();
    for number in numbers {
        let port = declared.get(&number).unwrap_or(&unnamed);
        chains.extend(chains_of(world, number, port, policies.mode(number)));
    }
    chains.extend(chains_of(world, 0, &unnamed, policies.default_mode()));
    Some(Listener {
        name: ResourceName::Inbound.format(world.mesh()),
        address: Some(filter::socket_address(listener::any_address(
            ports::INBOUND,
        ))),
        traffic_direction: TrafficDirection::Inbound.into(),
        listener_filters: listener::inspectors().to_vec(),
        filter_chains: chains,
        ..Listener::default()
    })
}

fn chains_of(world: &World, number: u16, port: &PodPort, mode: MtlsMode) -> Vec<FilterChain> {
    let cluster = ResourceName::App(number).format(world.mesh());
    let metadata = port
        .service
        .as_ref()
        .map(|key| service_metadata(host(world.mesh(), key)));
    let http = || filter::http(&cluster, Routes::Inline(Box::new(route::to_app(&cluster))));
    let tcp = || filter::tcp(&cluster, &Backends::one(&cluster, false));
    let chain = |kind: Chain, filter: Filter| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: if number == 0 {
                None
            } else {
                filter::number(number.into())
            },
            ..kind.matches(mode)
        }),
        filters: vec![filter],
        metadata: metadata.clone(),
        transport_socket: kind.is_mesh().then(|| mesh_tls(kind.alpn(mode))),
        ..FilterChain::default()
    };
    let (speaks_http, speaks_tcp) = match port.protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => (true, false),
        AppProtocol::Tcp => (false, true),
        AppProtocol::Detect => (true, true),
    };
    let plaintext = mode != MtlsMode::Strict;
    let detect = speaks_http && speaks_tcp;
    let mut chains = Vec::new();
    if speaks_http {
        chains.push(chain(Chain::MeshHttp, http()));
    }
    if speaks_tcp {
        chains.push(chain(Chain::MeshTcp, tcp()));
    }
    if speaks_http && plaintext {
        chains.push(chain(
            if detect {
                Chain::DetectedHttp
            } else {
                Chain::Plain
            },
            http(),
        ));
    }
    if speaks_tcp && plaintext {
        chains.push(chain(Chain::Plain, tcp()));
    }
    chains
}

/// The chains that a port may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    MeshHttp,
    MeshTcp,
    DetectedHttp,
    Plain,
}

impl Chain {
    fn is_mesh(self) -> bool {
        matches!(self, Self::MeshHttp | Self::MeshTcp)
    }

    fn alpn(self, mode: MtlsMode) -> Vec<String> {
        let own: &[&[u8]] = if self == Self::MeshTcp {
            &[alpn::TCP]
        } else {
            &[alpn::H2, alpn::HTTP1]
        };
        let foreign: &[&[u8]] = if self == Self::MeshHttp && mode == MtlsMode::Strict {
            &[b"h2", b"http/1.1"]
        } else {
            &[]
        };
        own.iter()
            .chain(foreign)
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    fn matches(self, mode: MtlsMode) -> FilterChainMatch {
        match self {
            Self::MeshHttp | Self::MeshTcp => FilterChainMatch {
                transport_protocol: "tls".to_owned(),
                application_protocols: self.alpn(mode),
                ..FilterChainMatch::default()
            },
            Self::DetectedHttp => FilterChainMatch {
                transport_protocol: "raw_buffer".to_owned(),
                ..listener::plain_http()
            },
            // No transport protocol: the app's own TLS is not ours to refuse.
            Self::Plain => FilterChainMatch::default(),
        }
    }
}

fn mesh_tls(alpn_protocols: Vec<String>) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols,
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

fn service_metadata(host: String) -> Metadata {
    let fields = HashMap::from([(
        "service".to_owned(),
        Value {
            kind: Some(value::Kind::StringValue(host)),
        },
    )]);
    let filter_metadata = HashMap::from([(ENDPOINT_METADATA.to_owned(), Struct { fields })]);
    Metadata {
        filter_metadata,
        ..Metadata::default()
    }
}
