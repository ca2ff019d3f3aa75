//! Limits of a cluster: counted in its shared state, given back by guards.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;

use crate::config::Cluster;
use crate::config::cluster::ClusterState;
use crate::upstream::UpstreamError;

/// Wakes those who wait for a connection of a cluster on this worker.
#[derive(Clone, Debug, Default)]
pub(in crate::upstream) struct Freed(Rc<Notify>);

impl Freed {
    /// Something became free.
    pub(in crate::upstream) fn notify(&self) {
        self.0.notify_one();
    }

    pub(super) async fn wait(&self) {
        self.0.notified().await;
    }
}

/// An open connection; counted until dropped.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectionGuard {
    state: Arc<ClusterState>,
    freed: Freed,
}

impl ConnectionGuard {
    /// Counts one more, unless the cluster has as many as it may.
    pub(super) fn new(cluster: &Cluster, freed: Freed) -> Option<Self> {
        let counted = count(&cluster.state.connections, cluster.limits.max_connections);
        counted.then(|| Self {
            state: cluster.state.clone(),
            freed,
        })
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.state.connections.fetch_sub(1, Relaxed);
        self.freed.notify();
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
        .fetch_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1))
        .is_ok()
}
