//! The careful way to pick: looks at every endpoint and keeps to the best class of them. It is taken where the quick
//! one found nobody, that is: on retries, and while most of a cluster is ejected.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{DRAWS, is_out, is_passed_over};
use crate::config::Endpoint;
use crate::config::cluster::Health;
use crate::config::endpoints::{address_hash, hash};

/// The best non-empty class of endpoints.
pub(super) struct Candidates<'c, 'a> {
    endpoints: &'c [Arc<Endpoint>],
    avoid: &'a [SocketAddr],
    now: u64,
    class: Class,
    /// Sum of their weights, greater than zero.
    weight: u64,
}

/// Classes of endpoints, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Fresh,
    Tried,
    Draining,
    Ejected,
    EjectedDraining,
}

impl<'c, 'a> Candidates<'c, 'a> {
    pub(super) fn best(
        endpoints: &'c [Arc<Endpoint>],
        avoid: &'a [SocketAddr],
        now: u64,
    ) -> Option<Self> {
        let mut best: Option<(Class, u64)> = None;
        for endpoint in endpoints {
            let Some(class) = classify(endpoint, avoid, now) else {
                continue;
            };
            let weight = u64::from(endpoint.weight.max(1));
            best = match best {
                Some((so_far, sum)) if so_far == class => Some((class, sum + weight)),
                Some((so_far, sum)) if so_far < class => Some((so_far, sum)),
                _ => Some((class, weight)),
            };
        }
        let (class, weight) = best?;
        Some(Self {
            endpoints,
            avoid,
            now,
            class,
            weight,
        })
    }

    fn iter(&self) -> impl Iterator<Item = &'c Arc<Endpoint>> {
        let wanted = Some(self.class);
        self.endpoints
            .iter()
            .filter(move |endpoint| classify(endpoint, self.avoid, self.now) == wanted)
    }

    /// A random candidate, rarely one that fails just now.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> &'c Arc<Endpoint> {
        let mut drawn = self.at(rng.u64(..self.weight));
        for _ in 1..DRAWS {
            if !is_passed_over(drawn, self.now, rng) {
                break;
            }
            drawn = self.at(rng.u64(..self.weight));
        }
        drawn
    }

    /// The candidate that a hash prefers: always the same one while it is a candidate.
    pub(super) fn preferred(&self, key: u64) -> &'c Arc<Endpoint> {
        let preference = |endpoint: &&'c Arc<Endpoint>| {
            hash(&(key ^ address_hash(endpoint.address)).to_le_bytes())
        };
        let preferred = self.iter().max_by_key(preference);
        preferred.unwrap_or(&self.endpoints[0])
    }

    /// The candidate at a position below the sum of weights.
    fn at(&self, position: u64) -> &'c Arc<Endpoint> {
        let mut left = position;
        let mut last = None;
        for endpoint in self.iter() {
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
}

/// `None`: it is never picked.
fn classify(endpoint: &Endpoint, avoid: &[SocketAddr], now: u64) -> Option<Class> {
    let ejected = is_out(endpoint, now);
    match endpoint.health {
        Health::Healthy if ejected => Some(Class::Ejected),
        Health::Healthy if avoid.contains(&endpoint.address) => Some(Class::Tried),
        Health::Healthy => Some(Class::Fresh),
        Health::Draining if ejected => Some(Class::EjectedDraining),
        Health::Draining => Some(Class::Draining),
        Health::Unhealthy => None,
    }
}
