//! The access log: one JSON object a line, with Istio's keys.
//!
//! A thread of its own writes; a worker only hands lines over, and drops them, counted, when the thread cannot keep up.
//! What is not known is null.

use std::io::Write;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::connection::ConnectionRecord;
use super::json::Object;
use super::record::RequestRecord;
use crate::config::Cluster;
use crate::conn::Downstream;

/// Lines that may wait for the writer.
const MAX_WAITING: usize = 8_192;

/// Whether there is an access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// None.
    #[default]
    Off,
    /// JSON lines.
    Json,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is no access log mode: use json or off")),
        }
    }
}

/// The log of a process. Dropping or closing it waits until what was handed over is written.
#[derive(Debug)]
pub struct AccessLog {
    writer: NonBlocking,
    flush: Mutex<Option<WorkerGuard>>,
}

impl AccessLog {
    /// Writes to standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::new(std::io::stdout(), MAX_WAITING)
    }

    pub(super) fn new(to: impl Write + Send + 'static, waiting: usize) -> Self {
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(waiting);
        let (writer, flush) = builder.thread_name("access-log").finish(to);
        Self {
            writer,
            flush: Mutex::new(Some(flush)),
        }
    }

    /// Waits, a second at most, until what was handed over is written; what comes later is lost.
    pub(super) fn close(&self) {
        drop(self.flush.lock().take());
    }

    pub(super) fn dropped(&self) -> Dropped {
        Dropped(self.writer.error_counter())
    }

    /// A worker's own end of the log.
    pub(super) fn lines(&self) -> Lines {
        Lines {
            writer: self.writer.clone(),
            line: Vec::with_capacity(1_024),
        }
    }
}

/// How many lines were dropped.
#[derive(Clone, Debug)]
pub(super) struct Dropped(ErrorCounter);

impl Dropped {
    pub(super) fn lines(&self) -> u64 {
        u64::try_from(self.0.dropped_lines()).unwrap_or(u64::MAX)
    }
}

/// One worker's end of the log.
#[derive(Debug)]
pub(super) struct Lines {
    writer: NonBlocking,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn request(&mut self, record: &RequestRecord) {
        self.write(|object| {
            object.shown("start_time", Some(timestamp(record.start_time)));
            object.text("method", Some(record.method.as_str().as_bytes()));
            let path = record
                .uri
                .path_and_query()
                .map(http::uri::PathAndQuery::as_str);
            object.text("path", path.map(str::as_bytes));
            object.shown("protocol", Some(protocol(record.version)));
            object.number("response_code", u64::from(record.status.as_u16()));
            ending(object, record.flags, record.details);
            traffic(
                object,
                record.bytes_received,
                record.bytes_sent,
                record.duration,
            );
            object.shown(
                "upstream_service_time",
                record.upstream_time.map(|time| time.as_millis()),
            );
            object.text("x_forwarded_for", bytes(&record.forwarded_for));
            object.text("user_agent", bytes(&record.user_agent));
            object.text("request_id", bytes(&record.request_id));
            object.text("authority", bytes(&record.authority));
            ends(
                object,
                &record.downstream,
                record.upstream,
                record.cluster.as_deref(),
            );
            let route = record
                .route
                .as_ref()
                .map(|route| route.name.as_bytes())
                .filter(|name| !name.is_empty());
            object.text("route_name", route);
        });
    }

    pub(super) fn connection(&mut self, record: &ConnectionRecord) {
        self.write(|object| {
            object.shown("start_time", Some(timestamp(record.start_time)));
            for key in ["method", "path", "protocol"] {
                object.text(key, None);
            }
            object.number("response_code", 0);
            ending(object, record.flags, record.details);
            traffic(
                object,
                record.bytes_received,
                record.bytes_sent,
                record.duration,
            );
            for key in [
                "upstream_service_time",
                "x_forwarded_for",
                "user_agent",
                "request_id",
                "authority",
            ] {
                object.text(key, None);
            }
            ends(
                object,
                &record.downstream,
                record.upstream,
                record.cluster.as_deref(),
            );
            object.text("route_name", None);
        });
    }

    fn write(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        self.line.clear();
        let mut object = Object::begin(&mut self.line);
        fill(&mut object);
        object.end();
        // The writer drops and counts what it cannot take; it never fails.
        let _ = self.writer.write(&self.line);
    }
}

fn ending(object: &mut Object<'_>, flags: super::record::ResponseFlags, details: &str) {
    object.shown("response_flags", Some(flags));
    object.text(
        "response_code_details",
        Some(details.as_bytes()).filter(|details| !details.is_empty()),
    );
    object.text("connection_termination_details", None);
    object.text("upstream_transport_failure_reason", None);
}

fn traffic(object: &mut Object<'_>, received: u64, sent: u64, duration: Duration) {
    object.number("bytes_received", received);
    object.number("bytes_sent", sent);
    object.number(
        "duration",
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    );
}

fn ends(
    object: &mut Object<'_>,
    downstream: &Downstream,
    upstream: Option<std::net::SocketAddr>,
    cluster: Option<&Cluster>,
) {
    object.shown("upstream_host", upstream);
    object.text(
        "upstream_cluster",
        cluster.map(|cluster| cluster.name.as_bytes()),
    );
    object.text("upstream_local_address", None);
    object.shown("downstream_local_address", Some(downstream.original_dst));
    object.shown("downstream_remote_address", Some(downstream.peer));
    object.text(
        "requested_server_name",
        downstream.sni.as_ref().map(|name| name.as_bytes()),
    );
}

fn bytes(value: &Option<http::HeaderValue>) -> Option<&[u8]> {
    value.as_ref().map(http::HeaderValue::as_bytes)
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
