//! Picks an endpoint of a cluster, and takes those out that cannot be reached.
//!
//! A pick walks the cluster's endpoints without a lock or an allocation. What it counts lives in atomics beside the
//! snapshot ([`ClusterState`], [`EndpointState`]), so it outlives config changes and is shared by all workers. Time
//! comes in as milliseconds since the process's start ([`now_ms`]), so that tests need no clock.
//!
//! An endpoint is preferred in this order: healthy and not tried yet for this request; healthy; draining; ejected
//! (panic: everything is ejected, and trying is better than refusing). An unhealthy endpoint is never picked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::config::cluster::{ClusterState, EndpointState, Health, LbPolicy, OutlierDetection};
use crate::config::{Cluster, Endpoint};

/// How much longer a failed response makes an endpoint less attractive ...
const TROUBLE_MS: u64 = 250;
/// ... and how long at most, where it is passed over altogether.
const TROUBLE_MAX_MS: u64 = 1_000;
/// How many draws an endpoint that fails is given up for.
const DRAWS: usize = 8;

/// Milliseconds since the first call in this process; never 0.
#[must_use]
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// Picks the endpoint for one attempt; `None`: the cluster has none that may be used (response flag `UH`).
///
/// `avoid` holds the endpoints that earlier attempts of the same request used.
pub fn pick<'c>(
    cluster: &'c Cluster,
    avoid: &[SocketAddr],
    now: u64,
    rng: &mut fastrand::Rng,
) -> Option<&'c Arc<Endpoint>> {
    let candidates = Candidates::best(&cluster.endpoints, avoid, now)?;
    Some(match cluster.lb_policy {
        LbPolicy::LeastRequest => {
            let first = candidates.draw(rng);
            less_loaded(first, candidates.draw(rng))
        }
        LbPolicy::Random => candidates.draw(rng),
        LbPolicy::RoundRobin => {
            let turn = candidates.turn(cluster.state.next.fetch_add(1, Relaxed));
            let next = candidates.at(turn);
            if is_passed_over(next, now, rng) {
                candidates.draw(rng)
            } else {
                next
            }
        }
    })
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

/// The best non-empty class of endpoints.
struct Candidates<'c, 'a> {
    endpoints: &'c [Arc<Endpoint>],
    avoid: &'a [SocketAddr],
    now: u64,
    class: Class,
    /// How many they are.
    count: u64,
    /// Sum of their weights, greater than zero.
    weight: u64,
    /// Whether all of them weigh the same.
    even: bool,
}

/// Classes of endpoints, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Fresh,
    Tried,
    Draining,
    Ejected,
    EjectedDraining,
    Never,
}

impl<'c, 'a> Candidates<'c, 'a> {
    fn best(endpoints: &'c [Arc<Endpoint>], avoid: &'a [SocketAddr], now: u64) -> Option<Self> {
        const CLASSES: usize = Class::Never as usize;
        let mut weights = [0_u64; CLASSES];
        let mut counts = [0_u64; CLASSES];
        let mut even = [true; CLASSES];
        let mut seen = [0_u32; CLASSES];
        for endpoint in endpoints {
            let class = classify(endpoint, avoid, now) as usize;
            if class == CLASSES {
                continue;
            }
            weights[class] += u64::from(endpoint.weight.max(1));
            counts[class] += 1;
            even[class] &= seen[class] == 0 || seen[class] == endpoint.weight;
            seen[class] = endpoint.weight;
        }
        let all = [
            Class::Fresh,
            Class::Tried,
            Class::Draining,
            Class::Ejected,
            Class::EjectedDraining,
        ];
        let class = all.into_iter().find(|class| counts[*class as usize] > 0)?;
        let (count, weight) = (counts[class as usize], weights[class as usize]);
        Some(Self {
            endpoints,
            avoid,
            now,
            class,
            count,
            weight,
            even: even[class as usize],
        })
    }

    /// The candidate at a position below the sum of weights.
    fn at(&self, position: u64) -> &'c Arc<Endpoint> {
        let mut left = position;
        let mut last = None;
        for endpoint in self.endpoints {
            if classify(endpoint, self.avoid, self.now) != self.class {
                continue;
            }
            last = Some(endpoint);
            let weight = u64::from(endpoint.weight.max(1));
            if left < weight {
                return endpoint;
            }
            left -= weight;
        }
        // An endpoint left the class on another thread since it was counted.
        last.unwrap_or(&self.endpoints[0])
    }

    /// A random candidate, rarely one that fails just now.
    fn draw(&self, rng: &mut fastrand::Rng) -> &'c Arc<Endpoint> {
        let mut drawn = self.at(rng.u64(..self.weight));
        for _ in 1..DRAWS {
            if !is_passed_over(drawn, self.now, rng) {
                break;
            }
            drawn = self.at(rng.u64(..self.weight));
        }
        drawn
    }

    /// The position of the `n`th turn: one after the other if all weigh the same, else spread evenly by weight.
    fn turn(&self, n: u32) -> u64 {
        if self.even {
            return (u64::from(n) % self.count) * (self.weight / self.count);
        }
        // Multiples of the golden ratio fall evenly into [0, 1), here scaled to 2^32.
        let spread = n.wrapping_mul(0x9e37_79b9);
        (u64::from(spread) * self.weight) >> 32
    }
}

fn classify(endpoint: &Endpoint, avoid: &[SocketAddr], now: u64) -> Class {
    let ejected = is_ejected(endpoint, now);
    match endpoint.health {
        Health::Healthy if ejected => Class::Ejected,
        Health::Healthy if avoid.contains(&endpoint.address) => Class::Tried,
        Health::Healthy => Class::Fresh,
        Health::Draining if ejected => Class::EjectedDraining,
        Health::Draining => Class::Draining,
        Health::Unhealthy => Class::Never,
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

/// Whether an endpoint is ejected at a moment.
#[must_use]
pub fn is_ejected(endpoint: &Endpoint, now: u64) -> bool {
    endpoint.state.ejected_until.load(Relaxed) > now
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

/// Counts a connect failure or timeout; enough of them in a row eject the endpoint, as long as no more than the
/// allowed share of the cluster is out. Returns whether this one did.
pub fn report_connect_failure(cluster: &Cluster, endpoint: &Endpoint, now: u64) -> bool {
    let state = &endpoint.state;
    let failures = state
        .consecutive_failures
        .fetch_add(1, Relaxed)
        .saturating_add(1);
    if failures < cluster.outlier.consecutive_local_failures || is_ejected(endpoint, now) {
        return false;
    }
    let allowed =
        cluster.endpoints.len() as u64 * u64::from(cluster.outlier.max_ejection_percent) / 100;
    if ejected(cluster, now) as u64 >= allowed {
        return false;
    }
    let exponent = state.ejections.fetch_add(1, Relaxed);
    let until = now + ejection_ms(&cluster.outlier, exponent);
    state.ejected_until.store(until, Relaxed);
    true
}

/// Counts a connection that was made: the endpoint is back in at once.
pub fn report_connect_success(endpoint: &Endpoint) {
    let state = &endpoint.state;
    // Reading first keeps the cache line shared while nothing is wrong.
    if state.consecutive_failures.load(Relaxed) != 0 {
        state.consecutive_failures.store(0, Relaxed);
    }
    if state.ejections.load(Relaxed) != 0 {
        state.ejections.store(0, Relaxed);
        state.ejected_until.store(0, Relaxed);
    }
}

fn ejection_ms(outlier: &OutlierDetection, exponent: u32) -> u64 {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let factor = 1_u64.checked_shl(exponent).unwrap_or(u64::MAX);
    ms(outlier.base_ejection_time)
        .saturating_mul(factor)
        .min(ms(outlier.max_ejection_time))
        .max(1)
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
