//! How long to wait before trying again: exponential back-off with full jitter.
//!
//! Full jitter (a uniform pick between zero and the current ceiling) spreads a herd best; the ceiling doubles with
//! every delay until it reaches the maximum.

use std::time::Duration;

/// The delays of one thing that is tried again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    ceiling: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Delays up to `base` at first, up to `max` in the end.
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        Self::with_rng(base, max, fastrand::Rng::new())
    }

    /// As [`Backoff::new`], with the randomness given: tests seed it.
    #[must_use]
    pub fn with_rng(base: Duration, max: Duration, random: fastrand::Rng) -> Self {
        Self {
            base,
            max,
            ceiling: base.min(max),
            random,
        }
    }

    /// The next delay; the ceiling of the one after it is doubled.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.ceiling.mul_f64(self.random.f64());
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        delay
    }

    /// Starts over: it worked.
    pub fn reset(&mut self) {
        self.ceiling = self.base.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn delays_stay_under_a_ceiling_that_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::with_rng(BASE, MAX, fastrand::Rng::with_seed(7));
        for ceiling in [100, 200, 400, 800, 1000, 1000] {
            assert!(backoff.next_delay() <= Duration::from_millis(ceiling));
        }
    }

    #[test]
    fn delays_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::with_rng(MAX, MAX, fastrand::Rng::with_seed(7));
        let delays: Vec<_> = (0..64).map(|_| backoff.next_delay()).collect();
        assert!(delays.iter().any(|delay| *delay < MAX / 4));
        assert!(delays.iter().any(|delay| *delay > MAX * 3 / 4));
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::with_rng(BASE, MAX, fastrand::Rng::with_seed(7));
        for _ in 0..8 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= BASE);
    }
}
