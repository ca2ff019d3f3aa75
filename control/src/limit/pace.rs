//! How much work somebody may ask for: some at once, and so much a second from then on.
//!
//! Work is done first and paid for afterwards, so that nothing is ever refused for its size; who is in debt waits. What
//! waiting means is the caller's affair.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The account of one payer.
#[derive(Debug)]
pub(crate) struct Pace {
    each: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    at_once: u64,
    /// When all that was done will have been paid for.
    paid: Instant,
}

impl Pace {
    /// `a_second` units of work are paid for each second, and up to `at_once` may be done in advance.
    pub(crate) fn new(a_second: u32, at_once: u32) -> Self {
        Self::of_each(Duration::from_secs(1) / a_second.max(1), at_once)
    }

    /// A unit of work is paid for in that time.
    pub(crate) fn of_each(each: Duration, at_once: u32) -> Self {
        Self {
            each,
            state: Mutex::new(State {
                at_once: at_once.into(),
                paid: Instant::now(),
            }),
        }
    }

    /// From now on at least so much may be done in advance.
    pub(crate) fn allow(&self, at_once: usize) {
        let mut state = self.state.lock();
        state.at_once = state.at_once.max(at_once as u64);
    }

    /// Work was done.
    pub(crate) fn spend(&self, work: usize) {
        let mut state = self.state.lock();
        state.paid = state.paid.max(Instant::now()) + times(self.each, work as u64);
    }

    /// Work that was paid for was not to be.
    pub(crate) fn give_back(&self, work: usize) {
        let mut state = self.state.lock();
        let before = state.paid.checked_sub(times(self.each, work as u64));
        state.paid = before.unwrap_or(state.paid);
    }

    /// Until when there must be no more of it; `None` if there may be more now.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        let state = self.state.lock();
        let advance = times(self.each, state.at_once);
        let until = state.paid.checked_sub(advance)?;
        (until > Instant::now()).then_some(until)
    }

    /// Whether everything has been paid for.
    pub(crate) fn is_even(&self) -> bool {
        self.state.lock().paid <= Instant::now()
    }
}

fn times(each: Duration, work: u64) -> Duration {
    let nanos = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
    // Work comes from messages of bounded size; a century is enough for any of them.
    Duration::from_nanos(nanos.saturating_mul(work)).min(Duration::from_secs(100 * 365 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(pace: &Pace) -> Option<Duration> {
        Some(pace.waits_until()? - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_beyond_is_done_and_waited_for() {
        let pace = Pace::new(100, 1000);
        pace.spend(1000);
        assert_eq!(waits(&pace), None);
        pace.spend(50);
        assert_eq!(waits(&pace), Some(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(waits(&pace), None);
        assert!(!pace.is_even());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(pace.is_even());
        tokio::time::advance(Duration::from_secs(1000)).await;
        pace.spend(1001);
        assert_eq!(
            waits(&pace),
            Some(Duration::from_millis(10)),
            "rest earns nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_was_never_spent() {
        let pace = Pace::new(1, 2);
        for _ in 0..100 {
            pace.spend(1);
            pace.give_back(1);
        }
        pace.spend(3);
        assert_eq!(waits(&pace), Some(Duration::from_secs(1)));
        pace.give_back(1);
        assert_eq!(waits(&pace), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_advance_grows_and_never_shrinks() {
        let pace = Pace::new(100, 10);
        pace.allow(1000);
        pace.allow(20);
        pace.spend(1000);
        assert_eq!(waits(&pace), None);
        pace.spend(usize::MAX);
        assert!(waits(&pace).is_some());
    }
}
