//! Lets a few log lines through, and counts the others: whoever can make one cannot fill a disk with them.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lines that may come at once.
const AT_ONCE: u32 = 5;
/// How long it takes until there may be one more.
const EACH: Duration = Duration::from_secs(1);
/// How many times wider a gate is that is for all.
const WIDE: u32 = 10;

/// A gate for lines of one kind: five at once, and one a second.
#[derive(Debug)]
pub struct Gate {
    each: Duration,
    state: Mutex<State>,
    at_once: u32,
}

#[derive(Debug, Default)]
struct State {
    /// When those that went through will have been paid for.
    paid: Option<Instant>,
    left_out: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            each: EACH,
            state: Mutex::default(),
            at_once: AT_ONCE,
        }
    }
}

impl Gate {
    /// One for lines about many, of whom each has his own: ten times as wide.
    #[must_use]
    pub fn wide() -> Self {
        Self {
            each: EACH / WIDE,
            state: Mutex::default(),
            at_once: AT_ONCE * WIDE,
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
        let now = Instant::now();
        let mut state = self.state.lock();
        let paid = state.paid.map_or(now, |paid| paid.max(now)) + self.each;
        if paid > now + self.each * self.at_once {
            state.left_out += 1 + others;
            return None;
        }
        state.paid = Some(paid);
        Some(std::mem::take(&mut state.left_out) + others)
    }

    /// How many lines were left out since the last one, now that no more will come.
    pub fn close(&self) -> u64 {
        std::mem::take(&mut self.state.lock().left_out)
    }
}

/// A gate for each of a few kinds of lines.
#[derive(Debug)]
pub struct Gates<K>(Mutex<HashMap<K, Gate>>);

impl<K> Default for Gates<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Gates<K> {
    /// As [`Gate::pass`], at the gate of this kind. There must be no more kinds than the program has names for.
    pub fn pass(&self, kind: K) -> Option<u64> {
        self.0.lock().entry(kind).or_default().pass()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_go_through_and_the_next_says_how_many_did_not() {
        let gate = Gate::default();
        let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
        assert_eq!(passed, [0; 5]);
        tokio::time::advance(EACH).await;
        assert_eq!(gate.pass(), Some(95));
        assert_eq!(gate.pass(), None);
        assert_eq!(gate.close(), 1);
        assert_eq!(gate.close(), 0);
        tokio::time::advance(EACH * 100).await;
        let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
        assert_eq!(passed, [0; 5], "a long silence saves nothing up");
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_has_a_gate_of_its_own() {
        let gates = Gates::default();
        let passed: Vec<_> = (0..100).filter_map(|_| gates.pass("often")).collect();
        assert_eq!(passed, [0; 5]);
        assert_eq!(gates.pass("seldom"), Some(0));
        tokio::time::advance(EACH).await;
        assert_eq!(gates.pass("often"), Some(95));
    }
}
