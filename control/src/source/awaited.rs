//! What has not been read yet, and why: for whoever waits for it, and whoever asks what is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::report::Place;
use crate::store::Kind;

/// Kinds that are waited for, and resources that cannot be listed; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Awaited(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    kinds: BTreeSet<Kind>,
    /// By the kind, as metrics name it.
    failing: BTreeMap<Arc<str>, Failing>,
}

#[derive(Debug)]
struct Failing {
    place: Place,
    since: Instant,
    why: String,
}

impl Awaited {
    /// These have not been read.
    pub(super) fn wait_for(&self, kinds: &BTreeSet<Kind>) {
        self.0.lock().kinds.clone_from(kinds);
    }

    /// No list of this one was ever complete, and has been failing since then.
    pub(super) fn fails(&self, kind: &Arc<str>, place: Place, since: Instant, why: String) {
        let failing = Failing { place, since, why };
        self.0.lock().failing.insert(kind.clone(), failing);
    }

    /// A list is complete, or nobody asks for it any more.
    pub(super) fn ends(&self, kind: &str) {
        self.0.lock().failing.remove(kind);
    }

    /// Since when one that was never read has been failing.
    pub(super) fn failing_since(&self, kind: &str) -> Option<Instant> {
        Some(self.0.lock().failing.get(kind)?.since)
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        for (index, kind) in state.kinds.iter().enumerate() {
            write!(f, "{}{kind}", if index == 0 { ": " } else { ", " })?;
        }
        for Failing { place, why, .. } in state.failing.values() {
            write!(f, "\n{place}: {why}")?;
        }
        Ok(())
    }
}
