//! How one watch is doing: what is counted, told and reported of it, and how long it waits after a failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use crate::source::report::{Place, Problem, SourceReport};

/// So many failures in a row are worth a word; fewer mend themselves.
const WORTH_A_WORD: u32 = 3;
/// How often a failure that lasts is told again.
const TELL: Duration = Duration::from_secs(300);
/// After such a time without a failure the next one is a first one.
const CALM: Duration = Duration::from_secs(60);
/// Longest time that an API server may ask to be left alone.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The state of a watch.
pub(super) struct Health {
    /// As metrics name it.
    kind: Arc<str>,
    place: Place,
    report: SourceReport,
    /// Whether a list was complete, so that something is known.
    listed: bool,
    /// What that means as long as none was.
    unread: &'static str,
    /// In a row.
    failures: u32,
    /// When the first of them was.
    first: Option<Instant>,
    /// When things were tried again after the last one.
    last: Option<Instant>,
    told: Option<Instant>,
    /// Since when it fails, if that is reported.
    failing: Option<Instant>,
    /// Whether the last failure broke a watch that had begun.
    amid: bool,
}

impl Health {
    /// The health of the watch of a resource, such as `endpointslices.discovery.k8s.io`.
    pub(super) fn new(kind: Arc<str>, resource: Arc<str>, report: &SourceReport) -> Self {
        Self {
            kind,
            place: Place::Resource(resource),
            report: report.clone(),
            listed: false,
            unread: "nothing of it is in force",
            failures: 0,
            first: None,
            last: None,
            told: None,
            failing: None,
            amid: false,
        }
    }

    /// The same, of a resource of which something is known, or not.
    pub(super) fn known(mut self, listed: bool) -> Self {
        self.listed = listed;
        self
    }

    /// The same, with what it means that nothing is known.
    pub(super) fn without(mut self, unread: &'static str) -> Self {
        self.unread = unread;
        self
    }

    /// A list is complete.
    pub(super) fn listed(&mut self) {
        self.listed = true;
        self.report.metrics().listed(&self.kind);
        self.report.awaited().ends(&self.kind);
        self.mended();
    }

    /// The API server said something of use.
    pub(super) fn contact(&mut self) {
        self.report.metrics().contact(&self.kind);
        // Half a list is as good as none.
        if self.listed {
            self.mended();
        }
    }

    /// A watch has begun, which ends what kept it from that. What broke one amid it ends only with a word.
    pub(super) fn begun(&mut self) {
        if !self.amid {
            self.contact();
        }
    }

    fn mended(&mut self) {
        if let Some(since) = self.failing.take() {
            self.report.replace(&self.place, Vec::new());
            if self.told.is_some_and(|told| told >= since) {
                let time = since.elapsed();
                tracing::info!(resource.type = %self.place, ?time, "the API server can be followed again");
            }
        }
    }

    /// A watch begins.
    pub(super) fn restarted(&self) {
        self.report.metrics().restarted(&self.kind);
    }

    /// Takes note of a failure, of a watch that had begun or not, and says how long to wait.
    pub(super) fn failed(
        &mut self,
        failure: &Failure,
        amid: bool,
        limits: (Duration, Duration),
    ) -> Duration {
        self.amid = amid;
        self.report.metrics().failed(&self.kind, failure.reason());
        let calm = self.last.is_none_or(|last| last.elapsed() > CALM);
        if calm {
            self.failures = 0;
            self.first = None;
        }
        self.failures = self.failures.saturating_add(1);
        self.first.get_or_insert_with(Instant::now);
        let error = causes(failure);
        tracing::debug!(resource.type = %self.place, error, failures = self.failures, "not learnt");
        if self.failures >= WORTH_A_WORD {
            self.tell(failure, &error);
        }
        let asked = failure.retry_after().unwrap_or_default();
        let pause = pause(self.failures, limits).max(asked.min(LONGEST_REST));
        self.last = Some(Instant::now() + pause);
        pause
    }

    fn tell(&mut self, failure: &Failure, error: &str) {
        if self.failing.is_none() {
            self.failing = Some(Instant::now());
        }
        let (what, now) = match self.listed {
            true => ("followed", "what is known stays in force"),
            false => ("listed", self.unread),
        };
        let message = format!("cannot be {what}, and {now}: {error}; {}", failure.remedy());
        if !self.listed {
            let since = self.first.unwrap_or_else(Instant::now);
            let awaited = self.report.awaited();
            awaited.fails(&self.kind, self.place.clone(), since, message.clone());
            self.report.metrics().unread(&self.kind);
        }
        let problem = Problem::of(self.place.clone(), message);
        self.report.replace(&self.place, vec![problem]);
        let due = self.told.is_none_or(|told| told.elapsed() > TELL);
        // All fail together when the API server is away, or comes back and knows no roles yet: one of them says it.
        if due && self.report.may_tell(failure.reason(), TELL) {
            self.told = Some(Instant::now());
            tracing::warn!(
                resource.type = %self.place, error, failures = self.failures,
                "cannot be {what}, nor others perhaps (see /debug/source), and {now}: {}",
                failure.remedy(),
            );
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.report.metrics().forget(&self.kind);
        self.report.awaited().ends(&self.kind);
        if self.failing.is_some() {
            self.report.replace(&self.place, Vec::new());
        }
    }
}

/// Doubles from failure to failure, up to a limit; half of it is chance, so that not all come back at one moment.
fn pause(failures: u32, (first, longest): (Duration, Duration)) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(0.5 + 0.5 * fastrand::f64())
}

/// An error and its causes in one line.
fn causes(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        let said = error.to_string();
        // Some say their cause themselves.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

    #[test]
    fn pauses_double_up_to_a_limit_with_some_chance() {
        for (failures, whole) in [
            (1, 100),
            (2, 200),
            (5, 1600),
            (6, 2000),
            (4_000_000_000, 2000),
        ] {
            let whole = Duration::from_millis(whole);
            for _ in 0..20 {
                let pause = pause(failures, LIMITS);
                assert!(
                    pause >= whole / 2 && pause <= whole,
                    "{failures}: {pause:?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_lasts_is_reported_until_there_is_contact() {
        let report = SourceReport::default();
        let mut health = Health::new("Pod".into(), "pods".into(), &report);
        let denied = Failure::Refused {
            code: 403,
            message: "no".to_owned(),
            retry_after: None,
        };
        for _ in 1..WORTH_A_WORD {
            health.failed(&denied, false, LIMITS);
            assert!(report.is_empty());
        }
        health.failed(&denied, false, LIMITS);
        let problem = report.problems().remove(0).to_string();
        assert!(
            problem.starts_with("pods: ")
                && problem.contains("403: no")
                && problem.contains("ClusterRole"),
            "{problem}"
        );
        assert!(
            problem.contains("cannot be listed") && !problem.contains("stays in force"),
            "{problem}"
        );
        health.contact();
        assert_eq!(report.len(), 1, "half a list is none");
        health.listed();
        assert!(report.is_empty() && report.unread().is_empty());
        health.failed(&denied, false, LIMITS);
        let problem = report.problems().remove(0).to_string();
        assert!(
            problem.contains("what is known stays in force"),
            "{problem}"
        );
        health.contact();
        assert!(report.is_empty());
        tokio::time::advance(CALM * 2).await;
        health.failed(&denied, false, LIMITS);
        assert!(report.is_empty(), "the next one is a first one");
    }

    #[tokio::test]
    async fn a_watch_that_begins_ends_what_kept_it_from_that_and_nothing_else() {
        let report = SourceReport::default();
        let mut health = Health::new("Pod".into(), "pods".into(), &report).known(true);
        let silent = || Failure::Silent(Duration::from_secs(10));
        for amid in [false, true] {
            for _ in 0..WORTH_A_WORD {
                health.failed(&silent(), amid, LIMITS);
            }
            health.begun();
            assert_eq!(report.len(), usize::from(amid), "amid: {amid}");
        }
        health.contact();
        assert!(report.is_empty());
    }

    #[test]
    fn an_api_server_is_left_alone_as_long_as_it_asks_and_not_for_ever() {
        let report = SourceReport::default();
        let mut health = Health::new("Pod".into(), "pods".into(), &report);
        for (asked, waits) in [(7, 7), (100_000, 60)] {
            let busy = Failure::Refused {
                code: 429,
                message: String::new(),
                retry_after: Some(Duration::from_secs(asked)),
            };
            assert_eq!(
                health.failed(&busy, false, LIMITS),
                Duration::from_secs(waits)
            );
        }
    }
}
