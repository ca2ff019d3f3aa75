//! How many captured connections are open, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// Connections of one direction that are open.
#[derive(Debug, Default)]
pub struct Count {
    now: AtomicUsize,
    closed: Notify,
}

impl Count {
    /// How many there are.
    #[must_use]
    pub fn get(&self) -> usize {
        self.now.load(Relaxed)
    }

    /// Resolves soon after one of them has closed. One close wakes one who waits.
    pub async fn one_closed(&self) {
        self.closed.notified().await;
    }

    /// Another number of them, for tests.
    #[cfg(test)]
    pub(crate) fn set(&self, now: usize) {
        self.now.store(now, Relaxed);
        self.closed.notify_one();
    }
}

/// Counts a connection as open while it lives.
#[derive(Debug)]
pub struct Open {
    count: Arc<Count>,
    gauge: Gauge,
}

impl Open {
    pub(super) fn new(count: &Arc<Count>, gauge: Gauge) -> Self {
        gauge.inc();
        count.now.fetch_add(1, Relaxed);
        Self {
            count: count.clone(),
            gauge,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
        self.count.now.fetch_sub(1, Relaxed);
        self.count.closed.notify_one();
    }
}
