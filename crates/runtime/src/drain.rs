//! Ending a program without cutting anybody off.
//!
//! A [`DrainWatch`] is the right to keep the process alive: whoever serves something holds a clone, stops accepting
//! when [`DrainWatch::draining`] resolves, finishes what is open and lets the clone go. [`Drain::drain`] waits for all
//! of them, up to a deadline.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;

/// A drain that has not begun, and the watches of those who take part in it.
#[must_use]
pub fn channel() -> (Drain, DrainWatch) {
    let (signal, watch) = watch::channel(false);
    (Drain { signal }, DrainWatch { signal: watch })
}

/// The side that begins the drain. Dropped without one, it never begins.
#[derive(Debug)]
pub struct Drain {
    signal: watch::Sender<bool>,
}

/// The side that keeps the process alive until it is done.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    signal: watch::Receiver<bool>,
}

impl Drain {
    /// Begins the drain and waits until every watch is dropped (true), or the deadline has passed (false).
    pub async fn drain(self, deadline: Duration) -> bool {
        self.signal.send_replace(true);
        tokio::time::timeout(deadline, self.signal.closed())
            .await
            .is_ok()
    }

    /// One more watch.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        DrainWatch {
            signal: self.signal.subscribe(),
        }
    }
}

impl DrainWatch {
    /// Whether the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.signal.borrow()
    }

    /// Resolves when the drain begins.
    pub async fn draining(&self) {
        let mut signal = self.signal.clone();
        if signal.wait_for(|draining| *draining).await.is_err() {
            // The drain was dropped: it can no longer begin.
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_every_watch() {
        let (drain, watch) = channel();
        let other = drain.watch();
        let serve = |watch: DrainWatch, takes| async move {
            assert!(!watch.is_draining());
            watch.draining().await;
            assert!(watch.is_draining());
            tokio::time::sleep(takes).await;
        };
        let started = tokio::time::Instant::now();
        let (done, (), ()) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                drain.drain(DEADLINE).await
            },
            serve(watch, Duration::from_secs(1)),
            serve(other, Duration::from_secs(3)),
        );
        assert!(done);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_gives_up_at_the_deadline() {
        let (drain, _watch) = channel();
        let started = tokio::time::Instant::now();
        assert!(!drain.drain(DEADLINE).await);
        assert_eq!(started.elapsed(), DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_drain_never_begins() {
        let (drain, watch) = channel();
        drop(drain);
        assert!(!watch.is_draining());
        assert!(
            tokio::time::timeout(DEADLINE, watch.draining())
                .await
                .is_err()
        );
    }
}
