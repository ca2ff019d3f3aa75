//! Envoy's view, as a sidecar: what differs from what our own proxy is told.
//!
//! - **Listeners are real.** `outbound` binds port 15001 and hands each captured connection to the listener that has its
//!   original destination as address ([`outbound`]); what has none goes on untouched to cluster `passthrough`. `inbound`
//!   binds port 15006 ([`inbound`]).
//! - **Versions are explicit.** There is a chain for each version of HTTP, with its codec: after mesh TLS the ALPN says
//!   which, before it the HTTP inspector does.
//! - **mTLS is in the cluster** ([`tls`]): endpoints with `mtls` are called with mTLS, the ids of them all pinned, the
//!   others in plaintext. Certificate and key are files that `tulle agent` keeps fresh; the trust bundle comes over ADS.
//! - **Retries** ask two routes where ours has one, see [`super::route`].
//!
//! Envoy knows none of Tulle's own metadata, so there is none.

mod access_log;
mod cluster;
mod http;
mod inbound;
mod outbound;
mod tls;

pub(super) use cluster::{for_envoy, passthrough};
pub(super) use inbound::{listener as inbound, ports_of};
pub(super) use outbound::{capture, headless, headless_at, listener as outbound};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tulle_xds_proto::envoy::config::core::v3::Address;
use tulle_xds_proto::envoy::config::listener::v3::{
    AdditionalAddress, FilterChainMatch, ListenerFilter, listener_filter,
};
use tulle_xds_proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use tulle_xds_proto::pack;

use super::filter;
use crate::store::Pod;

/// The versions of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

impl Version {
    const BOTH: [Self; 2] = [Self::Http1, Self::Http2];

    /// Connections in which the HTTP inspector found this version.
    fn found(self) -> FilterChainMatch {
        let names: &[&str] = match self {
            Self::Http1 => &["http/1.0", "http/1.1"],
            Self::Http2 => &["h2c"],
        };
        FilterChainMatch {
            transport_protocol: RAW.to_owned(),
            application_protocols: names.iter().map(|name| (*name).to_owned()).collect(),
            ..FilterChainMatch::default()
        }
    }
}

/// Transport protocol of connections that do not begin with a ClientHello, and of those that do.
const RAW: &str = "raw_buffer";
const TLS: &str = "tls";

/// A name in Envoy's statistics, which take what is behind a dot for something else.
fn stat_name(name: &str) -> String {
    name.replace('.', "_")
}

/// Every address of the families that a pod has.
fn any_address(pod: &Pod, port: u16) -> (Address, Vec<AdditionalAddress>) {
    let families = [
        (false, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (true, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ];
    let mut addresses = families
        .into_iter()
        .filter(|(ipv6, _)| pod.ips.iter().any(|ip| ip.is_ipv6() == *ipv6))
        .map(|(_, any)| filter::socket_address(SocketAddr::new(any, port)));
    let any = SocketAddr::new(families[0].1, port);
    let first = addresses
        .next()
        .unwrap_or_else(|| filter::socket_address(any));
    let more = addresses.map(|address| AdditionalAddress {
        address: Some(address),
        ..AdditionalAddress::default()
    });
    (first, more.collect())
}

/// What finds out where a captured connection was going.
fn original_destination() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.original_dst".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(
            &OriginalDst {},
        ))),
        ..ListenerFilter::default()
    }
}
