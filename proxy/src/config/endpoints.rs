//! The endpoints of a cluster, and what is worked out of them once, when the set is made, so that no pick has to.
//!
//! Immutable. What changes from one moment to the next (ejections, load) hangs on the endpoints themselves.

mod ring;

use std::ops::Deref;
use std::sync::Arc;

use super::cluster::{Endpoint, Health};

pub use ring::{Ring, address_hash, hash, ip_hash};

/// The endpoints of a cluster, sorted by address. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(Arc<Set>);

#[derive(Debug, Default)]
struct Set {
    all: Box<[Arc<Endpoint>]>,
    lineup: Lineup,
    ring: Option<Ring>,
}

/// Those that take new requests as far as the control plane knows: the healthy ones, or, if there are none, those that
/// drain.
#[derive(Debug, Default)]
pub struct Lineup {
    /// Positions in the set, in its order.
    members: Box<[u32]>,
    /// Sum of the weights up to and with each; `None` where all weigh the same.
    sums: Option<Box<[u64]>>,
    /// Sum of all weights.
    weight: u64,
}

impl Endpoints {
    /// Endpoints that hashes choose from as well.
    #[must_use]
    pub fn with_ring(endpoints: impl IntoIterator<Item = Arc<Endpoint>>) -> Self {
        Self::build(endpoints.into_iter().collect(), true)
    }

    fn build(all: Box<[Arc<Endpoint>]>, hashed: bool) -> Self {
        let lineup = Lineup::new(&all);
        let ring = hashed.then(|| Ring::new(&all, &lineup.members));
        Self(Arc::new(Set { all, lineup, ring }))
    }

    /// Those that requests are spread over.
    #[must_use]
    pub fn lineup(&self) -> &Lineup {
        &self.0.lineup
    }

    /// The way from hashes to endpoints, where the cluster's policy is to hash.
    #[must_use]
    pub fn ring(&self) -> Option<&Ring> {
        self.0.ring.as_ref()
    }
}

impl Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.0.all
    }
}

impl FromIterator<Arc<Endpoint>> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        Self::build(endpoints.into_iter().collect(), false)
    }
}

impl From<Vec<Arc<Endpoint>>> for Endpoints {
    fn from(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self::build(endpoints.into(), false)
    }
}

impl<const N: usize> From<[Arc<Endpoint>; N]> for Endpoints {
    fn from(endpoints: [Arc<Endpoint>; N]) -> Self {
        Self::build(Box::new(endpoints), false)
    }
}

impl Lineup {
    fn new(all: &[Arc<Endpoint>]) -> Self {
        let of = |health| {
            let indexed = (0_u32..).zip(all);
            let alike = indexed.filter(move |(_, endpoint)| endpoint.health == health);
            alike.map(|(index, _)| index).collect::<Box<[u32]>>()
        };
        let mut members = of(Health::Healthy);
        if members.is_empty() {
            members = of(Health::Draining);
        }
        let weights = members
            .iter()
            .map(|index| u64::from(all[*index as usize].weight.max(1)));
        let even = weights.clone().min() == weights.clone().max();
        let mut weight = 0;
        let sums = weights.map(|of_one| {
            weight += of_one;
            weight
        });
        let sums: Box<[u64]> = sums.collect();
        Self {
            members,
            sums: (!even).then_some(sums),
            weight,
        }
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The position of a random one, by weight.
    #[must_use]
    pub fn draw(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        Some(match &self.sums {
            None => self.member(rng.usize(..self.members.len())),
            Some(sums) => self.weighing(sums, rng.u64(..self.weight)),
        })
    }

    /// The position of the `n`th turn: one after the other if all weigh the same, else spread evenly by weight.
    #[must_use]
    pub fn turn(&self, n: u32) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        Some(match &self.sums {
            None => self.member(n as usize % self.members.len()),
            Some(sums) => {
                // Multiples of the golden ratio fall evenly into [0, 1), here scaled to 2^32.
                let spread = u64::from(n.wrapping_mul(0x9e37_79b9));
                let scaled = (u128::from(spread) * u128::from(self.weight)) >> 32;
                // It is below the weight, which fits.
                self.weighing(sums, u64::try_from(scaled).unwrap_or(0))
            }
        })
    }

    fn member(&self, at: usize) -> usize {
        self.members[at] as usize
    }

    fn weighing(&self, sums: &[u64], weight: u64) -> usize {
        self.member(sums.partition_point(|sum| *sum <= weight))
    }
}
