//! How long a client may keep its own request waiting for the rest of the body.
//!
//! Only the waits for the client count: a body that waits for the app has all the time. When they have come to as long as one
//! pause may be, enough must have come meanwhile to be more than a byte now and then, which would hold its place for good.
//! Bytes that come do not touch the timer; a wait costs two looks at the clock.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::settings::Patience;

/// The waits for a client since enough had come.
#[derive(Debug)]
pub(super) struct Pause {
    ends: Pin<Box<Sleep>>,
    /// How long the waits were that are over.
    waited: Duration,
    /// When the wait of now began.
    since: Option<Instant>,
    /// Bytes of the body that had come before.
    from: u64,
}

impl Pause {
    /// Of a client that has sent so many bytes.
    pub(super) fn new(patience: &Patience, bytes: u64) -> Self {
        Self {
            ends: Box::pin(sleep(patience.body)),
            waited: Duration::ZERO,
            since: None,
            from: bytes,
        }
    }

    /// Something came.
    pub(super) fn interrupt(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Waits for the client, which has sent so many bytes by now. Ready: it has taken too long.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        patience: &Patience,
        bytes: u64,
    ) -> Poll<()> {
        let mut since = *self.since.get_or_insert_with(Instant::now);
        loop {
            ready!(self.ends.as_mut().poll(cx));
            let now = Instant::now();
            let mut left = patience.body.saturating_sub(self.waited + (now - since));
            if left.is_zero() {
                if bytes - self.from < least(patience) {
                    return Poll::Ready(());
                }
                // The wait of now counts whole, so that no pause is longer than one may be.
                (self.waited, self.from) = (now - since, bytes);
                left = patience.body.saturating_sub(self.waited);
                since = now;
                self.since = Some(since);
            }
            self.ends.as_mut().reset(now + left);
        }
    }
}

/// Bytes that must come in the time of one pause.
fn least(patience: &Patience) -> u64 {
    let thousandths = u128::from(patience.body_rate) * patience.body.as_millis();
    u64::try_from(thousandths / 1_000)
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Waits so often for so long, with a byte after each and something else in between: after how many it is too long.
    async fn waits(number: u64, each: Duration, between: Duration) -> Option<u64> {
        let patience = Patience::default();
        let mut pause = Pause::new(&patience, 0);
        for bytes in 0..number {
            for step in [Duration::ZERO, each] {
                advance(step).await;
                let polled = poll_fn(|cx| pause.poll(cx, &patience, bytes));
                if polled.now_or_never().is_some() {
                    return Some(bytes);
                }
            }
            pause.interrupt();
            advance(between).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_no_longer_than_it_may_be_however_much_came_before() {
        let patience = Patience::default();
        let mut pause = Pause::new(&patience, 0);
        let mut wait = async |bytes| {
            let begun = Instant::now();
            let all = poll_fn(|cx| pause.poll(cx, &patience, bytes));
            let late = tokio::time::timeout(patience.body - SECOND, all)
                .await
                .is_ok();
            pause.interrupt();
            (late, begun.elapsed())
        };
        // The first window ends in the second wait.
        assert_eq!(wait(0).await, (false, patience.body - SECOND));
        assert_eq!(wait(1 << 20).await, (false, patience.body - SECOND));
        let begun = Instant::now();
        poll_fn(|cx| pause.poll(cx, &patience, 2 << 20)).await;
        assert_eq!(begun.elapsed(), patience.body);
    }

    #[tokio::test(start_paused = true)]
    async fn only_waits_for_the_client_count() {
        let hour = SECOND * 3_600;
        assert_eq!(waits(89, SECOND * 10, hour).await, None);
        assert_eq!(waits(200, SECOND * 10, hour).await, Some(89));
        assert_eq!(waits(200, SECOND * 10, Duration::ZERO).await, Some(89));
    }
}
