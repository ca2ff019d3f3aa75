//! What can be sent.

use serde::{Deserialize, Serialize};

use crate::serve;

/// Connections of HTTP/1.1 and of opaque ping-pong.
const CONNECTIONS: usize = 32;
/// Connections of HTTP/2, and streams on each.
pub(super) const STREAMS: (usize, usize) = (4, 16);
/// Connections that carry bytes in bulk.
const BULKS: usize = 4;
/// Connections that are opened at a time.
const OPENED: usize = 16;
/// Connections that are held.
pub(crate) const HELD: usize = 5_000;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// HTTP/1.1 on connections that stay.
    Http1,
    /// HTTP/2 without gRPC.
    Http2,
    /// Unary gRPC.
    Grpc,
    /// Opaque bytes, there and back.
    Echo,
    /// Opaque bytes, one way.
    Bulk,
    /// Opaque connections, opened, used once and closed.
    Connect,
    /// Opaque connections, opened, used once and kept.
    Held,
}

impl Kind {
    /// Those that say what a unit costs.
    pub(crate) const COSTS: [Self; 6] = [
        Self::Http1,
        Self::Http2,
        Self::Grpc,
        Self::Echo,
        Self::Bulk,
        Self::Connect,
    ];

    /// Those whose latency is measured at a fixed rate.
    pub(crate) const PACED: [Self; 4] = [Self::Http1, Self::Http2, Self::Grpc, Self::Echo];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Echo => "echo",
            Self::Bulk => "bulk",
            Self::Connect => "connect",
            Self::Held => "held",
        }
    }

    /// What it is, and in which unit it is counted.
    pub(crate) fn describe(self) -> (String, &'static str) {
        let (connections, streams) = STREAMS;
        match self {
            Self::Http1 => (
                format!("HTTP/1.1 keep-alive, {CONNECTIONS} connections, 1 KiB back"),
                "request",
            ),
            Self::Http2 => (
                format!("HTTP/2, {connections} connections of {streams} streams, 1 KiB back"),
                "request",
            ),
            Self::Grpc => (
                format!(
                    "gRPC unary, {connections} connections of {streams} streams, 1 KiB each way"
                ),
                "request",
            ),
            Self::Echo => (
                format!("opaque TCP, there and back, {CONNECTIONS} connections, 64 B"),
                "round trip",
            ),
            Self::Bulk => (format!("opaque TCP, one way, {BULKS} connections"), "MiB"),
            Self::Connect => (
                format!("opaque TCP, a connection each, {OPENED} at a time, full handshakes"),
                "connection",
            ),
            Self::Held => (format!("{HELD} idle connections"), "connection"),
        }
    }

    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http1 => serve::HTTP1,
            Self::Http2 => serve::HTTP2,
            Self::Grpc => serve::GRPC,
            Self::Echo | Self::Bulk | Self::Connect | Self::Held => serve::TCP,
        }
    }

    pub(super) fn connections(self) -> usize {
        match self {
            Self::Http1 | Self::Echo => CONNECTIONS,
            Self::Http2 | Self::Grpc => STREAMS.0,
            Self::Bulk => BULKS,
            Self::Connect => OPENED,
            Self::Held => HELD,
        }
    }

    /// Whether it is made of requests that sidecars can read.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    /// Whether it says anything without sidecars, where nobody shakes hands.
    pub(crate) fn has_plain(self) -> bool {
        !matches!(self, Self::Connect | Self::Held)
    }

    /// Whether its answers come soon enough for their time to be of interest.
    pub(crate) fn has_latency(self) -> bool {
        !matches!(self, Self::Bulk | Self::Held)
    }
}
