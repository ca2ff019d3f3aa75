//! How many interim answers (1xx) one request may get, on any version of HTTP.
//!
//! A server sends one or two: 100, and 103 when it knows what will be needed. One that says again and again that it is still
//! at work (102) may do so for as long as it works, if it does not say it without a pause. Nothing here looks at a clock
//! before there is an interim answer.

use std::time::Duration;

use tokio::time::Instant;

/// Interim answers at once.
pub const MAX_INTERIM: u32 = 16;
/// After so much time there may be one more.
pub const INTERIM_EVERY: Duration = Duration::from_secs(10);

/// What is left to the server of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterimAllowance {
    /// When all of it will be there again; `None`: it was never touched.
    whole: Option<Instant>,
}

impl InterimAllowance {
    /// An interim answer has come. False: it is one too many.
    #[must_use]
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        let whole = self.whole.map_or(now, |whole| whole.max(now)) + INTERIM_EVERY;
        if whole - now > INTERIM_EVERY * MAX_INTERIM {
            return false;
        }
        self.whole = Some(whole);
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_come_at_once_and_one_more_for_each_wait() {
        let mut left = InterimAllowance::default();
        for _ in 0..MAX_INTERIM {
            assert!(left.take());
        }
        assert!(!left.take());
        advance(INTERIM_EVERY - Duration::from_millis(1)).await;
        assert!(!left.take(), "too early");
        advance(Duration::from_millis(1)).await;
        assert!(left.take());
        assert!(!left.take(), "one, not two");
        advance(INTERIM_EVERY * 1_000).await;
        for _ in 0..MAX_INTERIM {
            assert!(left.take());
        }
        assert!(!left.take(), "what was not used is not saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_at_work_says_so_for_as_long_as_it_works_but_not_all_the_time() {
        let (mut slow, mut hasty) = (InterimAllowance::default(), InterimAllowance::default());
        let mut said = 0;
        for _ in 0..1_000 {
            advance(INTERIM_EVERY).await;
            assert!(slow.take());
        }
        while hasty.take() {
            advance(INTERIM_EVERY / 2).await;
            said += 1;
        }
        // Half of what it says comes back meanwhile.
        assert_eq!(said, 2 * MAX_INTERIM - 1);
    }
}
