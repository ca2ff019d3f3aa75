//! Good versions of objects that cannot be used any more, stored in the cluster.
//!
//! An edit that cannot be used leaves in force what the object was before. That must not depend on which replica saw it before,
//! nor end when one restarts, so the version before is stored as a [`ConfigSnapshot`](crate::api::ConfigSnapshot) beside its
//! object. Every replica follows them ([`crate::source`] takes of them what objects cannot say any more); [`SnapshotWriter`]
//! stores what is missing and deletes what nobody needs.
//!
//! Invariant: of the versions of an object that are known, stored ones and one that was seen, the latest good one counts. Whoever
//! has seen an earlier one, or none, comes to the same as soon as it is stored.
//!
//! The Gateway API leaves falling back to the last known good state to those who can restore it when they restart, see
//! `RouteConditionPartiallyInvalid` in <https://pkg.go.dev/sigs.k8s.io/gateway-api/apis/v1#RouteConditionType>.

mod revision;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::{Kind, ObjectKey, ObjectRef};

pub(crate) use revision::{Revision, read};
pub(crate) use writer::{Metrics, SnapshotWriter};

/// Largest spec that is stored. An object of etcd has 1.5 MiB at most, with all that is around its spec.
const LARGEST: usize = 1 << 20;

/// A good version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Its `metadata.generation`.
    pub(crate) generation: i64,
    /// Its spec in JSON; `None` if it did not concern the mesh.
    pub(crate) spec: Option<Arc<str>>,
}

/// An object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) uid: Arc<str>,
    /// The version of its API that it was read in.
    pub(crate) api: &'static str,
    /// What it was before, if anybody here knows.
    pub(crate) good: Option<Version>,
}

/// What is in force of an object that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum InForce {
    #[default]
    Nothing,
    /// What was seen; nobody can say which generation that was.
    Former,
    /// This generation, and it is stored.
    Stored(i64),
    /// This generation, which will be stored in a moment, or cannot be.
    Seen(i64),
    /// This generation, of which too much would have to be stored.
    TooLarge(i64),
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing of it is in force"),
            Self::Former => {
                f.write_str("what it was before stays in force until the control plane restarts")
            }
            Self::Stored(generation) => write!(f, "generation {generation} stays in force"),
            Self::Seen(generation) => write!(
                f,
                "generation {generation} stays in force until the control plane restarts, as it is not stored yet"
            ),
            Self::TooLarge(generation) => write!(
                f,
                "generation {generation} stays in force until the control plane restarts, as its spec is too large to be stored"
            ),
        }
    }
}

/// Everything that is stored, and everything that cannot be used. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    state: Arc<Mutex<State>>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether what is stored was listed once.
    listed: bool,
    /// Whether routes do not wait for that any more.
    waived: bool,
    stored: BTreeMap<ObjectKey, Revision>,
    /// The stored ones of an object, by the uid that they are for.
    of: BTreeMap<(ObjectRef, Arc<str>), BTreeMap<i64, ObjectKey>>,
    broken: BTreeMap<ObjectRef, Broken>,
    /// Kinds of which it is known which objects there are.
    settled: BTreeSet<Kind>,
}

/// Something to do.
#[derive(Clone, Debug)]
enum Task {
    /// Store a version.
    Store(Revision),
    /// Delete one that is stored.
    Drop(Revision),
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Snapshots {
    /// Sees changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> (bool, T)) -> T {
        let mut state = self.state.lock();
        let (changed, result) = change(&mut state);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
        result
    }

    /// There is a stored version.
    pub(crate) fn put(&self, revision: Revision) {
        self.change(|state| (state.put(revision), ()));
    }

    /// There is no such stored version.
    pub(crate) fn remove(&self, key: &ObjectKey) {
        self.change(|state| (state.remove(key), ()));
    }

    /// The stored ones that there are were listed, and no others.
    pub(crate) fn listed(&self, there: &BTreeSet<ObjectKey>) {
        self.change(|state| {
            let gone = state.stored.keys().filter(|key| !there.contains(*key));
            let gone: Vec<_> = gone.cloned().collect();
            gone.iter().for_each(|key| {
                state.remove(key);
            });
            let first = !std::mem::replace(&mut state.listed, true);
            (first || !gone.is_empty(), ())
        });
    }

    /// There is no such kind, so nobody can tell what would be stored. Routes do without, and policies wait.
    pub(crate) fn undefined(&self) {
        self.change(|state| {
            let stored: Vec<_> = state.stored.keys().cloned().collect();
            stored.iter().for_each(|key| {
                state.remove(key);
            });
            let listed = std::mem::take(&mut state.listed);
            let waived = std::mem::replace(&mut state.waived, true);
            (listed || !waived || !stored.is_empty(), ())
        });
    }

    /// Whether what is stored was listed once, or objects of a kind do not wait for that any more. Without a policy something
    /// might be open that was closed, so policies do.
    pub(crate) fn is_settled(&self, kind: Kind) -> bool {
        let state = self.state.lock();
        state.listed || (state.waived && kind.is_route())
    }

    /// What is stored cannot be listed, and routes wait for it no longer; whether that is news.
    pub(crate) fn waive(&self) -> bool {
        self.change(|state| {
            let news = !state.listed && !std::mem::replace(&mut state.waived, true);
            (news, news)
        })
    }

    /// The stored versions of an object up to its present generation, the latest first.
    pub(crate) fn versions(&self, object: &ObjectRef, uid: &Arc<str>, now: i64) -> Vec<Version> {
        let state = self.state.lock();
        let stored = state.of.get(&(object.clone(), uid.clone()));
        let stored = stored.into_iter().flat_map(|it| it.range(..=now).rev());
        let stored = stored.filter_map(|(_, key)| state.stored.get(key));
        stored.map(|it| it.version.clone()).collect()
    }

    /// An object cannot be used, or can; says what is in force if it cannot.
    pub(crate) fn judge(&self, object: &ObjectRef, broken: Option<Broken>) -> InForce {
        self.change(|state| {
            let before = state.broken.get(object);
            let changed = before != broken.as_ref();
            let Some(broken) = broken else {
                state.broken.remove(object);
                return (changed, InForce::Nothing);
            };
            let in_force = state.in_force(object, &broken);
            if changed {
                state.broken.insert(object.clone(), broken);
            }
            (changed, in_force)
        })
    }

    /// All objects of a kind have been judged.
    pub(crate) fn settled(&self, kind: Kind) {
        self.change(|state| (state.settled.insert(kind), ()));
    }

    /// What has to be stored, as it would be.
    #[cfg(test)]
    pub(crate) fn missing(&self) -> Vec<serde_json::Value> {
        let state = self.state.lock();
        state.missing().map(|it| it.manifest()).collect()
    }

    /// What there is to do.
    fn tasks(&self) -> Vec<Task> {
        let state = self.state.lock();
        if !state.listed {
            return Vec::new();
        }
        let missing = state.missing().map(Task::Store);
        let needless = state.stored.values().filter(|it| state.is_needless(it));
        let needless = needless.cloned().map(Task::Drop);
        missing.chain(needless).collect()
    }
}

impl State {
    fn put(&mut self, revision: Revision) -> bool {
        let key = revision.key();
        if self.stored.get(&key) == Some(&revision) {
            return false;
        }
        self.remove(&key);
        let of = self.of.entry(revision.of()).or_default();
        of.insert(revision.version.generation, key.clone());
        self.stored.insert(key, revision);
        true
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        let Some(revision) = self.stored.remove(key) else {
            return false;
        };
        let of = revision.of();
        if let Some(stored) = self.of.get_mut(&of) {
            stored.remove(&revision.version.generation);
            if stored.is_empty() {
                self.of.remove(&of);
            }
        }
        true
    }

    fn is_stored(&self, object: &ObjectRef, uid: &Arc<str>, generation: i64) -> bool {
        let stored = self.of.get(&(object.clone(), uid.clone()));
        stored.is_some_and(|it| it.contains_key(&generation))
    }

    fn in_force(&self, object: &ObjectRef, broken: &Broken) -> InForce {
        let good = broken.good.as_ref();
        let Some((generation, spec)) = good.and_then(|it| Some((it.generation, it.spec.as_ref()?)))
        else {
            return InForce::Nothing;
        };
        match self.is_stored(object, &broken.uid, generation) {
            true => InForce::Stored(generation),
            false if spec.len() > LARGEST => InForce::TooLarge(generation),
            false => InForce::Seen(generation),
        }
    }

    /// Versions that count and are not stored.
    fn missing(&self) -> impl Iterator<Item = Revision> {
        self.broken.iter().filter_map(|(object, broken)| {
            let seen = matches!(self.in_force(object, broken), InForce::Seen(_));
            Some(Revision {
                object: object.clone(),
                uid: broken.uid.clone(),
                api: broken.api.into(),
                version: broken.good.clone().filter(|_| seen)?,
            })
        })
    }

    /// Whether no replica has a use for a stored version: its object can be used or is gone, or a later version counts.
    fn is_needless(&self, revision: &Revision) -> bool {
        let (object, generation) = (&revision.object, revision.version.generation);
        if !self.settled.contains(&object.kind) {
            return false;
        }
        let broken = self.broken.get(object);
        let Some(broken) = broken.filter(|it| it.uid == revision.uid) else {
            return true;
        };
        // Who can read none of them does not know what others can.
        broken.good.as_ref().is_some_and(|good| {
            let replaced =
                good.spec.is_none() || self.is_stored(object, &broken.uid, good.generation);
            generation < good.generation && replaced
        })
    }
}

#[cfg(test)]
mod tests;
