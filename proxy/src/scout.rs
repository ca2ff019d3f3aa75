//! Looks after endpoints that could not be reached, so that clients need not find out at their own cost whether they are back: of
//! one whose node is gone, each attempt takes all the time that connecting may take.
//!
//! A connection that is not answered in time is repeated by the sidecar itself until the endpoint answers, or has failed often
//! enough to be ejected; and before an ejected one gets a request again, the sidecar has seen that it can be connected to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::balance::{self, Unreachable, now_ms};
use crate::config::cluster::EndpointState;
use crate::config::{Cluster, Config, Endpoint};
use crate::net::{Reach, dial};
use crate::settings::Settings;
use crate::worker::Worker;

/// So much before an ejection ends, the endpoint is kept out for as long as the look at it takes.
const AHEAD: Duration = Duration::from_millis(20);
/// How much longer than connecting takes, for a busy machine.
const SLACK: Duration = Duration::from_secs(1);
/// Milliseconds between two looks around in a cluster, and at how many endpoints: where servers are silent because they have too
/// much to do, looking must not be what they do. One that finds more of them is followed at once by one at twice as many.
const AROUND_MS: u64 = 5_000;
const FIRST_AROUND: usize = 16;
const MOST_AROUND: usize = 256;

/// What it takes to look after endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Means {
    settings: Arc<Settings>,
    config: Config,
}

impl Means {
    pub(crate) fn of(worker: &Worker) -> Self {
        Self {
            settings: worker.settings.clone(),
            config: worker.config.clone(),
        }
    }
}

/// Counts a connection that a client needed and could not have, and looks after the endpoint from now on where that is of use.
/// `late`: it was not answered in time. Returns whether the endpoint was ejected.
pub(crate) fn connect_failed(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    late: bool,
) -> bool {
    failed(Means::of(worker), cluster, endpoint, late)
}

/// The same of an endpoint that acknowledges nothing on a connection that was made before.
pub(crate) fn unanswered(means: &Means, cluster: &str, endpoint: &Arc<Endpoint>) {
    let config = means.config.load();
    let Some(cluster) = config.cluster(cluster) else {
        return;
    };
    failed(means.clone(), cluster, endpoint, true);
}

fn failed(means: Means, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, late: bool) -> bool {
    let why = Unreachable::Failed;
    let ejected = balance::report_connect_failure(cluster, endpoint, why, now_ms());
    if late || ejected {
        let cluster = cluster.clone();
        let lookout = Lookout { means, cluster };
        if late {
            lookout.look_around(endpoint);
        }
        lookout.look_after(endpoint, why, ejected);
    }
    ejected
}

/// What it takes to look after the endpoints of a cluster.
#[derive(Clone)]
struct Lookout {
    means: Means,
    cluster: Arc<Cluster>,
}

impl Lookout {
    fn look_after(&self, endpoint: &Arc<Endpoint>, why: Unreachable, ejected: bool) {
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
            scout.begin_look(why);
        }
        spawn_local(scout.run(why));
    }

    /// Where one endpoint is silent others may be, for they were on the same node: has those found out before clients meet them.
    fn look_around(&self, silent: &Endpoint) {
        let (now, last) = (now_ms(), &self.cluster.state.looked_around);
        let before = last.load(Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= AROUND_MS;
        if due && last.compare_exchange(before, now, Relaxed, Relaxed).is_ok() {
            spawn_local(self.clone().go_around(silent.address));
        }
    }

    /// Looks at some, and at twice as many others for as long as there are silent ones among them.
    async fn go_around(self, silent: SocketAddr) {
        let (mut many, now) = (FIRST_AROUND, now_ms());
        let others = self.cluster.endpoints.iter();
        let others = others.filter(|it| it.address != silent && !balance::is_out(it, now));
        let mut others: Vec<_> = others.cloned().collect();
        fastrand::shuffle(&mut others);
        while !others.is_empty() {
            let some = others.split_off(others.len().saturating_sub(many));
            let silent = join_all(some.iter().map(|it| self.is_silent(it))).await;
            if !silent.contains(&true) {
                return;
            }
            many = (many * 2).min(MOST_AROUND);
        }
    }

    /// Looks at one of whom nothing is known, and after it if it is silent.
    async fn is_silent(&self, endpoint: &Arc<Endpoint>) -> bool {
        let silent = self.dial(endpoint.address).await.is_none();
        if silent {
            let why = Unreachable::Silent;
            let ejected = balance::report_connect_failure(&self.cluster, endpoint, why, now_ms());
            self.look_after(endpoint, why, ejected);
        }
        silent
    }

    /// Whether one can be connected to, unless nobody answers in time.
    async fn dial(&self, address: SocketAddr) -> Option<bool> {
        let dialed = dial(&self.means.settings, address, Reach::Out);
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
    async fn run(self, mut why: Unreachable) {
        loop {
            self.ejection(why).await;
            let state = &self.endpoint.state;
            // Somebody has got through, or it is nobody's endpoint any more.
            if state.consecutive_failures.load(Relaxed) == 0 || !self.is_wanted() {
                return;
            }
            why = match self.lookout.dial(self.endpoint.address).await {
                Some(true) => {
                    let (address, cluster) = (self.endpoint.address, &self.lookout.cluster.name);
                    tracing::debug!(server.addr = %address, %cluster, "an endpoint can be connected to again");
                    state.silent.store(false, Relaxed);
                    return balance::end_look(&self.endpoint);
                }
                Some(false) => Unreachable::Failed,
                None => Unreachable::Silent,
            };
            let (cluster, now) = (&self.lookout.cluster, now_ms());
            balance::report_connect_failure(cluster, &self.endpoint, why, now);
            if balance::is_ejected(&self.endpoint, now) {
                continue;
            }
            let failures = state.consecutive_failures.load(Relaxed);
            if failures >= cluster.outlier.consecutive_local_failures {
                // No more may be ejected: clients go on trying it.
                return balance::end_look(&self.endpoint);
            }
            self.begin_look(why);
        }
    }

    /// Waits for the end of its ejection, if it is ejected, and keeps it out for the time of the look.
    async fn ejection(&self, why: Unreachable) {
        let until = self.endpoint.state.ejected_until.load(Relaxed);
        let left = Duration::from_millis(until.saturating_sub(now_ms()));
        if left.is_zero() {
            return;
        }
        sleep(left.saturating_sub(AHEAD)).await;
        if self.endpoint.state.ejected_until.load(Relaxed) == 0 {
            return;
        }
        self.begin_look(why);
        let left = Duration::from_millis(until.saturating_sub(now_ms()));
        sleep(left).await;
    }

    fn begin_look(&self, why: Unreachable) {
        let cluster = &self.lookout.cluster;
        let look = cluster.connect_timeout + AHEAD + SLACK;
        balance::begin_look(cluster, &self.endpoint, why, now_ms(), look);
    }

    /// Whether the cluster still has it.
    fn is_wanted(&self) -> bool {
        let config = self.lookout.means.config.load();
        let cluster = config.cluster(&self.lookout.cluster.name);
        cluster.is_some_and(|cluster| {
            let mut endpoints = cluster.endpoints.iter();
            endpoints.any(|it| Arc::ptr_eq(&it.state, &self.endpoint.state))
        })
    }
}
