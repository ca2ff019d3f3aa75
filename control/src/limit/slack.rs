//! Gives memory back that large requests took and nobody uses any more. One call of the C library, which has no safe form.
//!
//! What was freed stays with the allocator, which hands it out again but does not return it: without this a control plane stays
//! as large as its worst client once made it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

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
            if tokio::task::spawn_blocking(trim).await.is_err() {
                tracing::error!("memory was not given back");
            }
        }
    }
}

/// Has the allocator give free memory back to the kernel.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "the C library's own function, which nobody wraps"
)]
fn trim() {
    // SAFETY: it takes a number, holds the allocator's own locks, and may be called from any thread at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
