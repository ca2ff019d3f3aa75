//! Metrics of certificate renewal.

use std::sync::atomic::AtomicI64;
use std::time::UNIX_EPOCH;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::svid::Svid;

/// What the client counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) expiry: Gauge<i64, AtomicI64>,
    pub(super) rotations: Counter,
    pub(super) failures: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "certificate_expiration_timestamp_seconds",
            "End of validity of the workload certificate",
            metrics.expiry.clone(),
        );
        registry.register(
            "certificate_rotations",
            "Certificates obtained from the CA",
            metrics.rotations.clone(),
        );
        registry.register(
            "certificate_failures",
            "Attempts to obtain one that failed",
            metrics.failures.clone(),
        );
        metrics
    }

    pub(super) fn installed(&self, svid: &Svid) {
        let end = svid
            .not_after()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.expiry
            .set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
    }
}
