//! What resources take once they are decoded: a few bytes on the wire may be a kilobyte here, so limits on what is kept go
//! by this. It is near enough to bound memory, and cheap.

use std::sync::Arc;

use crate::config::listener::{Protocol, RouteSource};
use crate::config::route::{Forward, PathMatch, Route, RouteAction, StringMatch};
use crate::config::{RouteTable, Workload};
use crate::xds::decode::{ClusterSpec, EndpointSet, EndpointSource, EndpointSpec, Listener};
use crate::xds::tracker::Weight;

/// An endpoint as the data path has it, beside the decoded one.
const ENDPOINT: usize = size_of::<EndpointSpec>() + 192;
/// Strings, and what the allocator adds, for each small part.
const PART: usize = 128;

impl Weight for RouteTable {
    fn weight(&self) -> usize {
        let routes: usize = self.routes.iter().map(|route| of_route(route)).sum();
        let hosts = self
            .hosts
            .as_ref()
            .map_or(0, |hosts| (2 * hosts.all().len() + hosts.domains()) * PART);
        routes + hosts
    }
}

impl Weight for Listener {
    fn weight(&self) -> usize {
        match self {
            Self::Outbound(outbound) => {
                let table = match &outbound.protocol {
                    Protocol::Http(RouteSource::Inline(table))
                    | Protocol::Detect {
                        http: RouteSource::Inline(table),
                        ..
                    } => table.weight(),
                    Protocol::Http(RouteSource::Named(_))
                    | Protocol::Detect { .. }
                    | Protocol::Tcp(_) => 0,
                };
                table + of_protocol(&outbound.protocol)
            }
            Self::Inbound(inbound) => {
                let ports = inbound.ports.values().chain([&inbound.default]);
                ports
                    .map(|port| of_inbound(&port.protocol) + of_protocol(&port.protocol))
                    .sum()
            }
        }
    }
}

impl Weight for ClusterSpec {
    fn weight(&self) -> usize {
        let endpoints = match &self.source {
            EndpointSource::Inline(set) => set.weight(),
            EndpointSource::Eds(_) | EndpointSource::OriginalDst => 0,
        };
        size_of::<Self>() + endpoints
    }
}

impl Weight for EndpointSet {
    fn weight(&self) -> usize {
        self.0.len() * ENDPOINT
    }
}

impl Weight for Workload {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

fn of_inbound(protocol: &Protocol<Arc<RouteTable>>) -> usize {
    match protocol {
        Protocol::Http(table) | Protocol::Detect { http: table, .. } => table.weight(),
        Protocol::Tcp(_) => 0,
    }
}

fn of_protocol<H>(protocol: &Protocol<H>) -> usize {
    let clusters = match protocol {
        Protocol::Tcp(tcp) | Protocol::Detect { tcp, .. } => tcp.clusters.len(),
        Protocol::Http(_) => 0,
    };
    size_of::<Protocol<H>>() + clusters * PART
}

fn of_route(route: &Route) -> usize {
    let changes = |changes: &crate::config::route::HeaderChanges| {
        changes.remove.len() + changes.set.len() + changes.add.len()
    };
    let clusters = match &route.action {
        RouteAction::Forward(Forward { clusters, hash, .. }) => {
            let each = |cluster: &crate::config::route::WeightedCluster| {
                let changed =
                    changes(&cluster.request_headers) + changes(&cluster.response_headers);
                size_of_val(cluster) + changed * PART
            };
            clusters.iter().map(each).sum::<usize>() + hash.len() * PART
        }
        RouteAction::Redirect(_) | RouteAction::Respond(_) => 0,
    };
    let matches = &route.matches;
    let path = match &matches.path {
        PathMatch::Regex(regex) => regex.memory(),
        PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::SegmentPrefix(_) => 0,
    };
    let text = |value: &StringMatch| match value {
        StringMatch::Regex(regex) => PART + regex.memory(),
        StringMatch::Present | StringMatch::Exact(_) | StringMatch::Prefix(_) => PART,
    };
    let headers: usize = matches
        .headers
        .iter()
        .map(|header| text(&header.value))
        .sum();
    let query: usize = matches.query.iter().map(|query| text(&query.value)).sum();
    let changed = changes(&route.request_headers) + changes(&route.response_headers);
    size_of_val(route) + PART + clusters + path + headers + query + changed * PART
}
