//! How long writing may make no progress.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A wait for a peer that does not take what is written. Most are short: the timer is made by the first one, is set
/// again only when it has run out, and stays for the next wait.
#[derive(Debug)]
pub(super) struct Stall {
    patience: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: None,
            timer: None,
        }
    }

    /// There was progress.
    #[inline]
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// There was none. Ready: not for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let due = since + self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn only_a_wait_without_progress_is_too_long() {
        let mut stall = Stall::new(PATIENCE);
        let begun = Instant::now();
        for _ in 0..10 {
            assert!(poll_fn(|cx| stall.poll(cx)).now_or_never().is_none());
            tokio::time::advance(PATIENCE - Duration::from_secs(1)).await;
            assert!(poll_fn(|cx| stall.poll(cx)).now_or_never().is_none());
            stall.end();
        }
        let last = Instant::now();
        poll_fn(|cx| stall.poll(cx)).await;
        assert_eq!(last.elapsed(), PATIENCE);
        assert!(begun.elapsed() > 10 * PATIENCE);
    }
}
