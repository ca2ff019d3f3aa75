//! Limits on what a peer can make grow: how often each was reached, and who reached it.
//!
//! One family of counters for the whole data path, `tulle_limits_reached_total`, and with it a few lines of the log for each
//! limit and peer, so that a flood does not flood the log, nor hide what others do. Labels are names of [`Limit`] only, so the
//! family is bounded. Nothing here is on the path of a request that keeps within the limits.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tulle_identity::SpiffeId;
use tulle_runtime::gate::Gates;

use crate::conn::{Direction, Downstream};

tulle_runtime::named! {
    /// Something that a peer can make grow only so far.
    pub enum Limit {
        /// Captured connections that are open: nothing more is accepted for now.
        Connections = "connections",
        /// Files that the process may open, used up all the same.
        Files = "files",
        /// Requests in flight on a worker: more are refused.
        Requests = "requests",
        /// Memory: connections, and then requests, are refused.
        Memory = "memory",
        /// Bytes or fields of a head on HTTP/1: a request is refused with 414 or 431, an answer becomes 502.
        Head = "head",
        /// Interim answers (1xx) of a server to one request: that gets 502, and an HTTP/1 connection ends, or an HTTP/2 stream.
        Interim = "interim",
        /// Time that the head of an HTTP/1 request takes: it is refused.
        HeadTime = "head_time",
        /// Time of a connection without a first request: it is closed.
        FirstRequest = "first_request",
        /// Time of a connection without another request: it is closed.
        Idle = "idle",
        /// Time that a client pauses within a request's body: the request is refused.
        Body = "body",
        /// Time that a client leaves its answer unread: the connection is broken.
        Unread = "unread",
        /// Connections with mTLS that are made to one peer: more requests wait for their turn.
        Connecting = "connecting",
        /// Connections to a server for operators, metrics or readiness: the oldest is closed.
        AdminConnections = "admin_connections",
        /// HTTP/2 streams that are open: more are refused.
        H2Streams = "h2_streams",
        /// HTTP/2 streams that were reset before they were looked at.
        H2PendingResets = "h2_pending_resets",
        /// HTTP/2 streams that had to be reset or refused for what the peer sent on them.
        H2LocalResets = "h2_local_resets",
        /// Requests that a client gave up.
        H2GivenUp = "h2_given_up",
        /// Control frames.
        H2ControlFrames = "h2_control_frames",
        /// Pieces of a head on HTTP/2.
        H2Continuations = "h2_continuations",
        /// Decoded size of a head on HTTP/2, by so much that the connection ends.
        H2HeaderList = "h2_header_list",
        /// DATA frames with little or nothing in them.
        H2DataFrames = "h2_data_frames",
        /// Time in which a client takes nothing of an answer on HTTP/2: it is cut off.
        H2Flush = "h2_flush",
        /// Time in which a peer answers no PING on HTTP/2: the connection is broken.
        H2KeepAlive = "h2_keep_alive",
        /// Anything else that HTTP/2's library finds too much.
        H2Flood = "h2_flood",
    }
}

/// Who reached a limit.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its address.
    pub address: SocketAddr,
    /// What it has proven to be.
    pub id: Option<&'a SpiffeId>,
}

impl<'a> From<&'a Downstream> for Who<'a> {
    fn from(downstream: &'a Downstream) -> Self {
        Self {
            address: downstream.peer,
            id: downstream.peer_id(),
        }
    }
}

/// Counts limits that were reached, over all workers.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    reached: Family<Labels, Counter>,
    told: Arc<Gates<Labels>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    limit: &'static str,
    listener: &'static str,
}

impl Limits {
    /// Registers the family.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let limits = Self::default();
        registry.register(
            "limits_reached",
            "Limits that a peer reached on a captured connection, on one made for it, or at a server of the sidecar's own",
            limits.reached.clone(),
        );
        limits
    }

    /// A peer reached a limit: counts it and, unless that was told of it just now, says who did what. `listener` is the one
    /// that the traffic came by.
    pub fn reached(&self, limit: Limit, listener: Direction, who: Who<'_>, what: impl Display) {
        self.reached_at(limit, listener.name(), who, what);
    }

    /// As [`Limits::reached`], at a server of the sidecar's own.
    pub fn reached_at(
        &self,
        limit: Limit,
        listener: &'static str,
        who: Who<'_>,
        what: impl Display,
    ) {
        let labels = Labels {
            limit: limit.name(),
            listener,
        };
        self.reached.get_or_create(&labels).inc();
        if let Some(unsaid) = self.told.pass(&labels, who.address.ip()) {
            tracing::warn!(
                limit = limit.name(),
                listener,
                peer.addr = %who.address,
                peer.id = who.id.map(tracing::field::display),
                unsaid,
                "a limit was reached: {what}"
            );
        }
    }

    /// How often a limit was reached, for tests.
    #[cfg(test)]
    pub(crate) fn count(&self, limit: Limit, listener: Direction) -> u64 {
        self.count_at(limit, listener.name())
    }

    /// As [`Limits::count`], at a server of the sidecar's own.
    #[cfg(test)]
    pub(crate) fn count_at(&self, limit: Limit, listener: &'static str) -> u64 {
        let labels = Labels {
            limit: limit.name(),
            listener,
        };
        self.reached.get_or_create(&labels).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_counted_told_or_not() {
        let mut registry = Registry::default();
        let limits = Limits::register(registry.sub_registry_with_prefix("tulle"));
        let who = Who {
            address: SocketAddr::from(([10, 0, 0, 1], 4711)),
            id: None,
        };
        for _ in 0..3 {
            limits.reached(Limit::H2Flood, Direction::Inbound, who, "many resets");
        }
        assert_eq!(limits.count(Limit::H2Flood, Direction::Inbound), 3);
        assert_eq!(limits.count(Limit::H2Flood, Direction::Outbound), 0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series = "tulle_limits_reached_total{limit=\"h2_flood\",listener=\"inbound\"} 3";
        assert!(text.contains(series), "{text}");
    }
}
