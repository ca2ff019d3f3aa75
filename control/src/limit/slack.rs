//! Gives memory back that large requests took and nobody uses any more.
//!
//! What was freed stays with the allocator, which hands it out again but does not return it: without this a control plane stays
//! as large as its worst client once made it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tulle_runtime::allocator;

/// Bytes of a request that leaves more than is soon used again.
pub(crate) const LARGE: usize = 256 << 10;
/// From the first large request to when memory is given back, so that many cost no more than one.
const LATER: Duration = Duration::from_secs(2);

/// Is told that there may be memory to give back. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slack(Arc<Notify>);

impl Slack {
    /// Something large was or will now be freed.
    pub(crate) fn left(&self) {
        self.0.notify_one();
    }

    /// Gives back what there is, a moment after it was told.
    pub(crate) async fn give_back(self) {
        loop {
            self.0.notified().await;
            tokio::time::sleep(LATER).await;
            // It takes milliseconds, and holds locks that allocations wait for, one after the other.
            if tokio::task::spawn_blocking(allocator::trim).await.is_err() {
                tracing::error!("memory was not given back");
            }
        }
    }
}
