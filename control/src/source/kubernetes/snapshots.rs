//! Follows the versions that are stored in the cluster, for objects that cannot be used any more.
//!
//! One that cannot be read is as good as none, and reported until it is gone. Those that have our label and are no snapshots,
//! as of a StatefulSet that somebody has labelled so, are nobody's business.

use std::collections::BTreeSet;

use kube::Client;

use super::health::Health;
use super::watch::{Happened, Read, Reader, Settings, Watch};
use super::wire::Resource;
use crate::snapshot::{self, Revision, Snapshots};
use crate::source::report::{Place, Problem, SourceReport};
use crate::store::ObjectKey;

/// As metrics name the kind.
pub(super) const KIND: &str = "ControllerRevision";
/// Those of ours.
const OURS: &str = "app.kubernetes.io/part-of=tulle";

/// Follows them.
pub(super) struct Follower {
    watch: Watch<Option<Found>>,
    snapshots: Snapshots,
    report: SourceReport,
    /// What the list that is under way has.
    listed: BTreeSet<ObjectKey>,
    /// Those that cannot be read.
    reported: BTreeSet<ObjectKey>,
}

/// One of ours, as it came.
struct Found {
    key: ObjectKey,
    revision: Result<Revision, String>,
}

fn reader() -> Reader<Option<Found>> {
    Box::new(|text| {
        let read = snapshot::read(text);
        Read {
            version: read.version,
            item: read
                .key
                .zip(read.revision)
                .map(|(key, revision)| Found { key, revision }),
        }
    })
}

impl Follower {
    pub(super) fn new(
        client: Client,
        settings: Settings,
        snapshots: Snapshots,
        report: SourceReport,
    ) -> Self {
        let resource = Resource {
            labels: Some(OURS),
            ..Resource::new("apps", "v1", "controllerrevisions")
        };
        let health = Health::new(KIND.into(), "controllerrevisions.apps".into(), &report).without(
            "of objects that were broken before this control plane began nothing is in force",
        );
        Self {
            watch: Watch::new(client, resource, reader(), settings, health),
            snapshots,
            report,
            listed: BTreeSet::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Goes on for ever.
    pub(super) async fn run(mut self) {
        loop {
            match self.watch.next().await {
                Happened::Begun => self.listed.clear(),
                Happened::Found(found) => found.into_iter().flatten().for_each(|it| self.put(it)),
                Happened::Changed(Some(found)) => self.put(found),
                Happened::Gone(Some(found)) => self.remove(&found.key),
                Happened::Changed(None) | Happened::Gone(None) => {}
                Happened::Complete => self.complete(),
            }
        }
    }

    fn put(&mut self, found: Found) {
        let Found { key, revision } = found;
        self.listed.insert(key.clone());
        match revision {
            Ok(revision) => {
                self.mend(&key);
                self.snapshots.put(revision);
            }
            Err(why) => {
                self.snapshots.remove(&key);
                self.note(key, &why);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.listed.remove(key);
        self.mend(key);
        self.snapshots.remove(key);
    }

    fn complete(&mut self) {
        let gone: Vec<_> = self.reported.difference(&self.listed).cloned().collect();
        gone.iter().for_each(|key| self.mend(key));
        self.snapshots.listed(&self.listed);
    }

    fn note(&mut self, key: ObjectKey, why: &str) {
        self.report.metrics().skipped(KIND.into());
        let place = place(&key);
        let message = format!(
            "is no version of an object that can be used: {why}; delete it unless another release of the control plane made it"
        );
        let problem = Problem::of(place.clone(), message);
        for problem in self.report.replace(&place, vec![problem]) {
            tracing::warn!(resource.name = %place, error = %problem.message, "snapshot not used");
        }
        self.reported.insert(key);
    }

    fn mend(&mut self, key: &ObjectKey) {
        if self.reported.remove(key) {
            self.report.replace(&place(key), Vec::new());
        }
    }
}

fn place(key: &ObjectKey) -> Place {
    Place::Resource(format!("{KIND} {key}").into())
}

#[cfg(test)]
mod tests {
    use tulle_runtime::names::labels;

    use super::*;

    #[test]
    fn they_are_found_by_the_label_of_everything_that_is_ours() {
        assert_eq!(
            OURS,
            format!("{}={}", labels::PART_OF, labels::PART_OF_TULLE)
        );
    }
}
