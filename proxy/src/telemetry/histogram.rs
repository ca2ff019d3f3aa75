//! A histogram of atomics: observing takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Upper bounds, the same that Envoy and so Istio's dashboards have.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
/// What bounds and observations are multiplied by, so that half a millisecond is a whole number.
const SCALE: u64 = 1_000;

/// Observations of whole thousandths.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// One for each bound, and one for what is above all of them.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Adds an observation of `thousandths`/1000.
    pub(super) fn observe_thousandths(&self, thousandths: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < thousandths);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(thousandths, Ordering::Relaxed);
    }

    /// Adds a whole number.
    pub(super) fn observe(&self, value: u64) {
        self.observe_thousandths(value.saturating_mul(SCALE));
    }

    /// Observations so far.
    pub(super) fn count(&self) -> u64 {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }

    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let mut buckets = [(f64::MAX, 0); BOUNDS.len() + 1];
        let mut count = 0;
        for (index, (bound, in_bucket)) in buckets.iter_mut().enumerate() {
            if let Some(value) = BOUNDS.get(index) {
                *bound = to_f64(*value);
            }
            *in_bucket = self.buckets[index].load(Ordering::Relaxed);
            count += *in_bucket;
        }
        let sum = to_f64(self.sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum beyond 2^53 thousandths may lose its last digits"
)]
fn to_f64(thousandths: u64) -> f64 {
    thousandths as f64 / SCALE as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_land_in_the_bucket_whose_bound_is_not_below_them() {
        let histogram = Histogram::default();
        for (thousandths, bucket) in [(0, 0), (500, 0), (501, 1), (1_000, 1), (3_600_000_001, 19)] {
            let before = histogram.buckets[bucket].load(Ordering::Relaxed);
            histogram.observe_thousandths(thousandths);
            assert_eq!(
                histogram.buckets[bucket].load(Ordering::Relaxed),
                before + 1,
                "{thousandths}"
            );
        }
        histogram.observe(u64::MAX);
        assert_eq!(histogram.count(), 6);
    }
}
