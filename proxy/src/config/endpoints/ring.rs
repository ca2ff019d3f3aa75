//! Consistent hashing: every endpoint owns points on a ring, and a hash goes to the owner of the next point.
//!
//! An endpoint's points depend on nothing but its own address and weight. So when one leaves, exactly its hashes move,
//! and they spread over all others; when one comes, it takes its share and nothing else moves. (Maglev's table, which
//! spreads more evenly, moves some others along.) Every sidecar and every worker finds the same.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::cluster::Endpoint;

/// Points of the heaviest endpoint, or of all if they weigh the same: shares are even within about a tenth.
const POINTS: u64 = 128;

/// The points of all endpoints, sorted: where it lies in the upper half, the endpoint's position in the lower one.
#[derive(Debug)]
pub struct Ring(Box<[u64]>);

impl Ring {
    pub(super) fn new(all: &[Arc<Endpoint>], members: &[u32]) -> Self {
        let weight = |index: u32| u64::from(all[index as usize].weight.max(1));
        let heaviest = members.iter().map(|index| weight(*index)).max();
        // Rounded up, so that it rarely changes: if it does, the points of all others do as well.
        let full = heaviest.unwrap_or(1).next_power_of_two();
        let mut points = Vec::new();
        for index in members {
            let seed = address_hash(all[*index as usize].address);
            let count = (POINTS * weight(*index)).div_ceil(full);
            points.extend((1..=count).map(|n| {
                let at = mix(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32;
                at << 32 | u64::from(*index)
            }));
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// Positions of endpoints in the order in which a hash prefers them, each as often as it has points.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.0.partition_point(|point| *point < key & !0xffff_ffff);
        let (before, after) = self.0.split_at(start);
        after
            .iter()
            .chain(before)
            .map(|point| (*point & 0xffff_ffff) as usize)
    }
}

/// A hash of bytes that is the same in every process.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, whose upper bits need the mixing.
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The hash of an IP address; a mapped one counts as the IPv4 address that it is.
#[must_use]
pub fn ip_hash(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}

/// The hash of an address with its port.
#[must_use]
pub fn address_hash(address: SocketAddr) -> u64 {
    mix(ip_hash(address.ip()) ^ u64::from(address.port()))
}

/// Every bit of the result depends on every bit of the number (the finalizer of splitmix64).
fn mix(mut number: u64) -> u64 {
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
