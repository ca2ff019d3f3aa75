//! Limits of a cluster: counted in its shared state, given back by guards; and how to wait for what they leave.
//!
//! The limits are those of all workers together, but connections never move between workers. A request that finds as
//! many connections as there may be waits for one of three things: a stream or an idle connection on its own worker, or
//! a connection that closes anywhere. While somebody waits elsewhere, a worker closes what lies idle, or its share of
//! what comes back, to make room. Nobody waits longer than connecting may take. As long as nobody waits, all that this
//! costs is a look at a counter.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::config::Cluster;
use crate::config::cluster::ClusterState;
use crate::upstream::UpstreamError;

/// Wakes those who wait for a connection of a cluster on this worker.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Freed(Rc<Local>);

#[derive(Debug)]
struct Local {
    state: Arc<ClusterState>,
    /// Those who wait on this worker.
    waiting: Cell<u32>,
    freed: Notify,
}

impl Freed {
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self(Rc::new(Local {
            state: cluster.state.clone(),
            waiting: Cell::new(0),
            freed: Notify::new(),
        }))
    }

    /// Whether it is about a cluster with these counters.
    pub(super) fn is_of(&self, cluster: &Cluster) -> bool {
        Arc::ptr_eq(&self.0.state, &cluster.state)
    }

    /// One of those who wait can go on.
    pub(super) fn one(&self) {
        if self.0.waiting.get() > 0 {
            self.0.freed.notify_one();
        }
    }

    /// Several of them may be able to go on.
    pub(super) fn many(&self) {
        if self.0.waiting.get() > 0 {
            self.0.freed.notify_waiters();
        }
    }

    /// A stream has ended, perhaps the last one of its connection.
    pub(in crate::upstream) fn stream(&self, last: bool) {
        if last && self.is_wanted_elsewhere() {
            self.0.state.wanted.notify_waiters();
        } else {
            self.one();
        }
    }

    /// Whether a connection that became idle is to be closed, because others wait for it on other workers: as often as
    /// they are among all who wait.
    pub(super) fn is_wanted_elsewhere(&self) -> bool {
        let (all, here) = (self.0.state.starved.load(Relaxed), self.0.waiting.get());
        all > here && fastrand::u32(..all) >= here
    }
}

/// An open connection; counted until dropped.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectionGuard(Arc<ClusterState>);

impl ConnectionGuard {
    /// Counts one more, unless the cluster has as many as it may.
    pub(super) fn new(cluster: &Cluster) -> Option<Self> {
        let max = cluster.limits.max_connections;
        count(&cluster.state.connections, max).then(|| Self(cluster.state.clone()))
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        // In one order with what those who wait do: either they see this, or this sees them.
        self.0.connections.fetch_sub(1, SeqCst);
        if self.0.starved.load(SeqCst) > 0 {
            self.0.closed.notify_one();
        }
    }
}

/// A request for which there is no connection; counted until dropped.
#[derive(Debug)]
pub(super) struct Starved {
    freed: Freed,
    until: Instant,
}

impl Starved {
    /// Counts one more. Whoever waits looks once more after this.
    pub(super) fn new(cluster: &Cluster, freed: Freed) -> Self {
        freed.0.waiting.set(freed.0.waiting.get() + 1);
        freed.0.state.starved.fetch_add(1, SeqCst);
        Self {
            freed,
            until: Instant::now() + cluster.connect_timeout,
        }
    }

    /// Asks every worker for an idle connection.
    pub(super) fn ask(&self) {
        self.freed.0.state.wanted.notify_waiters();
    }

    /// Waits until there may be a connection.
    pub(super) async fn wait(&self) -> Result<(), UpstreamError> {
        let Local { state, freed, .. } = &*self.freed.0;
        let either = async {
            tokio::select! {
                biased;
                () = freed.notified() => {}
                () = state.closed.notified() => {}
            }
        };
        let late = |_| UpstreamError::Overflow("connections");
        timeout_at(self.until, either).await.map_err(late)
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        let Local { state, waiting, .. } = &*self.freed.0;
        waiting.set(waiting.get() - 1);
        // What woke this one may be more than it took: the next one looks.
        if state.starved.fetch_sub(1, SeqCst) > 1 {
            state.closed.notify_one();
        }
        self.freed.one();
    }
}

/// A request that waits for a connection; counted until dropped.
#[derive(Debug)]
pub(super) struct PendingGuard(Arc<ClusterState>);

impl PendingGuard {
    pub(super) fn new(cluster: &Cluster) -> Result<Self, UpstreamError> {
        if count(&cluster.state.pending, cluster.limits.max_pending_requests) {
            Ok(Self(cluster.state.clone()))
        } else {
            Err(UpstreamError::Overflow("pending requests"))
        }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

/// Adds one if there is room.
fn count(counter: &AtomicU32, max: u32) -> bool {
    counter
        .fetch_update(SeqCst, SeqCst, |count| (count < max).then(|| count + 1))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::pool::original_dst;

    const THREADS: u32 = 4;
    const TURNS: u32 = 500;

    /// Takes and gives back a connection, many times.
    async fn take_turns(cluster: &Cluster) {
        let freed = Freed::new(cluster);
        for _ in 0..TURNS {
            let mut starved: Option<Starved> = None;
            let taken = loop {
                match (ConnectionGuard::new(cluster), &starved) {
                    (Some(taken), _) => break taken,
                    (None, None) => starved = Some(Starved::new(cluster, freed.clone())),
                    (None, Some(waiting)) => waiting.wait().await.expect("it comes in time"),
                }
            };
            drop(starved);
            tokio::task::yield_now().await;
            drop(taken);
        }
    }

    #[test]
    fn whoever_waits_on_any_thread_gets_what_another_thread_gives_back() {
        let mut cluster = original_dst("c");
        cluster.limits.max_connections = 2;
        cluster.connect_timeout = Duration::from_secs(60);
        let threads = (0..THREADS).map(|_| {
            let cluster = cluster.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    tokio::join!(take_turns(&cluster), take_turns(&cluster));
                });
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("it ends");
        }
        assert_eq!(cluster.state.connections.load(Relaxed), 0);
        assert_eq!(cluster.state.starved.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_connecting_may_take() {
        let mut cluster = original_dst("c");
        cluster.limits.max_connections = 1;
        cluster.connect_timeout = Duration::from_secs(3);
        let _taken = ConnectionGuard::new(&cluster).expect("there is room");
        assert!(ConnectionGuard::new(&cluster).is_none());
        let freed = Freed::new(&cluster);
        let starved = Starved::new(&cluster, freed);
        let began = Instant::now();
        let waited = starved.wait().await;
        assert!(matches!(
            waited,
            Err(UpstreamError::Overflow("connections"))
        ));
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }

    #[test]
    fn others_get_their_share_of_what_comes_back() {
        let cluster = original_dst("c");
        let (here, there) = (Freed::new(&cluster), Freed::new(&cluster));
        let given = || (0..1_000).filter(|_| here.is_wanted_elsewhere()).count();
        assert_eq!(given(), 0, "nobody waits");
        let own = Starved::new(&cluster, here.clone());
        assert_eq!(given(), 0, "nobody waits elsewhere");
        let _other = Starved::new(&cluster, there);
        assert!((350..650).contains(&given()), "{}", given());
        drop(own);
        assert_eq!(given(), 1_000, "everybody waits elsewhere");
    }
}
