//! Ending a program without cutting anybody off.
//!
//! A [`DrainWatch`] is the right to keep the process alive: whoever serves something holds a clone, stops accepting
//! when [`DrainWatch::draining`] resolves, finishes what is open and lets the clone go. [`Drain::drain`] waits for all
//! of them, up to a deadline; whoever must not be ended by the end of the process itself learns of that too.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;

/// How long whoever has heard that the deadline has passed may take to let go.
const LAST: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Draining,
    Over,
}

/// A drain that has not begun, and the watches of those who take part in it.
#[must_use]
pub fn channel() -> (Drain, DrainWatch) {
    let (signal, watch) = watch::channel(Phase::Running);
    (Drain { signal }, DrainWatch { signal: watch })
}

/// The side that begins the drain. Dropped without one, it never begins.
#[derive(Debug)]
pub struct Drain {
    signal: watch::Sender<Phase>,
}

/// The side that keeps the process alive until it is done.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    signal: watch::Receiver<Phase>,
}

impl Drain {
    /// Begins the drain and waits until every watch is dropped (true), or the deadline has passed (false) and those who
    /// wait for that have had a moment to end.
    pub async fn drain(self, deadline: Duration) -> bool {
        for (phase, patience) in [(Phase::Draining, deadline), (Phase::Over, LAST)] {
            self.signal.send_replace(phase);
            let ended = tokio::time::timeout(patience, self.signal.closed()).await;
            if ended.is_ok() {
                return phase == Phase::Draining;
            }
        }
        false
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
        *self.signal.borrow() >= Phase::Draining
    }

    /// Resolves when the drain begins.
    pub async fn draining(&self) {
        self.reaches(Phase::Draining).await;
    }

    /// Resolves when the deadline has passed.
    pub async fn over(&self) {
        self.reaches(Phase::Over).await;
    }

    async fn reaches(&self, wanted: Phase) {
        let mut signal = self.signal.clone();
        if signal.wait_for(|phase| *phase >= wanted).await.is_err() {
            // The drain was dropped: it comes to that no more.
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
        assert_eq!(started.elapsed(), DEADLINE + LAST);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_learns_that_the_deadline_has_passed() {
        let (drain, watch) = channel();
        let started = tokio::time::Instant::now();
        let ends = async move { watch.over().await };
        let (in_time, ()) = tokio::join!(drain.drain(DEADLINE), ends);
        assert!(!in_time);
        assert_eq!(started.elapsed(), DEADLINE, "nobody is waited for any more");
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
