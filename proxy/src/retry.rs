//! Whether, when and at whose expense a request is tried again.
//!
//! What the app provably never got is tried again whatever the method; what it may have processed only if the method
//! is idempotent. A budget per cluster keeps the latter a small share of the traffic of the last seconds, so that they
//! never make an outage worse; how long a retry waits or takes does not matter to it.

mod replay;
mod window;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use tulle_runtime::backoff::Backoff;

use crate::balance;
use crate::config::Cluster;
use crate::config::cluster::ClusterState;
use crate::config::route::RetryPolicy;
use crate::upstream::UpstreamError;

pub use replay::{HEAVY, Replay, RequestBody, RequestBodyError, RequestFailure, Uploads, Waiting};
pub use window::RetryWindow;

/// Times that a pooled connection may turn out to be closed before the request counts as failed: these attempts
/// sent nothing, cost nothing and are not retries in the sense of any policy.
const MAX_STALE: u32 = 3;

/// Bytes of a request body that are kept for replay where no route says otherwise.
pub const REPLAY_CAP: usize = 64 * 1024;

/// The retries of one request.
#[derive(Debug)]
pub struct Retries<'p> {
    policy: &'p RetryPolicy,
    idempotent: bool,
    left: u32,
    stale_left: u32,
    backoff: Option<Backoff>,
}

/// A retry, from the decision until its response has ended.
#[derive(Debug)]
pub struct BudgetGuard(Arc<ClusterState>);

impl<'p> Retries<'p> {
    /// No retry was made yet.
    #[must_use]
    pub fn new(policy: &'p RetryPolicy, method: &Method) -> Self {
        Self {
            policy,
            idempotent: method.is_idempotent(),
            left: policy.attempts,
            stale_left: MAX_STALE,
            backoff: None,
        }
    }

    /// Whether the request may be sent twice, if need be.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// Whether a retry is left at all.
    #[must_use]
    pub fn are_left(&self) -> bool {
        self.left > 0
    }

    /// Whether the policy retries an attempt that ended without a response.
    #[must_use]
    pub fn covers(&self, error: &UpstreamError) -> bool {
        error.is_unprocessed()
            || (self.idempotent && self.policy.on_reset && error.may_be_processed())
    }

    /// Whether the policy retries an attempt that took too long.
    #[must_use]
    pub fn cover_timeout(&self) -> bool {
        self.idempotent
            && self
                .policy
                .status_codes
                .contains(&StatusCode::GATEWAY_TIMEOUT)
    }

    /// Whether the policy retries a response.
    #[must_use]
    pub fn cover_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let grpc =
            || grpc_status(headers).is_some_and(|code| self.policy.grpc_codes.contains(&code));
        (self.idempotent && self.policy.status_codes.contains(&status))
            || (!self.policy.grpc_codes.is_empty() && grpc())
    }

    /// Takes one of the attempts that a closed pooled connection may cost.
    pub fn take_stale(&mut self) -> bool {
        let left = self.stale_left > 0;
        self.stale_left = self.stale_left.saturating_sub(1);
        left
    }

    /// Takes a retry of a request that no app got: each such request still reaches at most one app, so that its
    /// retries make no outage worse and need no budget.
    pub fn take_free(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let policy = self.policy;
        let backoff = self
            .backoff
            .get_or_insert_with(|| Backoff::new(policy.backoff_base, policy.backoff_max));
        Some(backoff.next_delay())
    }

    /// Takes a retry of a request that an app may have got: how long to wait before it, and its share of the budget.
    /// `None`: no retry is left, or the cluster has had too many of them.
    pub fn take(&mut self, cluster: &Cluster) -> Option<(Duration, BudgetGuard)> {
        let delay = self.take_free()?;
        Some((delay, BudgetGuard::new(cluster, balance::now_ms())?))
    }
}

/// `grpc-status` of a response whose head is all there is, or of its trailers.
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl BudgetGuard {
    fn new(cluster: &Cluster, now: u64) -> Option<Self> {
        let state = &cluster.state;
        let share = cluster.limits.retry_budget_percent;
        let floor = cluster.limits.min_retry_concurrency;
        let limit = if share == 0 { floor } else { u32::MAX };
        let counted = state.retries.fetch_update(Relaxed, Relaxed, |retries| {
            (retries < limit).then(|| retries + 1)
        });
        let guard = counted.is_ok().then(|| Self(state.clone()))?;
        (share == 0 || state.window.take(share, floor, now)).then_some(guard)
    }
}

impl Drop for BudgetGuard {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
