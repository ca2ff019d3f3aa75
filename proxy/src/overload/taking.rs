//! Whether a connection's client takes what there is for it: the layer that writes knows, and whoever has to choose a
//! connection to give up asks.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Instant;

/// How long a client must have taken nothing before that is held against it, in milliseconds. A download that goes well
/// waits for its client again and again, for as long as its bytes are on their way.
pub(super) const PATIENCE: u64 = 100;

/// Since when a client has taken nothing of what it could have. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Taking(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    since: AtomicU64,
    /// Which shared connection what there is for it comes by; 0: none.
    source: AtomicUsize,
    /// Whether the end of its connection would end an answer that is not whole.
    partial: AtomicBool,
}

impl Taking {
    /// Whether something has been waiting for the client for too long.
    pub(super) fn has_stopped(&self) -> bool {
        is_long_ago(self.0.since.load(Relaxed))
    }

    /// From now on what there is for the client comes by a connection with this number.
    #[inline]
    pub(crate) fn comes_by(&self, source: usize) {
        self.0.source.store(source, Relaxed);
    }

    /// Whether the end of its connection would end an answer that is not whole.
    #[inline]
    pub(crate) fn is_partial(&self, partial: bool) {
        self.0.partial.store(partial, Relaxed);
    }

    /// Whether it does.
    pub(super) fn is_by(&self, source: usize) -> bool {
        self.0.source.load(Relaxed) == source
    }

    /// As if the client had taken nothing for long.
    #[cfg(test)]
    pub(crate) fn stop(&self) {
        self.0.since.store(1, Relaxed);
    }
}

/// The half of the layer that writes. A write that does not change anything costs it one comparison.
#[derive(Debug, Default)]
pub struct Giving {
    taking: Taking,
    waits: bool,
}

impl Giving {
    /// For a connection.
    #[must_use]
    pub fn to(taking: Taking) -> Self {
        Self {
            taking,
            waits: false,
        }
    }

    /// Whether the connection must not end in peace now.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.taking.0.partial.load(Relaxed)
    }

    /// Notes how a write ended, or that it did not.
    #[inline]
    pub fn note<T>(&mut self, written: &Poll<T>) {
        if self.waits != written.is_pending() {
            self.change();
        }
    }

    #[cold]
    fn change(&mut self) {
        self.waits = !self.waits;
        let since = if self.waits { now() } else { 0 };
        self.taking.0.since.store(since, Relaxed);
    }
}

/// A moment since when something has not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Since(u64);

impl Since {
    pub(crate) fn now() -> Self {
        Self(now())
    }

    /// Whether that is held against whoever it is waited for.
    pub(crate) fn is_long_ago(self) -> bool {
        is_long_ago(self.0)
    }
}

/// Whether a wait that began then is held against whoever is waited for; 0: there is none.
pub(super) fn is_long_ago(since: u64) -> bool {
    since != 0 && has_waited(since, PATIENCE)
}

/// Whether a wait that began then has lasted so many milliseconds.
pub(super) fn has_waited(since: u64, patience: u64) -> bool {
    now().saturating_sub(since) >= patience
}

/// Milliseconds by a clock of this process; the first is [`PATIENCE`] after 1.
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    // As timers do; tests stop that clock.
    let now = tokio::time::Instant::now().into_std();
    let elapsed = now.saturating_duration_since(start);
    u64::try_from(elapsed.as_millis()).map_or(u64::MAX, |now| now.saturating_add(1 + PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_stopped_only_if_nothing_moves_for_a_while() {
        let taking = Taking::default();
        let mut giving = Giving::to(taking.clone());
        giving.note(&Poll::Ready(()));
        assert_eq!(taking.0.since.load(Relaxed), 0);
        giving.note(&Poll::<()>::Pending);
        let since = taking.0.since.load(Relaxed);
        assert!(since > 0);
        assert!(!taking.has_stopped(), "it has only begun to wait");
        taking.stop();
        assert!(taking.has_stopped());
        giving.note(&Poll::<()>::Pending);
        assert!(taking.has_stopped(), "it still waits");
        giving.note(&Poll::Ready(()));
        assert!(!taking.has_stopped());
    }
}
