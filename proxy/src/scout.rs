//! Looks after endpoints that could not be reached, so that clients need not find out at their own cost whether they are back: of
//! one whose node is gone, each attempt takes all the time that connecting may take.
//!
//! A connection that is not answered in time is repeated by the sidecar itself until the endpoint answers, or has failed often
//! enough to be ejected; and before an ejected one gets a request again, the sidecar has seen that it can be connected to.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::balance::{self, now_ms};
use crate::config::cluster::EndpointState;
use crate::config::{Cluster, Config, Endpoint};
use crate::net::{Reach, dial};
use crate::settings::Settings;
use crate::worker::Worker;

/// So much before an ejection ends, the endpoint is kept out for as long as the look at it takes.
const AHEAD: Duration = Duration::from_millis(20);
/// How much longer than connecting takes, for a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// Counts a connection that a client needed and could not have, and looks after the endpoint from now on where that is of use.
/// `late`: it was not answered in time. Returns whether the endpoint was ejected.
pub(crate) fn connect_failed(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    late: bool,
) -> bool {
    let ejected = balance::report_connect_failure(cluster, endpoint, now_ms());
    // One look at a time.
    if (late || ejected) && !endpoint.state.scouted.swap(true, Relaxed) {
        let scout = Scout {
            settings: worker.settings.clone(),
            config: worker.config.clone(),
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            _looking: Looking(endpoint.state.clone()),
        };
        if !ejected {
            scout.begin_look();
        }
        spawn_local(scout.run());
    }
    ejected
}

/// Who looks after one endpoint.
struct Scout {
    settings: Arc<Settings>,
    config: Config,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    _looking: Looking,
}

/// While it is there, nobody else looks.
struct Looking(Arc<EndpointState>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.scouted.store(false, Relaxed);
    }
}

impl Scout {
    async fn run(self) {
        loop {
            self.ejection().await;
            let state = &self.endpoint.state;
            // Somebody has got through, or it is nobody's endpoint any more.
            if state.consecutive_failures.load(Relaxed) == 0 || !self.is_wanted() {
                return;
            }
            if self.answers().await {
                let (address, cluster) = (self.endpoint.address, &self.cluster.name);
                tracing::debug!(server.addr = %address, %cluster, "an endpoint can be connected to again");
                return balance::end_look(&self.endpoint);
            }
            let now = now_ms();
            balance::report_connect_failure(&self.cluster, &self.endpoint, now);
            if balance::is_ejected(&self.endpoint, now) {
                continue;
            }
            if state.consecutive_failures.load(Relaxed)
                >= self.cluster.outlier.consecutive_local_failures
            {
                // No more may be ejected: clients go on trying it.
                return balance::end_look(&self.endpoint);
            }
            self.begin_look();
        }
    }

    /// Waits for the end of its ejection, if it is ejected, and keeps it out for the time of the look.
    async fn ejection(&self) {
        let until = self.endpoint.state.ejected_until.load(Relaxed);
        let left = Duration::from_millis(until.saturating_sub(now_ms()));
        if left.is_zero() {
            return;
        }
        sleep(left.saturating_sub(AHEAD)).await;
        if self.endpoint.state.ejected_until.load(Relaxed) == 0 {
            return;
        }
        self.begin_look();
        let left = Duration::from_millis(until.saturating_sub(now_ms()));
        sleep(left).await;
    }

    fn begin_look(&self) {
        let look = self.cluster.connect_timeout + AHEAD + SLACK;
        balance::begin_look(&self.cluster, &self.endpoint, now_ms(), look);
    }

    async fn answers(&self) -> bool {
        let dialed = dial(&self.settings, self.endpoint.address, Reach::Out);
        let dialed = timeout(self.cluster.connect_timeout, dialed).await;
        dialed.is_ok_and(|dialed| dialed.is_ok())
    }

    /// Whether the cluster still has it.
    fn is_wanted(&self) -> bool {
        let config = self.config.load();
        let cluster = config.cluster(&self.cluster.name);
        cluster.is_some_and(|cluster| {
            let mut endpoints = cluster.endpoints.iter();
            endpoints.any(|it| Arc::ptr_eq(&it.state, &self.endpoint.state))
        })
    }
}
