//! What becomes of connections that nobody uses: they are closed when a snapshot has no use for them, when they have
//! lain idle for long, or when another worker wants one.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::{ClusterPool, Inner, PASSTHROUGH};
use crate::config::cluster::ClusterState;
use crate::config::{Config, Snapshot};
use crate::net::Reach;

/// How long a connection may lie idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often idle connections are looked at.
const REAP_INTERVAL: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) fn sync(&mut self, snapshot: &Snapshot) {
        if self.generation == snapshot.generation {
            return;
        }
        self.generation = snapshot.generation;
        self.clusters.retain(|name, pool| {
            let cluster = snapshot.cluster(name);
            pool.shelves.retain(|key, shelf| {
                let original = key.reach == Reach::App || **name == *PASSTHROUGH;
                let keep = original || cluster.is_some_and(|cluster| key.is_in(cluster));
                if !keep {
                    shelf.retire();
                }
                keep
            });
            !pool.shelves.is_empty()
        });
    }

    fn reap(&mut self) {
        let current = self.svid;
        self.clusters.retain(|_, pool| {
            pool.shelves.retain(|key, shelf| {
                let stale = key.svid != 0 && key.svid != current;
                shelf.reap(if stale { Duration::ZERO } else { IDLE_TIMEOUT });
                // A shelf that somebody holds is about to be used, and what is leased from one will come back to it.
                let held = Rc::strong_count(shelf) > 1 || Rc::weak_count(shelf) > 0;
                held || !shelf.is_empty()
            });
            !pool.shelves.is_empty()
        });
    }
}

impl ClusterPool {
    /// Closes an idle connection, if there is any.
    pub(super) fn evict(&self) -> bool {
        self.shelves.values().any(|shelf| shelf.evict())
    }

    /// Closes everything as soon as nothing runs on it.
    pub(super) fn retire(&self) {
        for shelf in self.shelves.values() {
            shelf.retire();
        }
    }
}

/// Closes what lies idle for too long, and what a new snapshot has no use for, until nothing is left.
pub(super) async fn tend(pools: Weak<RefCell<Inner>>, config: Config) {
    let mut changed = config.changed();
    let mut followed = true;
    loop {
        tokio::select! {
            biased;
            published = changed.changed(), if followed => followed = published.is_ok(),
            () = tokio::time::sleep(REAP_INTERVAL) => {}
        }
        let Some(inner) = pools.upgrade() else {
            return;
        };
        let mut inner = inner.borrow_mut();
        inner.sync(&config.load());
        inner.reap();
        if inner.clusters.is_empty() {
            inner.tended = false;
            return;
        }
    }
}

/// Closes an idle connection of a cluster whenever somebody waits for one, wherever that is.
pub(super) async fn give(pools: Weak<RefCell<Inner>>, name: Arc<str>, state: Arc<ClusterState>) {
    let mut wanted = pin!(state.wanted.notified());
    loop {
        wanted.as_mut().await;
        // Before the look, so that what is wanted after it is not missed.
        wanted.set(state.wanted.notified());
        wanted.as_mut().enable();
        let Some(inner) = pools.upgrade() else {
            return;
        };
        if let Some(pool) = inner.borrow().clusters.get(&name) {
            pool.evict();
        }
    }
}
