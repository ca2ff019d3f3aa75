//! The access log: one JSON object a line, with Istio's keys. What is not known is null.
//!
//! A worker gathers its lines and hands them over in batches, when there are many or a moment has passed, to a thread
//! that writes; what the thread cannot keep up with is dropped and counted. So a line costs neither a system call nor
//! the wake-up of a thread.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, fcntl};
use tulle_runtime::writer::Writer;

use super::connection::ConnectionRecord;
use super::json::{Object, key};
use super::record::{RefusedHead, RequestRecord, ResponseFlags};
use crate::config::Cluster;
use crate::conn::Downstream;

/// Bytes of lines that are not held back any longer ...
const BATCH: usize = 64 * 1024;
/// ... and how long fewer are.
pub(super) const DELAY: Duration = Duration::from_millis(100);
/// Batches that may wait for the thread.
const MAX_WAITING: usize = 16;
/// Bytes that standard output takes in before somebody reads them, where it is a pipe. The kernel's 64 KiB hold no
/// batch beside another: the thread would sleep, and be woken for each page that is read.
const PIPE: i32 = 256 * 1024;

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

/// The log of a process.
#[derive(Debug)]
pub struct AccessLog {
    writer: Writer,
}

impl AccessLog {
    /// Writes to standard output.
    ///
    /// # Errors
    ///
    /// When there can be no thread for it.
    pub fn stdout() -> std::io::Result<Self> {
        let stdout = std::io::stdout();
        widen(&stdout);
        Self::new(stdout, MAX_WAITING)
    }

    pub(super) fn new(to: impl Write + Send + 'static, waiting: usize) -> std::io::Result<Self> {
        // Its reader finds how many are missing in the metrics: there are no lines but those of requests here.
        let writer = Writer::new("access-log", to, waiting * BATCH, |_| {})?;
        Ok(Self { writer })
    }

    /// Waits, a second at most, until what was handed over is written.
    pub(super) fn close(&self) {
        self.writer.flush(Duration::from_secs(1));
    }

    /// Lines that were dropped so far.
    pub(super) fn dropped_lines(&self) -> u64 {
        self.writer.dropped().get()
    }

    /// A worker's own end of the log.
    pub(super) fn lines(&self) -> Lines {
        Lines {
            writer: self.writer.clone(),
            batch: Vec::new(),
            count: 0,
            clock: Clock::default(),
        }
    }
}

/// Lets a pipe hold several batches. Where that is refused (it is no pipe, its owner has many large ones) it stays as it is.
pub(super) fn widen(pipe: impl AsFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
}

/// One worker's end of the log. Dropping it hands over what it holds.
#[derive(Debug)]
pub(super) struct Lines {
    writer: Writer,
    batch: Vec<u8>,
    /// Lines in the batch.
    count: u64,
    clock: Clock,
}

impl Lines {
    /// Whether nothing waits to be handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Hands over what there is.
    pub(super) fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            let mut batch = std::mem::take(&mut self.batch);
            // One that is handed over for its age is small: what it has no use for is not to wait with it.
            if batch.len() < batch.capacity() / 2 {
                batch.shrink_to_fit();
            }
            self.writer.write(batch, std::mem::take(&mut self.count));
        }
    }

    pub(super) fn request(&mut self, record: &RequestRecord) {
        self.write(record.start_time, |object| {
            object.text(key!("method"), Some(record.method.as_str().as_bytes()));
            let path = record.uri.path_and_query();
            object.text(key!("path"), path.map(|path| path.as_str().as_bytes()));
            object.plain(key!("protocol"), protocol(record.version));
            object.number(key!("response_code"), record.status.as_u16().into());
            ending(object, record.flags, record.details);
            let bytes_moved = (record.bytes_received, record.bytes_sent);
            traffic(object, bytes_moved, record.duration);
            let upstream_time = record.upstream_time.map(millis);
            object.number_text(key!("upstream_service_time"), upstream_time);
            object.text(key!("x_forwarded_for"), bytes(&record.forwarded_for));
            object.text(key!("user_agent"), bytes(&record.user_agent));
            object.text(key!("request_id"), bytes(&record.request_id));
            object.text(key!("authority"), bytes(&record.authority));
            let cluster = record.cluster.as_deref();
            ends(object, &record.downstream, record.upstream, cluster);
            let route = record.route.as_ref().map(|route| route.name.as_bytes());
            object.text(key!("route_name"), route.filter(|name| !name.is_empty()));
        });
    }

    /// A head was refused, so that there never was a request.
    pub(super) fn refused(&mut self, refused: &RefusedHead<'_>) {
        self.write(SystemTime::now(), |object| {
            object.null(key!("method"));
            object.null(key!("path"));
            object.plain(key!("protocol"), "HTTP/1.1");
            object.number(key!("response_code"), refused.status.as_u16().into());
            let mut flags = ResponseFlags::default();
            flags.insert(refused.flag);
            ending(object, flags, refused.details);
            traffic(object, (0, 0), Duration::ZERO);
            nothing_asked(object);
            ends(object, refused.downstream, None, None);
            object.null(key!("route_name"));
        });
    }

    pub(super) fn connection(&mut self, record: &ConnectionRecord) {
        self.write(record.start_time, |object| {
            for key in [key!("method"), key!("path"), key!("protocol")] {
                object.null(key);
            }
            object.number(key!("response_code"), 0);
            ending(object, record.flags, record.details);
            let bytes_moved = (record.bytes_received, record.bytes_sent);
            traffic(object, bytes_moved, record.duration);
            nothing_asked(object);
            let cluster = record.cluster.as_deref();
            ends(object, &record.downstream, record.upstream, cluster);
            object.null(key!("route_name"));
        });
    }

    fn write(&mut self, at: SystemTime, fill: impl FnOnce(&mut Object<'_>)) {
        if self.batch.capacity() == 0 {
            self.batch.reserve(BATCH + BATCH / 8);
        }
        let mut object = Object::begin(&mut self.batch);
        object.text(key!("start_time"), self.clock.timestamp(at));
        fill(&mut object);
        object.end();
        self.count += 1;
        if self.batch.len() >= BATCH {
            self.hand_over();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// What is written of these, for fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn lines_of(requests: &[RequestRecord], connections: &[ConnectionRecord]) -> Vec<u8> {
    Writer::collect(|writer| {
        let mut lines = Lines {
            writer,
            batch: Vec::new(),
            count: 0,
            clock: Clock::default(),
        };
        requests.iter().for_each(|record| lines.request(record));
        let connections = connections.iter();
        connections.for_each(|record| lines.connection(record));
    })
}

/// Writes moments down (RFC 3339, in UTC). Most are in the second of the one before, of which only the last digits change.
#[derive(Debug, Default)]
struct Clock {
    second: u64,
    text: Vec<u8>,
}

impl Clock {
    /// `None` for a time that no calendar has.
    fn timestamp(&mut self, at: SystemTime) -> Option<&[u8]> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        if self.text.is_empty() || self.second != since.as_secs() {
            let time = jiff::Timestamp::try_from(at).ok()?;
            self.second = since.as_secs();
            self.text.clear();
            // Writing to a Vec does not fail.
            let _ = write!(self.text, "{time:.3}");
        }
        let end = self.text.len().checked_sub("000Z".len())?;
        self.text.truncate(end);
        let _ = write!(self.text, "{:03}Z", since.subsec_millis());
        Some(&self.text)
    }
}

fn ending(object: &mut Object<'_>, flags: ResponseFlags, details: &str) {
    if flags.is_empty() {
        object.plain(key!("response_flags"), "-");
    } else {
        object.text(key!("response_flags"), Some(flags.to_string().as_bytes()));
    }
    let details = Some(details.as_bytes()).filter(|details| !details.is_empty());
    object.text(key!("response_code_details"), details);
    object.null(key!("connection_termination_details"));
    object.null(key!("upstream_transport_failure_reason"));
}

/// What only a request has.
fn nothing_asked(object: &mut Object<'_>) {
    for key in [
        key!("upstream_service_time"),
        key!("x_forwarded_for"),
        key!("user_agent"),
        key!("request_id"),
        key!("authority"),
    ] {
        object.null(key);
    }
}

fn traffic(object: &mut Object<'_>, (received, sent): (u64, u64), duration: Duration) {
    object.number(key!("bytes_received"), received);
    object.number(key!("bytes_sent"), sent);
    object.number(key!("duration"), millis(duration));
}

fn ends(
    object: &mut Object<'_>,
    downstream: &Downstream,
    upstream: Option<SocketAddr>,
    cluster: Option<&Cluster>,
) {
    object.address(key!("upstream_host"), upstream);
    let cluster = cluster.map(|cluster| cluster.name.as_bytes());
    object.text(key!("upstream_cluster"), cluster);
    object.null(key!("upstream_local_address"));
    let local = Some(downstream.original_dst);
    object.address(key!("downstream_local_address"), local);
    object.address(key!("downstream_remote_address"), Some(downstream.peer));
    let sni = downstream.sni.as_ref().map(|name| name.as_bytes());
    object.text(key!("requested_server_name"), sni);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bytes(value: &Option<http::HeaderValue>) -> Option<&[u8]> {
    value.as_ref().map(http::HeaderValue::as_bytes)
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_to_the_millisecond_within_a_second_and_across() {
        let mut clock = Clock::default();
        for (millis, expected) in [
            (1_700_000_000_999, "2023-11-14T22:13:20.999Z"),
            (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
            (1_700_000_001_000, "2023-11-14T22:13:21.000Z"),
            (0, "1970-01-01T00:00:00.000Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(clock.timestamp(at), Some(expected.as_bytes()));
        }
        let before_all = SystemTime::UNIX_EPOCH - Duration::from_millis(1);
        assert_eq!(clock.timestamp(before_all), None);
    }
}
