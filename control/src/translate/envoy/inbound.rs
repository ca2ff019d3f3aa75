//! Envoy's `inbound`: the same rules as for our own proxy ([`super::super::inbound`]), as Envoy matches them.
//!
//! Envoy does not look back once a criterion matched: a port with chains of its own has nothing else, and a connection
//! that begins with a ClientHello only those for TLS. So for each port every case has its chain: mesh TLS by ALPN, and
//! where plaintext is accepted each version of HTTP, the rest, and the app's own TLS, which passes untouched.

use std::collections::BTreeSet;
use std::time::Duration;

use tulle_runtime::names::{alpn, ports};
use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::{
    MatchSet, Rule,
};
use tulle_xds_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
    ListenerFilterChainMatchPredicate,
};
use tulle_xds_proto::envoy::r#type::v3::Int32Range;

use super::super::filter::{Routes, duration, number};
use super::super::listener::inspectors;
use super::super::mtls::Effective;
use super::super::name::ResourceName;
use super::super::route::Backends;
use super::super::{protocol, route};
use super::http::{Client, manager, tcp};
use super::{RAW, TLS, Version, any_address, original_destination, tls};
use crate::store::policy::MtlsMode;
use crate::store::service::AppProtocol;
use crate::store::{ObjectKey, World};

/// How long the first byte of a client is waited for; a ClientHello is there at once.
const SILENCE: Duration = Duration::from_secs(1);

/// Builds the listener of a pod.
pub(in super::super) fn listener(world: &World, pod: &ObjectKey) -> Option<Listener> {
    let pod = world.pod(pod)?;
    let policies = Effective::of(world, pod);
    let declared = protocol::pod_ports(world, pod);
    let numbers: BTreeSet<u16> = declared.keys().copied().chain(policies.ports()).collect();
    // Whoever connects to this very port would go round in circles: a chain without filters closes.
    let mut chains = vec![FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: number(ports::INBOUND.into()),
            ..FilterChainMatch::default()
        }),
        ..FilterChain::default()
    }];
    let ports: Vec<Port<'_>> = numbers
        .into_iter()
        .filter(|number| *number != ports::INBOUND)
        .map(|number| Port {
            world,
            number,
            protocol: declared
                .get(&number)
                .map(|port| port.protocol)
                .unwrap_or_default(),
            mode: policies.mode(number),
        })
        .collect();
    let others = Port {
        world,
        number: 0,
        protocol: AppProtocol::Detect,
        mode: policies.default_mode(),
    };
    chains.extend(ports.iter().chain([&others]).flat_map(Port::chains));
    let opaque = ports
        .iter()
        .filter(|port| port.protocol == AppProtocol::Tcp);
    let (address, additional_addresses) = any_address(pod, ports::INBOUND);
    Some(Listener {
        name: ResourceName::Inbound.format(world.mesh()),
        address: Some(address),
        additional_addresses,
        traffic_direction: TrafficDirection::Inbound.into(),
        listener_filters: listener_filters(opaque.map(|port| port.number).collect()),
        listener_filters_timeout: Some(duration(SILENCE)),
        continue_on_listener_filters_timeout: true,
        filter_chains: chains,
        ..Listener::default()
    })
}

/// The inspectors; no HTTP is looked for on opaque ports, where a client that closes its side early would be cut off.
fn listener_filters(opaque: Vec<u16>) -> Vec<ListenerFilter> {
    let [tls, mut http] = inspectors();
    let mut ports: Vec<_> = opaque.into_iter().map(is_port).collect();
    http.filter_disabled = if ports.len() < 2 {
        ports.pop()
    } else {
        Some(ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules: ports })),
        })
    };
    vec![original_destination(), tls, http]
}

fn is_port(port: u16) -> ListenerFilterChainMatchPredicate {
    let start = i32::from(port);
    ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(Int32Range {
            start,
            end: start + 1,
        })),
    }
}

/// The ports that a pod's `inbound` has clusters for; 0 stands for all others.
pub(in super::super) fn ports_of(world: &World, pod: &ObjectKey) -> BTreeSet<u16> {
    let Some(pod) = world.pod(pod) else {
        return BTreeSet::new();
    };
    let declared = protocol::pod_ports(world, pod).into_keys();
    let named = Effective::of(world, pod);
    declared.chain(named.ports()).chain([0]).collect()
}

/// One port, or all those without an entry of their own.
struct Port<'a> {
    world: &'a World,
    number: u16,
    protocol: AppProtocol,
    mode: MtlsMode,
}

impl Port<'_> {
    fn chains(&self) -> Vec<FilterChain> {
        let (http, opaque) = match self.protocol {
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => (true, false),
            AppProtocol::Tcp => (false, true),
            AppProtocol::Detect => (true, true),
        };
        let mut chains = Vec::new();
        if http {
            chains.extend(Version::BOTH.map(|version| {
                let filter = self.manager(version, Client::Peer);
                self.mesh(&self.alpn(version), filter)
            }));
        }
        if opaque {
            chains.push(self.mesh(&[alpn::TCP], self.tcp()));
        }
        if self.mode == MtlsMode::Strict {
            return chains;
        }
        if http {
            chains.extend(Version::BOTH.map(|version| {
                self.chain(version.found(), self.manager(version, Client::Stranger))
            }));
        }
        let rest = if opaque {
            self.tcp()
        } else {
            self.manager(Version::Http1, Client::Stranger)
        };
        chains.push(self.chain(transport(RAW), rest));
        chains.push(self.chain(transport(TLS), self.tcp()));
        chains
    }

    /// Under STRICT the names that clients outside the mesh's own know are accepted too, with the same certificate.
    fn alpn(&self, version: Version) -> Vec<&'static [u8]> {
        let (own, foreign): (&[u8], &[u8]) = match version {
            Version::Http1 => (alpn::HTTP1, b"http/1.1"),
            Version::Http2 => (alpn::H2, b"h2"),
        };
        let foreign = (self.mode == MtlsMode::Strict).then_some(foreign);
        [own].into_iter().chain(foreign).collect()
    }

    fn mesh(&self, alpn: &[&[u8]], filter: Filter) -> FilterChain {
        let names = alpn.iter().map(|name| String::from_utf8_lossy(name));
        let matches = FilterChainMatch {
            application_protocols: names.map(Into::into).collect(),
            ..transport(TLS)
        };
        FilterChain {
            transport_socket: Some(tls::downstream(self.world.mesh(), alpn)),
            ..self.chain(matches, filter)
        }
    }

    fn chain(&self, matches: FilterChainMatch, filter: Filter) -> FilterChain {
        let port = (self.number != 0).then(|| u32::from(self.number));
        FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                destination_port: port.and_then(number),
                ..matches
            }),
            filters: vec![filter],
            ..FilterChain::default()
        }
    }

    fn cluster(&self) -> String {
        ResourceName::App(self.number).format(self.world.mesh())
    }

    fn manager(&self, version: Version, client: Client) -> Filter {
        let cluster = self.cluster();
        let routes = Routes::Inline(Box::new(route::to_app(&cluster)));
        manager(&cluster, version, client, routes)
    }

    fn tcp(&self) -> Filter {
        let cluster = self.cluster();
        tcp(&cluster, &Backends::one(&cluster, false))
    }
}

fn transport(protocol: &str) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: protocol.to_owned(),
        ..FilterChainMatch::default()
    }
}
