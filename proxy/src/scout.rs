//! Looks after endpoints that could not be reached, so that clients need not find out at their own cost whether they are back: of
//! one whose node is gone, each attempt takes all the time that connecting may take.
//!
//! A connection that is not answered in time is repeated by the sidecar itself until the endpoint answers, or has failed often
//! enough to be ejected; and before an ejected one gets a request again, the sidecar has seen that it can be connected to.

use std::net::SocketAddr;
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
/// Milliseconds between two looks around in a cluster, and at how many endpoints at a time: where servers are silent because they have
/// too much to do, looking must not be what they do.
const AROUND_MS: u64 = 5_000;
const MOST_AROUND: usize = 16;

/// Counts a connection that a client needed and could not have, and looks after the endpoint from now on where that is of use.
/// `late`: it was not answered in time. Returns whether the endpoint was ejected.
pub(crate) fn connect_failed(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    late: bool,
) -> bool {
    let ejected = balance::report_connect_failure(cluster, endpoint, now_ms());
    if late || ejected {
        let lookout = Lookout {
            settings: worker.settings.clone(),
            config: worker.config.clone(),
            cluster: cluster.clone(),
        };
        if late {
            lookout.look_around(endpoint);
        }
        lookout.look_after(endpoint, ejected);
    }
    ejected
}

/// What it takes to look after the endpoints of a cluster.
#[derive(Clone)]
struct Lookout {
    settings: Arc<Settings>,
    config: Config,
    cluster: Arc<Cluster>,
}

impl Lookout {
    fn look_after(&self, endpoint: &Arc<Endpoint>, ejected: bool) {
        // One look at a time.
        if endpoint.state.scouted.swap(true, Relaxed) {
            return;
        }
        let scout = Scout {
            lookout: self.clone(),
            endpoint: endpoint.clone(),
            _looking: Looking(endpoint.state.clone()),
        };
        if !ejected {
            scout.begin_look();
        }
        spawn_local(scout.run());
    }

    /// Where one endpoint is silent others may be, for they were on the same node: has those found out before clients meet them.
    fn look_around(&self, silent: &Endpoint) {
        let (now, last) = (now_ms(), &self.cluster.state.looked_around);
        let before = last.load(Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= AROUND_MS;
        if !due
            || last
                .compare_exchange(before, now, Relaxed, Relaxed)
                .is_err()
        {
            return;
        }
        let all = &self.cluster.endpoints;
        let first = fastrand::usize(..all.len().max(1));
        let others = all.iter().cycle().skip(first).take(all.len());
        let others = others.filter(|it| it.address != silent.address && !balance::is_out(it, now));
        for endpoint in others.take(MOST_AROUND) {
            let (lookout, endpoint) = (self.clone(), endpoint.clone());
            spawn_local(async move {
                let dialed = lookout.dial(endpoint.address).await;
                if dialed.is_none() {
                    let now = now_ms();
                    let ejected = balance::report_connect_failure(&lookout.cluster, &endpoint, now);
                    lookout.look_after(&endpoint, ejected);
                }
            });
        }
    }

    /// Whether one can be connected to, unless nobody answers in time.
    async fn dial(&self, address: SocketAddr) -> Option<bool> {
        let dialed = dial(&self.settings, address, Reach::Out);
        let dialed = timeout(self.cluster.connect_timeout, dialed).await;
        dialed.ok().map(|dialed| dialed.is_ok())
    }
}

/// Who looks after one endpoint.
struct Scout {
    lookout: Lookout,
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
            if self.lookout.dial(self.endpoint.address).await == Some(true) {
                let (address, cluster) = (self.endpoint.address, &self.lookout.cluster.name);
                tracing::debug!(server.addr = %address, %cluster, "an endpoint can be connected to again");
                return balance::end_look(&self.endpoint);
            }
            let now = now_ms();
            balance::report_connect_failure(&self.lookout.cluster, &self.endpoint, now);
            if balance::is_ejected(&self.endpoint, now) {
                continue;
            }
            if state.consecutive_failures.load(Relaxed)
                >= self.lookout.cluster.outlier.consecutive_local_failures
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
        let look = self.lookout.cluster.connect_timeout + AHEAD + SLACK;
        balance::begin_look(&self.lookout.cluster, &self.endpoint, now_ms(), look);
    }

    /// Whether the cluster still has it.
    fn is_wanted(&self) -> bool {
        let config = self.lookout.config.load();
        let cluster = config.cluster(&self.lookout.cluster.name);
        cluster.is_some_and(|cluster| {
            let mut endpoints = cluster.endpoints.iter();
            endpoints.any(|it| Arc::ptr_eq(&it.state, &self.endpoint.state))
        })
    }
}
