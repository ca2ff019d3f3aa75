//! The record of one HTTP request: filled along the way, reported once at its end.
//!
//! Everything in it is cheap to keep: handles on config, and header values that share the request's own buffer.
//! Formatting happens in the exporters, if at all.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method, StatusCode, Uri, Version};

use crate::config::{Cluster, Endpoint, Route};
use crate::conn::Downstream;
use crate::grpc::Messages;

/// One HTTP exchange, as far as telemetry and the access log want to know.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// The connection that it came on: direction, addresses, security, peer identity.
    pub downstream: Rc<Downstream>,
    /// When its head had been read, by the wall clock.
    pub start_time: SystemTime,
    /// The same moment on the monotonic clock.
    pub started: Instant,
    /// From head to end of the response.
    pub duration: Duration,
    /// Request method.
    pub method: Method,
    /// Request target as the client sent it.
    pub uri: Uri,
    /// HTTP version of the request.
    pub version: Version,
    /// `Host` or `:authority`.
    pub authority: Option<HeaderValue>,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `X-Request-Id`.
    pub request_id: Option<HeaderValue>,
    /// `X-Forwarded-For` as it went upstream.
    pub forwarded_for: Option<HeaderValue>,
    /// Whether the request is gRPC.
    pub grpc: bool,
    /// Status that the client got; 0 is never reported: a client that left before any status counts as 499.
    pub status: StatusCode,
    /// `grpc-status` of the response, from its trailers or head.
    pub grpc_status: Option<u16>,
    /// What went wrong, if anything.
    pub flags: ResponseFlags,
    /// Why the response was made here and not upstream; empty if it was not.
    pub details: &'static str,
    /// Route that matched.
    pub route: Option<Arc<Route>>,
    /// Cluster that was chosen.
    pub cluster: Option<Arc<Cluster>>,
    /// Endpoint of the last attempt, if the cluster has endpoints.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Address of the last attempt.
    pub upstream: Option<SocketAddr>,
    /// From the head of the request sent to the head of the response, of the last attempt.
    pub upstream_time: Option<Duration>,
    /// Attempts made; 0 if none was.
    pub attempts: u32,
    /// Bytes of the request body read from the client.
    pub bytes_received: u64,
    /// Bytes of the response body handed to the client.
    pub bytes_sent: u64,
    /// Messages of a gRPC call that the client sent.
    pub messages_received: Messages,
    /// Messages of a gRPC call that were handed to the client.
    pub messages_sent: Messages,
}

/// The head of a request that was refused, so that there never was a request.
#[derive(Clone, Copy, Debug)]
pub struct RefusedHead<'a> {
    /// The connection that it came on.
    pub downstream: &'a Downstream,
    /// Status that the client got.
    pub status: StatusCode,
    /// What was wrong.
    pub flag: ResponseFlag,
    /// The same in words.
    pub details: &'static str,
}

/// Why a response is not simply the app's; the short names are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFlag {
    /// `NR`: no route, or no listener, for the request.
    NoRoute,
    /// `NC`: the route's cluster is not known.
    NoCluster,
    /// `UH`: the cluster has no endpoint to use.
    NoHealthyUpstream,
    /// `UF`: no connection to the upstream could be made.
    UpstreamConnectionFailure,
    /// `UO`: a limit of the cluster was reached.
    UpstreamOverflow,
    /// `UC`: the upstream closed the connection before or while it answered.
    UpstreamConnectionTermination,
    /// `UR`: the upstream reset the stream.
    UpstreamRemoteReset,
    /// `UT`: the request, or all its attempts, took too long.
    UpstreamRequestTimeout,
    /// `UPE`: the upstream spoke no HTTP.
    UpstreamProtocolError,
    /// `URX`: all retries were used up.
    UpstreamRetryLimitExceeded,
    /// `DC`: the client left before the response's end.
    DownstreamConnectionTermination,
    /// `DPE`: the request was malformed.
    DownstreamProtocolError,
    /// `UAEX`: policy refused it.
    Unauthorized,
    /// `SI`: nothing moved for too long.
    StreamIdleTimeout,
    /// `OM`: the sidecar had too much to do.
    Overload,
}

impl ResponseFlag {
    const ALL: [Self; 15] = [
        Self::NoRoute,
        Self::NoCluster,
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamOverflow,
        Self::UpstreamConnectionTermination,
        Self::UpstreamRemoteReset,
        Self::UpstreamRequestTimeout,
        Self::UpstreamProtocolError,
        Self::UpstreamRetryLimitExceeded,
        Self::DownstreamConnectionTermination,
        Self::DownstreamProtocolError,
        Self::Unauthorized,
        Self::StreamIdleTimeout,
        Self::Overload,
    ];

    /// The short name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::Unauthorized => "UAEX",
            Self::StreamIdleTimeout => "SI",
            Self::Overload => "OM",
        }
    }
}

/// A set of [`ResponseFlag`]s. Displayed as their short names joined by commas, `-` if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u16);

impl ResponseFlags {
    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u16;
    }

    /// Whether a flag is in the set.
    #[must_use]
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u16) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = ResponseFlag::ALL
            .into_iter()
            .filter(|flag| self.contains(*flag));
        f.write_str(names.next().map_or("-", ResponseFlag::as_str))?;
        names.try_for_each(|flag| write!(f, ",{}", flag.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_display_as_their_short_names() {
        let mut flags = ResponseFlags::default();
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.insert(ResponseFlag::UpstreamConnectionFailure);
        assert_eq!(flags.to_string(), "UF,URX");
        assert!(!flags.contains(ResponseFlag::NoRoute));
    }
}
