//! Says what is waited for, where that takes more than two seconds.

use std::time::{Duration, Instant};

/// Shorter waits are nobody's business.
const SHORT: Duration = Duration::from_secs(2);
/// Between two lines about the same wait.
const AGAIN: Duration = Duration::from_secs(10);

/// A wait. Its end is told if its being was.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    began: Instant,
    next: Duration,
}

impl Progress {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            began: Instant::now(),
            next: SHORT,
        }
    }

    /// How long it has taken so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Call it again and again.
    pub(crate) fn tick(&mut self) {
        let elapsed = self.elapsed();
        if elapsed >= self.next {
            eprintln!("cluster: {} ({} s so far)", self.what, elapsed.as_secs());
            self.next = elapsed + AGAIN;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.next > SHORT {
            let seconds = self.elapsed().as_secs_f64();
            eprintln!("cluster: {}: {seconds:.1} s", self.what);
        }
    }
}
