//! How many requests a client may give up.
//!
//! A request that is given up has cost a connection upstream, or a stream there, all the same; so HTTP/2, on which giving
//! up costs next to nothing, is a way to have an app work for nobody (CVE-2023-44487, CVE-2025-8671). Each request that
//! ends makes up for one that was given up, and time for some; what is left over counts.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// In this time as many are forgiven as may be left over.
const REFILL: Duration = Duration::from_secs(10);

/// Requests that a client has given up, less what made up for them.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    count: Cell<u32>,
    since: Cell<Option<Instant>>,
}

impl GivenUp {
    /// A request has ended.
    #[inline]
    pub(super) fn ended(&self) {
        self.count.set(self.count.get().saturating_sub(1));
    }

    /// A request was given up. False: it is one too many.
    pub(super) fn gave_up(&self, limit: u32) -> bool {
        self.count.set(self.count.get().saturating_add(1));
        self.count.get() <= limit || self.settle(limit, Instant::now())
    }

    fn settle(&self, limit: u32, now: Instant) -> bool {
        let since = self.since.replace(Some(now));
        let waited = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let forgiven = u128::from(limit) * waited.as_millis() / REFILL.as_millis();
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        let left = self.count.get().saturating_sub(forgiven);
        self.count.set(left);
        left <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_gives_up_is_stopped_at_the_limit() {
        let client = GivenUp::default();
        let allowed = (0..1_000).take_while(|_| client.gave_up(100)).count();
        assert_eq!(allowed, 100);
    }

    #[test]
    fn one_that_ends_makes_up_for_one_that_does_not() {
        let client = GivenUp::default();
        for _ in 0..10_000 {
            assert!(client.gave_up(100));
            client.ended();
        }
        for _ in 0..10_000 {
            client.ended();
        }
        let allowed = (0..1_000).take_while(|_| client.gave_up(100)).count();
        assert_eq!(allowed, 100, "nothing is saved up");
    }

    #[test]
    fn time_makes_up_for_some() {
        let client = GivenUp::default();
        let begun = Instant::now();
        client.count.set(101);
        assert!(!client.settle(100, begun));
        assert!(client.settle(100, begun + Duration::from_millis(150)));
        assert_eq!(client.count.get(), 100);
    }
}
