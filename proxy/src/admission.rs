//! Whether a connection may be plaintext: what the control plane says at its beginning, and while it lives.

use std::net::SocketAddr;

use crate::config::listener::Protocol;
use crate::config::route::RouteAction;
use crate::config::{Lookup, Snapshot};
use crate::conn::{Direction, Downstream, Security};
use crate::worker::Worker;

/// What applies to a port, as far as it matters before the first request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Whether a client may come without TLS.
    pub(crate) plaintext: bool,
    /// Whether plaintext that looks like HTTP is HTTP.
    pub(crate) http: bool,
    /// Whether plaintext is HTTP whatever it looks like.
    pub(crate) declared_http: bool,
}

impl Policy {
    /// The policy now; `None` before there is any.
    pub(crate) fn of(worker: &Worker, original_dst: SocketAddr) -> Option<Self> {
        let snapshot = worker.config.load();
        let port = snapshot.inbound.as_ref()?.port(original_dst.port());
        Some(Self {
            plaintext: port.plaintext,
            http: !matches!(port.protocol, Protocol::Tcp(_)),
            declared_http: matches!(port.protocol, Protocol::Http(_)),
        })
    }
}

/// Resolves, with the reason, when a live connection has to end: a plaintext one to the app whose port has become
/// STRICT, or one that passes through to a destination that has joined the mesh.
pub(crate) async fn ends(
    worker: &Worker,
    downstream: &Downstream,
    passes_through: bool,
) -> &'static str {
    match downstream.direction {
        Direction::Inbound if downstream.security == Security::Plaintext => {
            becomes_strict(worker, downstream).await
        }
        Direction::Outbound if passes_through => {
            becomes_mtls(worker, downstream.original_dst).await
        }
        _ => std::future::pending().await,
    }
}

async fn becomes_strict(worker: &Worker, downstream: &Downstream) -> &'static str {
    let mut changed = worker.config.changed();
    loop {
        if Policy::of(worker, downstream.original_dst).is_some_and(|policy| !policy.plaintext) {
            return "the port has become STRICT";
        }
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn becomes_mtls(worker: &Worker, destination: SocketAddr) -> &'static str {
    let mut changed = worker.config.changed();
    let _in_use = worker.config.hold(destination);
    loop {
        if is_mtls(&worker.config.load(), destination) {
            return "the destination has joined the mesh";
        }
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Whether one of the endpoints behind a destination expects mutual TLS.
fn is_mtls(snapshot: &Snapshot, destination: SocketAddr) -> bool {
    let Some(Lookup::Known(listener)) = snapshot.outbound.get(&destination) else {
        return false;
    };
    let (tcp, http) = match &listener.protocol {
        Protocol::Tcp(tcp) => (Some(tcp), None),
        Protocol::Http(http) => (None, Some(http)),
        Protocol::Detect { tcp, http } => (Some(tcp), Some(http)),
    };
    let routes = http.and_then(|source| snapshot.route_table(source));
    let routed = routes.iter().flat_map(|table| &table.routes);
    let routed = routed.flat_map(|route| match &route.action {
        RouteAction::Forward(forward) => forward.clusters.as_slice(),
        RouteAction::Redirect(_) | RouteAction::Respond(_) => &[],
    });
    let opaque = tcp.into_iter().flat_map(|route| &route.clusters);
    opaque
        .map(|(name, _)| name)
        .chain(routed.map(|cluster| &cluster.name))
        .filter_map(|name| snapshot.cluster(name))
        .flat_map(|cluster| cluster.endpoints.iter())
        .any(|endpoint| endpoint.mtls.is_some())
}
