//! Follows the versions that are stored in the cluster, for objects that cannot be used any more.
//!
//! One that cannot be read is as good as none, and reported until it is gone. Where their definition is missing, as after an
//! upgrade by Helm, which leaves definitions alone, nothing can be stored, and that is reported, too.

use std::collections::BTreeSet;

use kube::Client;

use super::definition::{self, Definition, Definitions};
use super::health::Health;
use super::watch::{Happened, Read, Reader, Settings, Watch, next};
use super::wire::Resource;
use crate::api;
use crate::snapshot::{self, Revision, Snapshots};
use crate::source::report::{Place, Problem, SourceReport};
use crate::store::ObjectKey;

/// As metrics name the kind.
pub(super) const KIND: &str = "ConfigSnapshot";
const PLURAL: &str = "configsnapshots";
/// Name of their definition.
const DEFINITION: &str = "configsnapshots.tulle.dev";
/// The definition alone.
const SELECTOR: &str = "metadata.name=configsnapshots.tulle.dev";

/// Follows them.
pub(super) struct Follower {
    client: Client,
    settings: Settings,
    /// Nothing as long as there is no definition.
    watch: Option<Watch<Option<Found>>>,
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
            item: read.key.map(|key| Found {
                key,
                revision: read.revision,
            }),
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
        Self {
            client,
            settings,
            watch: None,
            snapshots,
            report,
            listed: BTreeSet::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Goes on for ever.
    pub(super) async fn run(mut self) {
        let (resource, report) = (definition::resource(SELECTOR), self.report.clone());
        let mut definitions = Definitions::new(
            self.client.clone(),
            DEFINITION,
            resource,
            self.settings,
            &report,
        );
        loop {
            tokio::select! {
                definition = definitions.next() => self.defined(definition.as_ref()),
                happened = next(&mut self.watch) => self.take(happened),
            }
        }
    }

    /// There is a definition, and it says this; or there is none.
    fn defined(&mut self, definition: Option<&Definition>) {
        let serves = |it: &Definition| it.served.iter().any(|version| version == api::VERSION);
        let is_served = definition.is_some_and(serves);
        let place = Place::Resource(format!("CustomResourceDefinition {DEFINITION}").into());
        let problem = Problem::of(
            place.clone(),
            format!(
                "does not serve {}, so what stays in force of an object that an edit has broken ends with this control plane, and none \
                 serves that begins while a policy is broken: apply the definitions of this release (deploy/charts/tulle/crds)",
                api::VERSION
            ),
        );
        let problems = (!is_served).then_some(problem).into_iter().collect();
        for problem in self.report.replace(&place, problems) {
            tracing::warn!(resource.type = DEFINITION, error = %problem.message, "definition not used");
        }
        match (is_served, self.watch.is_some()) {
            (true, false) => {
                let resource = Resource::new(api::GROUP, api::VERSION, PLURAL);
                let health = Health::new(KIND.into(), DEFINITION.into(), &self.report).without(
                    "of routes that were broken before this control plane began nothing is in force, and it does not serve if a \
                     policy was",
                );
                let (client, settings) = (self.client.clone(), self.settings);
                self.watch = Some(Watch::new(client, resource, reader(), settings, health));
            }
            (false, _) => {
                self.watch = None;
                let reported = self.reported.clone();
                reported.iter().for_each(|key| self.mend(key));
                self.snapshots.undefined();
            }
            (true, true) => {}
        }
    }

    fn take(&mut self, happened: Happened<Option<Found>>) {
        match happened {
            Happened::Begun => self.listed.clear(),
            Happened::Found(found) => found.into_iter().flatten().for_each(|it| self.put(it)),
            Happened::Changed(Some(found)) => self.put(found),
            Happened::Gone(Some(found)) => self.remove(&found.key),
            Happened::Changed(None) | Happened::Gone(None) => {}
            Happened::Complete => self.complete(),
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
    use kube::{CustomResourceExt as _, Resource as _};

    use super::*;
    use crate::api::ConfigSnapshot;

    #[test]
    fn they_are_called_as_their_definition_says() {
        assert_eq!(ConfigSnapshot::crd_name(), DEFINITION);
        assert_eq!(format!("metadata.name={DEFINITION}"), SELECTOR);
        let names = (ConfigSnapshot::kind(&()), ConfigSnapshot::plural(&()));
        assert_eq!(names, (KIND.into(), PLURAL.into()));
    }
}
