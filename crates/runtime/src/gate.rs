//! Lets a few log lines through, and counts the others: whoever can make one cannot fill a disk with them.
//!
//! Nobody waits at a gate for somebody else: its state is in atomics, and whoever floods one takes no lock from the others.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

/// How many times wider a gate is that is for all.
const WIDE: u32 = 10;
/// Gates for the clients of one kind of lines. By which of them a client comes nobody can choose: of those that flood, each
/// hides one in so many others.
const CLIENTS: usize = 64;

/// How many lines may come.
#[derive(Clone, Copy, Debug)]
struct Pace {
    at_once: u32,
    /// How long it takes until there may be one more.
    each: Duration,
}

const NARROW_PACE: Pace = Pace {
    at_once: 5,
    each: Duration::from_secs(1),
};

const WIDE_PACE: Pace = Pace {
    at_once: NARROW_PACE.at_once * WIDE,
    each: Duration::from_millis(1_000 / WIDE as u64),
};

/// When the lines that went through will have been paid for, in nanoseconds.
#[derive(Debug, Default)]
struct Paid(AtomicU64);

impl Paid {
    /// Whether one more line might come now.
    fn is_open(&self, pace: Pace, now: u64) -> bool {
        let paid = self.0.load(Relaxed).max(now);
        paid + nanos(pace.each) <= now + nanos(pace.each) * u64::from(pace.at_once)
    }

    /// Whether one more line may come.
    fn take(&self, pace: Pace, now: u64) -> bool {
        let each = nanos(pace.each);
        let pay = |paid: u64| {
            let paid = paid.max(now) + each;
            (paid <= now + each * u64::from(pace.at_once)).then_some(paid)
        };
        self.0.fetch_update(Relaxed, Relaxed, pay).is_ok()
    }
}

/// A gate for lines of one kind: five at once, and one a second.
#[derive(Debug)]
pub struct Gate {
    begun: Instant,
    pace: Pace,
    paid: Paid,
    left_out: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(NARROW_PACE)
    }
}

impl Gate {
    /// One for lines about many, of whom each has his own: ten times as wide.
    #[must_use]
    pub fn wide() -> Self {
        Self::new(WIDE_PACE)
    }

    fn new(pace: Pace) -> Self {
        Self {
            begun: Instant::now(),
            pace,
            paid: Paid::default(),
            left_out: AtomicU64::new(0),
        }
    }

    /// Whether a line may be written; if so, how many were left out since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_with(0)
    }

    /// Whether a line may be written that has to pass another gate, too; if so, how many were left out at both.
    pub fn pass_within(&self, all: &Self) -> Option<u64> {
        all.pass_with(self.pass()?)
    }

    /// As [`Self::pass`], for a line that tells of so many others.
    fn pass_with(&self, others: u64) -> Option<u64> {
        if self.paid.take(self.pace, since(self.begun)) {
            return Some(self.left_out.swap(0, Relaxed) + others);
        }
        self.left_out.fetch_add(1 + others, Relaxed);
        None
    }

    /// How many lines were left out since the last one, now that no more will come.
    pub fn close(&self) -> u64 {
        self.left_out.swap(0, Relaxed)
    }
}

/// Gates for each of a few kinds of lines, so that no client's lines hide those of another: five at once and one a second of
/// a client, and ten times as many of all.
#[derive(Debug)]
pub struct Gates<K> {
    begun: Instant,
    clients: RandomState,
    /// Copied for a new kind, which does not happen often.
    kinds: ArcSwap<HashMap<K, Arc<Kind>>>,
}

/// The gates of one kind of lines.
#[derive(Debug)]
struct Kind {
    all: Paid,
    clients: [Paid; CLIENTS],
    /// Of all clients.
    left_out: AtomicU64,
}

impl Kind {
    fn pass(&self, client: usize, now: u64) -> Option<u64> {
        // What the gate for all does not let through is no line of the client's.
        let any = self.all.is_open(WIDE_PACE, now);
        if any && self.clients[client].take(NARROW_PACE, now) && self.all.take(WIDE_PACE, now) {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

impl<K> Default for Gates<K> {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            clients: RandomState::new(),
            kinds: ArcSwap::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Gates<K> {
    /// Whether a line of this kind may be written about a client; if so, how many of the kind were left out since the last
    /// one. There must be no more kinds than the program has names for.
    pub fn pass(&self, kind: &K, client: IpAddr) -> Option<u64> {
        let now = since(self.begun);
        let own = self.clients.hash_one(network(client)) as usize % CLIENTS;
        match self.kinds.load().get(kind) {
            Some(kind) => kind.pass(own, now),
            None => self.add(kind).pass(own, now),
        }
    }

    fn add(&self, kind: &K) -> Arc<Kind> {
        let new = Arc::new(Kind {
            all: Paid::default(),
            clients: std::array::from_fn(|_| Paid::default()),
            left_out: AtomicU64::new(0),
        });
        let add = |kinds: &Arc<HashMap<K, Arc<Kind>>>| {
            let mut kinds = HashMap::clone(kinds);
            kinds.entry(kind.clone()).or_insert_with(|| new.clone());
            kinds
        };
        self.kinds.rcu(add);
        // Somebody else may have come first.
        self.kinds.load().get(kind).cloned().unwrap_or(new)
    }
}

/// Whose an address is: of IPv6 a host has 64 bits of its own.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(client) => {
            let [a, b, c, d, ..] = client.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        v4 => v4,
    }
}

fn since(begun: Instant) -> u64 {
    nanos(begun.elapsed())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests;
