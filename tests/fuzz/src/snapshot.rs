//! Uses a snapshot as the data path does: from a destination over its listener, route and cluster to an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;

use tulle_proxy::balance::pick;
use tulle_proxy::config::cluster::{Discovery, Health};
use tulle_proxy::config::listener::{RouteSource, TcpRoute};
use tulle_proxy::config::route::RouteAction;
use tulle_proxy::config::{Cluster, InboundListener, Lookup, Protocol, RouteTable, Snapshot};

use crate::routes;

/// Goes every way that there is. What a published listener names is there as well: complete, or removed by the control plane.
pub fn exercise(snapshot: &Snapshot) {
    for (address, lookup) in &snapshot.outbound {
        if let Lookup::Known(listener) = lookup {
            assert_eq!(listener.address, *address);
            each(&listener.protocol, |source| {
                if let Some(table) = snapshot.route_table(source) {
                    self::table(table);
                }
            });
        }
    }
    if let Some(inbound) = &snapshot.inbound {
        self::inbound(inbound);
    }
    for (name, table) in &snapshot.routes {
        assert_eq!(table.name, *name);
        self::table(table);
    }
    for (name, cluster) in &snapshot.clusters {
        assert_eq!(cluster.name, *name);
        self::cluster(cluster);
    }
}

/// Every port has a protocol with somewhere to go.
pub fn inbound(listener: &InboundListener) {
    for port in listener.ports.values().chain([&listener.default]) {
        each(&port.protocol, |table| self::table(table));
    }
}

/// Sends requests and connections.
pub fn each<H>(protocol: &Protocol<H>, mut http: impl FnMut(&H)) {
    match protocol {
        Protocol::Http(of) => http(of),
        Protocol::Tcp(route) => tcp(route),
        Protocol::Detect {
            http: of,
            tcp: route,
        } => {
            http(of);
            tcp(route);
        }
    }
}

/// Inline tables are not looked up, but used.
pub fn source(source: &RouteSource) {
    match source {
        RouteSource::Named(name) => assert!(!name.is_empty()),
        RouteSource::Inline(table) => self::table(table),
    }
}

fn table(table: &RouteTable) {
    routes::exercise(table);
    for route in &table.routes {
        if let RouteAction::Forward(forward) = &route.action {
            let [one, other] = [forward.timeout, forward.per_try_timeout]
                .map(|it| it.is_none_or(|it| !it.is_zero()));
            assert!(one && other, "a time of nothing");
            assert!(
                std::time::Instant::now()
                    .checked_add(forward.timeout.unwrap_or_default())
                    .is_some()
            );
        }
    }
}

fn tcp(route: &TcpRoute) {
    let sum: u64 = route
        .clusters
        .iter()
        .map(|(_, weight)| u64::from(*weight))
        .sum();
    assert!((1..=u64::from(u32::MAX)).contains(&sum));
    assert!(route.clusters.iter().all(|(name, _)| !name.is_empty()));
}

fn cluster(cluster: &Arc<Cluster>) {
    let all = &cluster.endpoints;
    assert!(
        all.is_sorted_by(|one, other| one.address < other.address),
        "each address once"
    );
    for endpoint in all.iter() {
        assert!(endpoint.weight > 0);
        if let Some(peer) = &endpoint.mtls {
            assert!(!peer.0.is_empty() && peer.0.is_sorted(), "whom to expect");
        }
    }
    assert!(!cluster.connect_timeout.is_zero());
    assert!(cluster.outlier.max_ejection_percent <= 100);
    assert!(cluster.limits.retry_budget_percent <= 100);
    if cluster.discovery == Discovery::OriginalDst {
        assert!(all.is_empty());
    }
    let usable = |health: Health| health != Health::Unhealthy;
    let any = all.iter().any(|it| usable(it.health));
    let healthy = all.iter().any(|it| it.health == Health::Healthy);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut tried: Vec<SocketAddr> = Vec::new();
    for turn in 0..4 {
        let key = (turn % 2 == 0).then_some(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(turn));
        let picked = pick(cluster, key, &tried, 1, &mut rng);
        assert_eq!(picked.is_some(), any, "somebody is there");
        if let Some(picked) = picked {
            assert!(all.iter().any(|it| Arc::ptr_eq(it, picked)));
            assert!(usable(picked.health) && (!healthy || picked.health == Health::Healthy));
            tried.push(picked.address);
        }
    }
}
