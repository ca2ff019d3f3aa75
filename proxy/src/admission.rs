//! What the control plane lets in on a port of the app, before and during a connection.

use std::net::SocketAddr;

use crate::config::listener::Protocol;
use crate::conn::{Direction, Downstream, Security};
use crate::worker::Worker;

/// What applies to a port, as far as it matters before the first request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Whether a client may come without TLS.
    pub(crate) plaintext: bool,
    /// Whether plaintext that looks like HTTP is HTTP.
    pub(crate) http: bool,
}

impl Policy {
    /// The policy now; `None` before there is any.
    pub(crate) fn of(worker: &Worker, original_dst: SocketAddr) -> Option<Self> {
        let snapshot = worker.config.load();
        let port = snapshot.inbound.as_ref()?.port(original_dst.port());
        Some(Self {
            plaintext: port.plaintext,
            http: !matches!(port.protocol, Protocol::Tcp(_)),
        })
    }
}

/// Resolves when a live plaintext connection to the app is no longer allowed.
pub(crate) async fn becomes_forbidden(worker: &Worker, downstream: &Downstream) -> &'static str {
    let plaintext = downstream.security == Security::Plaintext;
    if downstream.direction != Direction::Inbound || !plaintext {
        return std::future::pending().await;
    }
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
