//! `Listener`: what to do with connections, outbound to one destination or inbound to the pod.
//!
//! A chain is a connection manager (HTTP) or a TCP proxy. Both together mean that the protocol is detected, which the
//! inspectors among the listener filters declare. Inbound, a chain with a transport socket is the mesh-TLS one; where
//! it has no plaintext companion, plaintext is refused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tulle_xds_proto::ENDPOINT_METADATA;
use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3 as pb;
use tulle_xds_proto::envoy::config::listener::v3::{filter, listener_filter};
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use tulle_xds_proto::google::protobuf::{Any, value};

use super::cluster::service_of_host;
use super::error::{At, DecodeError, refuse, same_name, unpack};
use super::{INBOUND, address, balancing, listener_address, route};
use crate::config::listener::{RouteSource, TcpRoute};
use crate::config::{InboundListener, InboundPort, OutboundListener, Protocol, RouteTable};

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const ORIGINAL_DST: &str = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";

/// A listener of either kind.
#[derive(Clone, Debug)]
pub(in crate::xds) enum Listener {
    Inbound(Arc<InboundListener>),
    Outbound(Arc<OutboundListener>),
}

pub(super) fn decode(name: &str, any: &Any) -> Result<Listener, DecodeError> {
    let message: pb::Listener = unpack(any)?;
    same_name("name", &message.name, name)?;
    refuse(
        message.filter_chain_matcher.is_some(),
        "filter_chain_matcher",
        "use filter_chain_match",
    )?;
    refuse(
        message.fcds_config.is_some(),
        "fcds_config",
        "send the filter chains here",
    )?;
    let detect = inspects(&message)?;
    let chains = chains(&message)?;
    let address = match listener_address(name) {
        Some(address) => address,
        None if name == INBOUND => {
            return inbound(chains, detect).map(Arc::new).map(Listener::Inbound);
        }
        // Foreign control planes name listeners as they like.
        None if message.traffic_direction() != TrafficDirection::Inbound => {
            address::decode("address", message.address.as_ref())?
        }
        None => {
            let remedy = "what the pod accepts is one listener of the name `inbound`";
            return Err(DecodeError::invalid("traffic_direction", "INBOUND", remedy));
        }
    };
    outbound(name, address, chains, detect)
        .map(Arc::new)
        .map(Listener::Outbound)
}

/// The destination that a listener is for, whatever else may be wrong with it.
pub(super) fn destination(any: &Any) -> Option<SocketAddr> {
    let message: pb::Listener = unpack(any).ok()?;
    let named = listener_address(&message.name);
    named.or_else(|| address::decode("address", message.address.as_ref()).ok())
}

/// One filter chain, reduced to what matters here.
struct Chain {
    field: String,
    /// Host of the Service that the chain is for, if the control plane says so.
    service: Option<String>,
    port: Option<u16>,
    /// It takes mesh TLS.
    tls: bool,
    /// It wants an application protocol, that is: the http inspector's word that it is HTTP.
    http_only: bool,
    filter: Filter,
}

enum Filter {
    Http(RouteSource),
    Tcp(TcpRoute),
}

/// Whether the protocol is detected.
fn inspects(message: &pb::Listener) -> Result<bool, DecodeError> {
    let mut detect = false;
    for (i, listener_filter) in message.listener_filters.iter().enumerate() {
        let Some(listener_filter::ConfigType::TypedConfig(any)) = &listener_filter.config_type
        else {
            let error = DecodeError::unsupported("config_type", "use typed_config");
            return Err(error).at_index("listener_filters", i);
        };
        match message_name(any) {
            HTTP_INSPECTOR => detect = true,
            // TLS is always looked for, and the original destination always found.
            TLS_INSPECTOR | ORIGINAL_DST => {}
            other => {
                let remedy = "only tls_inspector, http_inspector and original_dst are known";
                let error = DecodeError::invalid("typed_config", other, remedy);
                return Err(error).at_index("listener_filters", i);
            }
        }
    }
    Ok(detect)
}

fn chains(message: &pb::Listener) -> Result<Vec<Chain>, DecodeError> {
    let indexed = message.filter_chains.iter().enumerate();
    let named = indexed.map(|(i, chain)| (format!("filter_chains[{i}]"), chain));
    let default = message.default_filter_chain.iter();
    let default = default.map(|chain| ("default_filter_chain".to_owned(), chain));
    named
        .chain(default)
        .map(|(field, message)| chain(message, &field).at(&field))
        .collect()
}

fn chain(message: &pb::FilterChain, field: &str) -> Result<Chain, DecodeError> {
    let nothing = pb::FilterChainMatch::default();
    let rule = message.filter_chain_match.as_ref().unwrap_or(&nothing);
    check_match(rule).at("filter_chain_match")?;
    let port = match &rule.destination_port {
        None => None,
        Some(port) => Some(u16::try_from(port.value).map_err(|_| {
            let field = "filter_chain_match.destination_port";
            DecodeError::invalid(field, port.value, "a port is at most 65535")
        })?),
    };
    let is_mesh = |protocol: &String| protocol.starts_with("tulle-");
    let tls = message.transport_socket.is_some()
        || rule.transport_protocol == "tls" && rule.application_protocols.iter().any(is_mesh);
    Ok(Chain {
        field: field.to_owned(),
        service: service_host(message),
        port,
        tls,
        http_only: !rule.application_protocols.is_empty() && !tls,
        filter: filter(&message.filters)?,
    })
}

fn service_host(message: &pb::FilterChain) -> Option<String> {
    let ours = message
        .metadata
        .as_ref()?
        .filter_metadata
        .get(ENDPOINT_METADATA)?;
    match ours.fields.get("service")?.kind.as_ref()? {
        value::Kind::StringValue(host) => Some(host.clone()),
        _ => None,
    }
}

fn check_match(rule: &pb::FilterChainMatch) -> Result<(), DecodeError> {
    let by_source = rule.source_type != 0
        || !rule.source_prefix_ranges.is_empty()
        || !rule.direct_source_prefix_ranges.is_empty()
        || !rule.source_ports.is_empty();
    refuse(
        by_source,
        "source_prefix_ranges",
        "connections are not told apart by source",
    )?;
    refuse(
        !rule.prefix_ranges.is_empty(),
        "prefix_ranges",
        "use destination_port",
    )?;
    refuse(
        !rule.server_names.is_empty(),
        "server_names",
        "connections are not told apart by SNI",
    )
}

fn filter(filters: &[pb::Filter]) -> Result<Filter, DecodeError> {
    let [only] = filters else {
        let remedy = "use one filter: an http_connection_manager or a tcp_proxy";
        return Err(DecodeError::invalid(
            "filters",
            format_args!("{} filters", filters.len()),
            remedy,
        ));
    };
    let Some(filter::ConfigType::TypedConfig(any)) = &only.config_type else {
        return Err(DecodeError::unsupported(
            "filters[0].config_type",
            "use typed_config",
        ));
    };
    let decoded = match message_name(any) {
        HCM => unpack(any)
            .and_then(|manager| http(&manager))
            .map(Filter::Http),
        TCP_PROXY => unpack(any)
            .and_then(|proxy| opaque(&proxy))
            .map(Filter::Tcp),
        other => {
            let remedy = "use an http_connection_manager or a tcp_proxy";
            Err(DecodeError::invalid("", other, remedy))
        }
    };
    decoded.at("filters[0].typed_config")
}

fn http(message: &hcm::HttpConnectionManager) -> Result<RouteSource, DecodeError> {
    use hcm::http_connection_manager::{RouteSpecifier, StripPortMode};
    let strips_port = message.strip_matching_host_port
        || message.strip_port_mode == Some(StripPortMode::StripAnyHostPort(true));
    let remedy = "use ignore_port_in_host_matching in the routes; the host itself stays";
    refuse(strips_port, "strip_any_host_port", remedy)?;
    let strips_dot = message.strip_trailing_host_dot;
    refuse(strips_dot, "strip_trailing_host_dot", "the host stays")?;
    for (i, filter) in message.http_filters.iter().enumerate() {
        let any = match &filter.config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(any)) => message_name(any),
            _ => "",
        };
        if any != ROUTER && !filter.is_optional && !filter.disabled {
            let remedy = "only the router filter is known; mark others is_optional";
            let error = DecodeError::invalid("", &filter.name, remedy);
            return Err(error).at_index("http_filters", i);
        }
    }
    match &message.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
            Ok(RouteSource::Named(rds.route_config_name.as_str().into()))
        }
        Some(RouteSpecifier::RouteConfig(config)) => Ok(RouteSource::Inline(Arc::new(
            route::table(config).at("route_config")?,
        ))),
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(DecodeError::unsupported(
            "scoped_routes",
            "use rds or route_config",
        )),
        _ => Err(DecodeError::missing(
            "rds.route_config_name",
            "use rds or route_config",
        )),
    }
}

fn opaque(message: &tcp::TcpProxy) -> Result<TcpRoute, DecodeError> {
    use tcp::tcp_proxy::ClusterSpecifier;
    refuse(
        message.tunneling_config.is_some(),
        "tunneling_config",
        "remove it",
    )?;
    refuse(
        message.metadata_match.is_some(),
        "metadata_match",
        "use one cluster for each subset",
    )?;
    let clusters = match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(route::cluster_name("cluster", name)?, 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let decode =
                |(i, cluster): (usize, &tcp::tcp_proxy::weighted_cluster::ClusterWeight)| {
                    let name = route::cluster_name("name", &cluster.name);
                    Ok((
                        name.at_index("weighted_clusters.clusters", i)?,
                        cluster.weight,
                    ))
                };
            weighted
                .clusters
                .iter()
                .enumerate()
                .map(decode)
                .collect::<Result<_, DecodeError>>()?
        }
        None => return Err(DecodeError::missing("cluster", "name the cluster")),
    };
    let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 || total > u64::from(u32::MAX) {
        let remedy = "the sum of weights must be greater than zero and fit 32 bits";
        return Err(DecodeError::invalid("weighted_clusters", total, remedy));
    }
    Ok(TcpRoute {
        clusters,
        by_source: balancing::by_source(&message.hash_policy)?,
    })
}

fn outbound(
    name: &str,
    address: SocketAddr,
    chains: Vec<Chain>,
    detect: bool,
) -> Result<OutboundListener, DecodeError> {
    for chain in &chains {
        let terminates = "outbound connections are plaintext here";
        refuse(chain.tls, "transport_socket", terminates).at(&chain.field)?;
        // A destination port would be the listener's own.
        let other_port = chain.port.is_some_and(|port| port != address.port());
        let field = "filter_chain_match.destination_port";
        refuse(other_port, field, "a listener stands for one port").at(&chain.field)?;
    }
    let protocol = protocol(chains, detect, "filter_chains")?;
    Ok(OutboundListener {
        name: name.into(),
        address,
        protocol,
    })
}

fn inbound(chains: Vec<Chain>, detect: bool) -> Result<InboundListener, DecodeError> {
    let mut by_port: HashMap<Option<u16>, Vec<Chain>> = HashMap::new();
    for chain in chains {
        by_port.entry(chain.port).or_default().push(chain);
    }
    let remedy = "add a default pair of chains, without destination_port";
    let default = by_port
        .remove(&None)
        .ok_or_else(|| DecodeError::missing("filter_chains", remedy))?;
    let default = inbound_port(default, detect, "any")?;
    let mut ports = HashMap::with_capacity(by_port.len());
    for (port, chains) in by_port {
        if let Some(port) = port {
            ports.insert(port, inbound_port(chains, detect, &port.to_string())?);
        }
    }
    Ok(InboundListener { ports, default })
}

fn inbound_port(chains: Vec<Chain>, detect: bool, port: &str) -> Result<InboundPort, DecodeError> {
    let field = format!("filter_chains[destination_port={port}]");
    if !chains.iter().any(|chain| chain.tls) {
        // Without it one could not tell STRICT from PERMISSIVE.
        let remedy = "add the mesh-TLS chain, with a transport_socket";
        return Err(DecodeError::missing("transport_socket", remedy)).at(field);
    }
    let plaintext = chains.iter().any(|chain| !chain.tls);
    let service = chains
        .iter()
        .find_map(|chain| service_of_host(chain.service.as_deref()?))
        .map(Arc::new);
    let protocol = match protocol(chains, detect, &field)? {
        Protocol::Http(http) => Protocol::Http(inline(http, &field)?),
        Protocol::Tcp(tcp) => Protocol::Tcp(tcp),
        Protocol::Detect { http, tcp } => Protocol::Detect {
            http: inline(http, &field)?,
            tcp,
        },
    };
    Ok(InboundPort {
        plaintext,
        protocol,
        service,
    })
}

fn inline(source: RouteSource, field: &str) -> Result<Arc<RouteTable>, DecodeError> {
    match source {
        RouteSource::Inline(table) => Ok(table),
        RouteSource::Named(_) => Err(DecodeError::unsupported(
            "rds",
            "inbound routes are sent inline (route_config)",
        ))
        .at(field),
    }
}

/// What the chains of one port mean together. Of several of a kind the first counts.
fn protocol(
    chains: Vec<Chain>,
    detect: bool,
    field: &str,
) -> Result<Protocol<RouteSource>, DecodeError> {
    let (mut http, mut tcp, mut http_only) = (None, None, true);
    for chain in chains {
        match chain.filter {
            Filter::Http(source) => {
                http_only &= chain.http_only || chain.tls;
                http.get_or_insert(source);
            }
            Filter::Tcp(route) => {
                tcp.get_or_insert(route);
            }
        }
    }
    match (http, tcp) {
        (Some(http), None) => Ok(Protocol::Http(http)),
        (None, Some(tcp)) => Ok(Protocol::Tcp(tcp)),
        (Some(http), Some(tcp)) if detect && http_only => Ok(Protocol::Detect { http, tcp }),
        (Some(_), Some(_)) => {
            let remedy = "HTTP and TCP chains together need the http_inspector, and the HTTP one \
                application_protocols";
            Err(DecodeError::missing("listener_filters", remedy)).at(field)
        }
        (None, None) => Err(DecodeError::missing(field, "add a filter chain")),
    }
}

fn message_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}
