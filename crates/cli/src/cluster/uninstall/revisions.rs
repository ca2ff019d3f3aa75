//! The revisions of which something is in a cluster.

use std::collections::BTreeSet;

use crate::cluster::owned::{DEPLOYMENT, Owned};

/// Which there are.
#[derive(Debug, Default)]
pub(super) struct Revisions {
    all: BTreeSet<String>,
    /// Those that have a part of theirs at work; of the others something is left.
    at_work: BTreeSet<String>,
}

impl Revisions {
    /// Those of objects of ours.
    pub(super) fn found(objects: &[Owned]) -> Self {
        let installed = objects.iter();
        Self::of(installed.filter_map(|it| Some((&*it.kind, it.revision()?))))
    }

    /// Those that kinds of objects were installed with.
    pub(super) fn of<'a>(installed: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut revisions = Self::default();
        for (kind, revision) in installed {
            revisions.all.insert(revision.to_owned());
            if kind == DEPLOYMENT {
                revisions.at_work.insert(revision.to_owned());
            }
        }
        revisions
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.all.iter().cloned().collect()
    }

    /// Those at work besides this one.
    pub(super) fn others(&self, revision: &str) -> Vec<String> {
        let others = self.at_work.iter().filter(|it| *it != revision);
        others.cloned().collect()
    }
}
