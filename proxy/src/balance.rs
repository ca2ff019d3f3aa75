//! Picks an endpoint of a cluster, and takes those out that cannot be reached.
//!
//! A pick takes no lock and allocates nothing, and mostly looks at one or two endpoints, however many there are: it
//! draws from those that the control plane calls healthy and draws again if it hits one that is ejected, which leaves
//! the shares of the others as they are. What it counts lives in atomics beside the snapshot ([`ClusterState`],
//! [`EndpointState`]), so it outlives config changes and is shared by all workers. Time comes in as milliseconds since
//! the process's start ([`now_ms`]), so that tests need no clock.
//!
//! An endpoint is preferred in this order: healthy and not tried yet for this request; healthy; draining; ejected
//! (panic: everything is ejected, and trying is better than refusing). An unhealthy endpoint is never picked.

mod candidates;
mod key;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::config::cluster::{ClusterState, EndpointState, LbPolicy, OutlierDetection};
use crate::config::{Cluster, Endpoint};

use candidates::Candidates;
pub use key::{of_client, of_request};

/// How much longer a failed response makes an endpoint less attractive ...
const TROUBLE_MS: u64 = 250;
/// ... and how long at most, where it is passed over altogether.
const TROUBLE_MAX_MS: u64 = 1_000;
/// How many draws an endpoint that is ejected or fails is given up for.
const DRAWS: usize = 8;
/// How many points of the ring are looked at for one whose endpoint can be used.
const STEPS: usize = 64;

/// Milliseconds since the first call in this process; never 0.
#[must_use]
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// Picks the endpoint for one attempt; `None`: the cluster has none that may be used (response flag `UH`).
///
/// `key` is what the request is hashed by, if its route says so; where the cluster hashes and there is none, any
/// endpoint will do. `avoid` holds the endpoints that earlier attempts of the same request used.
pub fn pick<'c>(
    cluster: &'c Cluster,
    key: Option<u64>,
    avoid: &[SocketAddr],
    now: u64,
    rng: &mut fastrand::Rng,
) -> Option<&'c Arc<Endpoint>> {
    let key = key.filter(|_| cluster.lb_policy == LbPolicy::ConsistentHash);
    let quick = Quick {
        cluster,
        avoid,
        now,
    };
    let picked = match (cluster.lb_policy, key) {
        (LbPolicy::LeastRequest, _) => quick.less_loaded(rng),
        (LbPolicy::RoundRobin, _) => quick.turn(rng),
        (LbPolicy::ConsistentHash, Some(key)) => quick.preferred(key),
        (LbPolicy::Random | LbPolicy::ConsistentHash, _) => quick.draw(rng),
    };
    let picked = picked.or_else(|| {
        let candidates = Candidates::best(&cluster.endpoints, avoid, now)?;
        Some(match (cluster.lb_policy, key) {
            (LbPolicy::LeastRequest, _) => {
                let first = candidates.draw(rng);
                less_loaded(first, candidates.draw(rng))
            }
            (_, Some(key)) => candidates.preferred(key),
            (_, None) => candidates.draw(rng),
        })
    });
    if let Some(endpoint) = picked {
        begin_trial(cluster, endpoint, now);
    }
    picked
}

/// Lets one request find out whether an endpoint is back whose ejection has ended. Where it is not, connecting takes as
/// long as it may, and so it would for all others that came along meanwhile.
fn begin_trial(cluster: &Cluster, endpoint: &Endpoint, now: u64) {
    let state = &endpoint.state;
    if state.ejected_until.load(Relaxed) != 0 && !is_out(endpoint, now) {
        state.trial_until.store(
            now.saturating_add(milliseconds(cluster.connect_timeout)),
            Relaxed,
        );
    }
}

/// The quick way to pick, without a look at all endpoints. It may find nobody though somebody is there.
struct Quick<'c, 'a> {
    cluster: &'c Cluster,
    avoid: &'a [SocketAddr],
    now: u64,
}

impl<'c> Quick<'c, '_> {
    /// An endpoint of the lineup, if it can be used.
    fn usable(&self, position: usize) -> Option<&'c Arc<Endpoint>> {
        let endpoint = self.cluster.endpoints.get(position)?;
        let usable = !is_out(endpoint, self.now) && !self.avoid.contains(&endpoint.address);
        usable.then_some(endpoint)
    }

    /// A random one, rarely one that fails just now.
    fn draw(&self, rng: &mut fastrand::Rng) -> Option<&'c Arc<Endpoint>> {
        let lineup = self.cluster.endpoints.lineup();
        let mut drawn = None;
        for _ in 0..DRAWS {
            let Some(endpoint) = self.usable(lineup.draw(rng)?) else {
                continue;
            };
            drawn = Some(endpoint);
            if !is_passed_over(endpoint, self.now, rng) {
                break;
            }
        }
        drawn
    }

    fn less_loaded(&self, rng: &mut fastrand::Rng) -> Option<&'c Arc<Endpoint>> {
        let first = self.draw(rng)?;
        Some(less_loaded(first, self.draw(rng)?))
    }

    /// The next in turn. The turn of one that cannot be used goes to any other, not to its neighbour.
    fn turn(&self, rng: &mut fastrand::Rng) -> Option<&'c Arc<Endpoint>> {
        let turn = self.cluster.state.next.fetch_add(1, Relaxed);
        let next = self.usable(self.cluster.endpoints.lineup().turn(turn)?);
        next.filter(|endpoint| !is_passed_over(endpoint, self.now, rng))
            .or_else(|| self.draw(rng))
    }

    /// The one that a hash prefers. Failed responses do not end an affinity: other endpoints know nothing of the
    /// client.
    fn preferred(&self, key: u64) -> Option<&'c Arc<Endpoint>> {
        let ring = self.cluster.endpoints.ring()?;
        ring.walk(key)
            .take(STEPS)
            .find_map(|position| self.usable(position))
    }
}

/// The endpoint with fewer active requests per weight; the first one if both have as many.
fn less_loaded<'c>(first: &'c Arc<Endpoint>, second: &'c Arc<Endpoint>) -> &'c Arc<Endpoint> {
    let load = |of: &Endpoint, other: &Endpoint| {
        u64::from(of.state.active.load(Relaxed)) * u64::from(other.weight)
    };
    if load(second, first) < load(first, second) {
        second
    } else {
        first
    }
}

/// Whether a pick looks for another endpoint, because this one fails just now: the more so the more it fails.
fn is_passed_over(endpoint: &Endpoint, now: u64, rng: &mut fastrand::Rng) -> bool {
    // Mostly there is no trouble, and no need for a random number.
    let until = endpoint.state.troubled_until.load(Relaxed);
    until > now && rng.u64(..TROUBLE_MAX_MS) < until - now
}

/// Counts a response that says that the endpoint cannot serve, or a connection that ended without one. The endpoint
/// stays in, but is picked less until it has gone without failures for a second: an endpoint that fails at once always
/// has the fewest active requests, and would get most of the traffic.
pub fn report_failed_response(endpoint: &Endpoint, now: u64) {
    let until = &endpoint.state.troubled_until;
    // It always returns a value, so it cannot fail.
    let _ = until.fetch_update(Relaxed, Relaxed, |until| {
        Some((until.max(now) + TROUBLE_MS).min(now + TROUBLE_MAX_MS))
    });
}

/// What is known of an endpoint that could not be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// An attempt failed. Where too much is asked of endpoints they fail as well, so no more may be out than
    /// [`OutlierDetection::max_ejection_percent`] says: the rest would have to do with even more.
    Failed,
    /// The sidecar itself got no answer when it tried. That all may be that but one: such an endpoint serves nobody.
    Silent,
}

impl Unreachable {
    /// How many endpoints of a cluster may be out at a time.
    fn most_out(self, cluster: &Cluster) -> usize {
        let all = cluster.endpoints.len();
        match self {
            Self::Failed => all * cluster.outlier.max_ejection_percent as usize / 100,
            Self::Silent => all.saturating_sub(1),
        }
    }
}

/// Keeps an endpoint out for a while in which the sidecar finds out whether it can be connected to, unless too many are out.
pub fn begin_look(
    cluster: &Cluster,
    endpoint: &Endpoint,
    why: Unreachable,
    now: u64,
    look: Duration,
) {
    let out = cluster.endpoints.iter().filter(|it| is_out(it, now));
    if is_out(endpoint, now) || out.count() < why.most_out(cluster) {
        let until = now.saturating_add(milliseconds(look));
        endpoint.state.trial_until.store(until, Relaxed);
    }
}

/// Has requests find out the rest: one, if the endpoint was ejected.
pub fn end_look(endpoint: &Endpoint) {
    endpoint.state.trial_until.store(0, Relaxed);
}

/// Whether an endpoint is ejected at a moment.
#[must_use]
pub fn is_ejected(endpoint: &Endpoint, now: u64) -> bool {
    endpoint.state.ejected_until.load(Relaxed) > now
}

/// Whether an endpoint is ejected at a moment, or somebody is finding out whether it can be reached.
pub(crate) fn is_out(endpoint: &Endpoint, now: u64) -> bool {
    let state = &endpoint.state;
    state.ejected_until.load(Relaxed) > now || state.trial_until.load(Relaxed) > now
}

/// How many endpoints of a cluster are ejected at a moment.
#[must_use]
pub fn ejected(cluster: &Cluster, now: u64) -> usize {
    cluster
        .endpoints
        .iter()
        .filter(|endpoint| is_ejected(endpoint, now))
        .count()
}

/// Counts a connect failure or timeout; enough of them in a row eject the endpoint, as long as no more than may be are
/// ejected. Returns whether this one did.
pub fn report_connect_failure(
    cluster: &Cluster,
    endpoint: &Endpoint,
    why: Unreachable,
    now: u64,
) -> bool {
    let state = &endpoint.state;
    if why == Unreachable::Silent {
        state.silent.store(true, Relaxed);
    }
    let failures = state
        .consecutive_failures
        .fetch_add(1, Relaxed)
        .saturating_add(1);
    if failures < cluster.outlier.consecutive_local_failures || is_ejected(endpoint, now) {
        return false;
    }
    if ejected(cluster, now) >= why.most_out(cluster) {
        return false;
    }
    let exponent = state.ejections.fetch_add(1, Relaxed);
    let until = now + ejection_ms(&cluster.outlier, exponent);
    state.ejected_until.store(until, Relaxed);
    state.trial_until.store(0, Relaxed);
    true
}

/// Counts a connection that was made: the endpoint is back in at once.
pub fn report_connect_success(endpoint: &Endpoint) {
    let state = &endpoint.state;
    // Reading first keeps the cache line shared while nothing is wrong.
    if state.consecutive_failures.load(Relaxed) != 0 {
        state.consecutive_failures.store(0, Relaxed);
        state.trial_until.store(0, Relaxed);
        state.silent.store(false, Relaxed);
    }
    if state.ejections.load(Relaxed) != 0 {
        state.ejections.store(0, Relaxed);
        state.ejected_until.store(0, Relaxed);
    }
}

/// Counts an answer. It ends a trial as well as a new connection does: it may have come over one that is older than the ejection.
pub fn report_answer(endpoint: &Endpoint) {
    let state = &endpoint.state;
    if state.trial_until.load(Relaxed) != 0 {
        state.trial_until.store(0, Relaxed);
        state.ejected_until.store(0, Relaxed);
    }
}

fn ejection_ms(outlier: &OutlierDetection, exponent: u32) -> u64 {
    let factor = 1_u64.checked_shl(exponent).unwrap_or(u64::MAX);
    milliseconds(outlier.base_ejection_time)
        .saturating_mul(factor)
        .min(milliseconds(outlier.max_ejection_time))
        .max(1)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request (or opaque connection) in flight; counts it in its cluster until dropped, and at the endpoint that it is
/// at.
#[derive(Debug)]
pub struct ActiveGuard {
    cluster: Arc<ClusterState>,
    endpoint: Option<Arc<EndpointState>>,
}

impl ActiveGuard {
    /// Counts one more.
    #[must_use]
    pub fn new(cluster: &Cluster, endpoint: &Endpoint) -> Self {
        let mut guard = Self::of_cluster(cluster);
        guard.enter(endpoint);
        guard
    }

    /// Counts one more, at no endpoint.
    #[must_use]
    pub fn of_cluster(cluster: &Cluster) -> Self {
        cluster.state.active.fetch_add(1, Relaxed);
        Self {
            cluster: cluster.state.clone(),
            endpoint: None,
        }
    }

    /// Goes to an endpoint, and away from the one before.
    pub fn enter(&mut self, endpoint: &Endpoint) {
        self.leave();
        endpoint.state.active.fetch_add(1, Relaxed);
        self.endpoint = Some(endpoint.state.clone());
    }

    /// Is at no endpoint for now.
    pub fn leave(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.active.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.cluster.active.fetch_sub(1, Relaxed);
        self.leave();
    }
}

#[cfg(test)]
mod tests;
