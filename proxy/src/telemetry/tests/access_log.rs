//! What the access log says of requests and connections, and when.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;

use super::*;
use crate::config::Snapshot;
use crate::conn::Downstream;

/// A sink that a test can read.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(report: impl FnOnce(&Telemetry)) -> Vec<serde_json::Value> {
    let sink = Sink::default();
    let rig = Rig::new(
        Snapshot::default(),
        Some(AccessLog::new(sink.clone(), 100).unwrap()),
    );
    report(&rig.telemetry);
    drop(rig.telemetry);
    rig.hub.close();
    sink.lines()
}

#[test]
fn the_access_log_has_istios_keys() {
    let mut record = outbound();
    record.flags.insert(ResponseFlag::UpstreamRequestTimeout);
    record.details = "upstream_timeout";
    record.upstream = Some(address("10.1.0.7", 8080));
    record.upstream_time = Some(Duration::from_millis(5));
    let lines = logged(|telemetry| telemetry.request(&record));
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    let expected = serde_json::json!({
        "start_time": "2023-11-14T22:13:20.123Z",
        "method": "GET",
        "path": "/items?id=1",
        "protocol": "HTTP/1.1",
        "response_code": 200,
        "response_flags": "UT",
        "response_code_details": "upstream_timeout",
        "connection_termination_details": null,
        "upstream_transport_failure_reason": null,
        "bytes_received": 3,
        "bytes_sent": 1500,
        "duration": 7,
        "upstream_service_time": "5",
        "x_forwarded_for": null,
        "user_agent": null,
        "request_id": null,
        "authority": "api:80",
        "upstream_host": "10.1.0.7:8080",
        "upstream_cluster": "outbound|80||api.shop.svc.cluster.local",
        "upstream_local_address": null,
        "downstream_local_address": "10.1.0.5:8080",
        "downstream_remote_address": "10.1.0.9:40000",
        "requested_server_name": null,
        "route_name": null,
    });
    assert_eq!(*line, expected);
}

#[test]
fn row_60_strangers_cannot_forge_log_lines() {
    let mut record = outbound();
    record.user_agent = Some(HeaderValue::from_bytes(b"curl\t\"},{\"a\":\"\xff").unwrap());
    let mut connection = ConnectionRecord::new(Rc::new(Downstream {
        sni: Some("evil\n{\"x\":1}\u{1b}[2J".into()),
        ..Downstream::clone(&record.downstream)
    }));
    connection.bytes_sent = 9;
    let lines = logged(|telemetry| {
        telemetry.request(&record);
        telemetry.connection(&connection);
    });
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["user_agent"], "curl\t\"},{\"a\":\"\u{fffd}");
    assert_eq!(
        lines[1]["requested_server_name"],
        "evil\n{\"x\":1}\u{1b}[2J"
    );
    assert_eq!(lines[1]["bytes_sent"], 9);
}

#[tokio::test(start_paused = true)]
async fn lines_wait_for_a_moment_or_for_a_full_batch() {
    let sink = Sink::default();
    let log = AccessLog::new(sink.clone(), 100).unwrap();
    let rig = Rig::new(Snapshot::default(), Some(log));
    let handing_over = |time| tokio::time::timeout(time, rig.telemetry.hand_over_lines());
    for round in 1..=2 {
        rig.telemetry.request(&outbound());
        rig.hub.close();
        assert_eq!(sink.lines().len(), round - 1, "not yet");
        let _ = handing_over(Duration::from_millis(101)).await;
        rig.hub.close();
        assert_eq!(sink.lines().len(), round);
    }
    for _ in 0..400 {
        rig.telemetry.request(&outbound());
    }
    rig.hub.close();
    assert!(sink.lines().len() > 2, "a full batch does not wait");
}

#[test]
fn a_slow_disk_costs_lines_and_not_time() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (release, stuck) = std::sync::mpsc::channel();
    let log = AccessLog::new(Stuck(stuck), 1).unwrap();
    let rig = Rig::new(Snapshot::default(), Some(log));
    // Two batches are with the thread at most, and one is not full yet.
    for _ in 0..2_000 {
        rig.telemetry.request(&outbound());
    }
    let scrape = rig.scrape();
    drop(release);
    let dropped = scrape
        .lines()
        .find_map(|line| line.strip_prefix("tulle_access_log_dropped_lines_total "))
        .unwrap();
    let dropped: u64 = dropped.parse().unwrap();
    assert!((1_500..2_000).contains(&dropped), "{dropped}");
}

#[test]
fn access_log_modes() {
    assert_eq!("json".parse(), Ok(AccessLogMode::Json));
    assert_eq!("off".parse(), Ok(AccessLogMode::Off));
    assert!(
        "JSON"
            .parse::<AccessLogMode>()
            .unwrap_err()
            .contains("use json or off")
    );
}

#[test]
fn a_pipe_takes_several_batches_in_before_anybody_reads_them() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    let (reader, writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut writer = &writer;
    let batch = [b'x'; 64 * 1024];
    io::Write::write_all(&mut writer, &batch).unwrap();
    let full = io::Write::write(&mut writer, &batch).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    crate::telemetry::access_log::widen(writer);
    for _ in 1..4 {
        io::Write::write_all(&mut writer, &batch).unwrap();
    }
    drop(reader);
}
