//! The record of one opaque connection: filled along the way, reported once at its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::record::ResponseFlags;
use crate::config::{Cluster, Endpoint};
use crate::conn::Downstream;

/// One opaque connection, as far as telemetry and the access log want to know.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// The connection that was accepted.
    pub downstream: Rc<Downstream>,
    /// When it was accepted, by the wall clock.
    pub start_time: SystemTime,
    /// The same moment on the monotonic clock.
    pub started: Instant,
    /// From then to its end.
    pub duration: Duration,
    /// What went wrong, if anything.
    pub flags: ResponseFlags,
    /// Why it ended here and not by its peers' will; empty otherwise.
    pub details: &'static str,
    /// Cluster that was chosen.
    pub cluster: Option<Arc<Cluster>>,
    /// Endpoint of the last attempt, if the cluster has endpoints.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Address of the last attempt.
    pub upstream: Option<SocketAddr>,
    /// Bytes read from the client.
    pub bytes_received: u64,
    /// Bytes written to the client.
    pub bytes_sent: u64,
}

impl ConnectionRecord {
    /// The record of a connection that was accepted just now.
    #[must_use]
    pub fn new(downstream: Rc<Downstream>) -> Self {
        Self {
            downstream,
            start_time: SystemTime::now(),
            started: Instant::now(),
            duration: Duration::ZERO,
            flags: ResponseFlags::default(),
            details: "",
            cluster: None,
            endpoint: None,
            upstream: None,
            bytes_received: 0,
            bytes_sent: 0,
        }
    }
}
