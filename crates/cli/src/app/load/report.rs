//! What became of the requests.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Failures that are kept word for word.
const FIRST_ERRORS: usize = 10;
/// Distinct reasons and pods that are kept.
const MAX_NAMES: usize = 1_000;

/// Who answered a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answerer {
    pub(super) version: Option<String>,
    pub(super) pod: Option<String>,
}

/// Counters of one run.
#[derive(Debug)]
pub(super) struct Report {
    url: String,
    rate: f64,
    id_prefix: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    total: Window,
    second: Window,
    seconds: u64,
    elapsed: Duration,
    failures: BTreeMap<String, u64>,
    first_errors: Vec<Value>,
    versions: BTreeMap<String, u64>,
    pods: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Window {
    sent: u64,
    ok: u64,
    failed: u64,
    /// Microseconds, of successes.
    latency: Histogram<u64>,
}

impl Window {
    fn new() -> Self {
        let latency = Histogram::new(3).expect("three digits are between 0 and 5");
        Self {
            sent: 0,
            ok: 0,
            failed: 0,
            latency,
        }
    }

    fn latency(&self) -> Value {
        let milliseconds = |microseconds: u64| microseconds as f64 / 1000.0;
        let at = |quantile| milliseconds(self.latency.value_at_quantile(quantile));
        json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": milliseconds(self.latency.max()) })
    }
}

impl Report {
    pub(super) fn new(url: &str, rate: f64, id_prefix: &str) -> Self {
        Self {
            url: url.to_owned(),
            rate,
            id_prefix: id_prefix.to_owned(),
            state: Mutex::new(State {
                total: Window::new(),
                second: Window::new(),
                seconds: 0,
                elapsed: Duration::ZERO,
                failures: BTreeMap::new(),
                first_errors: Vec::new(),
                versions: BTreeMap::new(),
                pods: BTreeMap::new(),
            }),
        }
    }

    pub(super) fn sent(&self) {
        let mut state = self.state.lock();
        state.total.sent += 1;
        state.second.sent += 1;
    }

    pub(super) fn done(&self, number: u64, latency: Duration, result: Result<Answerer, String>) {
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let state = &mut *state;
        match result {
            Ok(answerer) => {
                for window in [&mut state.total, &mut state.second] {
                    window.ok += 1;
                    // It grows as needed, so nothing is too large to record.
                    _ = window.latency.record(microseconds);
                }
                count(&mut state.versions, answerer.version);
                count(&mut state.pods, answerer.pod);
            }
            Err(reason) => {
                state.total.failed += 1;
                state.second.failed += 1;
                if state.first_errors.len() < FIRST_ERRORS {
                    let error = json!({ "request": number, "after_ms": microseconds / 1000, "reason": reason });
                    state.first_errors.push(error);
                }
                count(&mut state.failures, Some(reason));
            }
        }
    }

    pub(super) fn end(&self, elapsed: Duration) {
        self.state.lock().elapsed = elapsed;
    }

    pub(super) fn failed(&self) -> u64 {
        self.state.lock().total.failed
    }

    /// The second that just ended.
    pub(super) fn progress(&self) -> Value {
        let mut state = self.state.lock();
        state.seconds += 1;
        let second = std::mem::replace(&mut state.second, Window::new());
        json!({
            "event": "progress",
            "second": state.seconds,
            "sent": second.sent,
            "ok": second.ok,
            "failed": second.failed,
            "in_flight": state.total.sent - state.total.ok - state.total.failed,
            "latency_ms": second.latency(),
        })
    }

    /// The whole run.
    pub(super) fn summary(&self) -> Value {
        let state = self.state.lock();
        json!({
            "event": "summary",
            "url": self.url,
            "rate": self.rate,
            "id_prefix": self.id_prefix,
            "seconds": state.elapsed.as_secs_f64(),
            "sent": state.total.sent,
            "ok": state.total.ok,
            "failed": state.total.failed,
            "unfinished": state.total.sent - state.total.ok - state.total.failed,
            "failures": state.failures,
            "first_errors": state.first_errors,
            "latency_ms": state.total.latency(),
            "versions": state.versions,
            "pods": state.pods,
        })
    }
}

fn count(names: &mut BTreeMap<String, u64>, name: Option<String>) {
    let Some(name) = name else { return };
    if let Some(count) = names.get_mut(&name) {
        *count += 1;
    } else if names.len() < MAX_NAMES {
        names.insert(name, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_successes_from_failures_and_who_answered() {
        let report = Report::new("http://web/", 10.0, "run");
        let answerer = |version: &str| Answerer {
            version: Some(version.to_owned()),
            pod: Some("web-0".to_owned()),
        };
        let results = [
            Ok(answerer("v1")),
            Ok(answerer("v2")),
            Err("status 503".to_owned()),
        ];
        for (number, result) in (0..).zip(results) {
            report.sent();
            report.done(number, Duration::from_millis(5), result);
        }
        report.sent();
        let second = report.progress();
        assert_eq!(
            (&second["sent"], &second["in_flight"]),
            (&json!(4), &json!(1))
        );
        assert_eq!(report.progress()["sent"], 0);
        let summary = report.summary();
        assert_eq!(summary["failures"], json!({ "status 503": 1 }));
        assert_eq!(summary["versions"], json!({ "v1": 1, "v2": 1 }));
        assert_eq!(summary["pods"], json!({ "web-0": 2 }));
        assert_eq!(summary["first_errors"][0]["request"], 2);
        assert_eq!(summary["unfinished"], 1);
        assert!(
            summary["latency_ms"]["p99"]
                .as_f64()
                .is_some_and(|p99| (4.9..5.1).contains(&p99))
        );
    }
}
