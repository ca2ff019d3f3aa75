//! What the webhook counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Unserved;
use crate::{Verdict, WarningReason};

/// Bounds of the histogram, in seconds: the API server waits ten for an answer.
const BOUNDS: [f64; 10] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reviewed {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The counters. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    reviews: Family<Reviewed, Counter>,
    refused: Family<Reason, Counter>,
    warnings: Family<Reason, Counter>,
    duration: Histogram,
    in_flight: Gauge,
    handshakes: Counter,
    given_up: Counter,
}

/// Counts a request for as long as it is held.
#[derive(Debug)]
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            refused: Family::default(),
            warnings: Family::default(),
            duration: Histogram::new(BOUNDS),
            in_flight: Gauge::default(),
            handshakes: Counter::default(),
            given_up: Counter::default(),
        };
        let m = metrics.clone();
        registry.register("injector_reviews", "Reviews answered", m.reviews);
        registry.register(
            "injector_refused_requests",
            "Requests that were not reviewed",
            m.refused,
        );
        registry.register(
            "injector_warnings",
            "Warnings to the authors of pods that were let in",
            m.warnings,
        );
        registry.register_with_unit(
            "injector_review_duration",
            "Time from the head of a request to its answer",
            Unit::Seconds,
            m.duration,
        );
        registry.register(
            "injector_requests_in_flight",
            "Requests that are read, wait or are reviewed",
            m.in_flight,
        );
        registry.register(
            "injector_handshake_failures",
            "TLS handshakes that failed or took too long",
            m.handshakes,
        );
        registry.register(
            "injector_connections_given_up",
            "Connections that were closed or not taken because there were too many",
            m.given_up,
        );
        metrics
    }

    pub(super) fn reviewed(&self, verdict: Verdict, took: Duration) {
        let (verdict, reason) = verdict.names();
        self.reviews
            .get_or_create(&Reviewed { verdict, reason })
            .inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(super) fn refused(&self, why: Unserved) {
        let reason = why.name();
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn warned(&self, why: WarningReason) {
        let reason = why.name();
        self.warnings.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(super) fn handshake_failed(&self) {
        self.handshakes.inc();
    }

    pub(super) fn connection_given_up(&self) {
        self.given_up.inc();
    }
}
