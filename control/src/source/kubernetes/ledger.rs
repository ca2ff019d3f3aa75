//! What is known of the objects of one kind: what a list or an event means for the store and for the report.
//!
//! A list counts as it is. An event counts unless it tells of an earlier version than what is known, which is what events
//! do that come twice or out of order. An object that cannot be used leaves in force what it was before: what was seen, or
//! what is stored of it ([`broken`]), whichever is later.

mod broken;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use self::broken::Broken;
use super::watch::Happened;
use super::writer::Message;
use super::written::Written;
use crate::snapshot::{Snapshots, Version};
use crate::source::parse::Outcome;
use crate::source::report::{Place, SourceReport};
use crate::status::Claim;
use crate::store::{Event, Kind, ObjectKey, ObjectRef};

/// An object as it came.
#[derive(Debug)]
pub(super) struct Item {
    /// What it is called; `None` if nobody can tell.
    pub(super) key: Option<ObjectKey>,
    /// Versions are numbers that grow, unless they are not.
    pub(super) version: Option<u64>,
    pub(super) outcome: Outcome,
    /// What it claims, if it is of a kind whose authors are told.
    pub(super) claim: Option<Claim>,
    /// What its author wrote, if it is of a kind of which good versions are stored.
    pub(super) written: Option<Written>,
}

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Ledger {
    kind: Kind,
    known: HashMap<ObjectKey, Known>,
    /// Those that cannot be used.
    broken: BTreeSet<ObjectKey>,
    /// The list that is under way, or was last.
    list: u64,
    /// Whether one was ever complete, and the writer knows.
    listed: bool,
    settled: bool,
    /// Claims that the writer was not told of.
    claims: Vec<(ObjectRef, Option<Claim>)>,
    report: SourceReport,
    /// Where good versions are stored, if they are.
    snapshots: Option<Snapshots>,
}

#[derive(Debug, Default)]
struct Known {
    version: Option<u64>,
    /// The last list that had it.
    list: u64,
    /// Whether the store has it.
    stored: bool,
    /// Whether it is reported.
    reported: bool,
    /// Which object of its name it is.
    uid: Option<Arc<str>>,
    /// The last good version.
    good: Option<Version>,
    /// Why it cannot be used.
    broken: Option<Broken>,
}

impl Ledger {
    pub(super) fn new(kind: Kind, report: SourceReport) -> Self {
        Self {
            kind,
            known: HashMap::new(),
            broken: BTreeSet::new(),
            list: 0,
            listed: false,
            settled: false,
            claims: Vec::new(),
            report,
            snapshots: None,
        }
    }

    /// The same, of objects of which good versions are stored.
    pub(super) fn with(self, snapshots: Snapshots) -> Self {
        Self {
            snapshots: Some(snapshots),
            ..self
        }
    }

    /// Whether a list was complete, and what it had is known.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Takes in what happened, and tells the writer; false if there is none any more.
    pub(super) async fn take(
        &mut self,
        happened: Happened<Item>,
        writer: &Sender<Message>,
    ) -> bool {
        let complete = matches!(happened, Happened::Complete);
        let events = self.apply(happened);
        if !self.tell(events, writer).await {
            return false;
        }
        if !complete {
            return true;
        }
        self.listed = true;
        if let Some(snapshots) = &self.snapshots {
            snapshots.settled(self.kind);
        }
        self.reconsider(writer).await
    }

    /// Takes in what is stored by now of objects that cannot be used, and tells the writer; false if there is none any more.
    pub(super) async fn reconsider(&mut self, writer: &Sender<Message>) -> bool {
        let stored = self.snapshots.as_ref();
        let ready = self.broken.is_empty() || stored.is_none_or(|it| it.is_settled(self.kind));
        let broken = std::mem::take(&mut self.broken);
        let events = broken.iter().filter_map(|key| self.fall_back(key));
        let events = events.collect();
        self.broken = broken;
        if !self.tell(events, writer).await {
            return false;
        }
        if self.settled || !ready || !self.listed {
            return true;
        }
        self.settled(writer).await
    }

    /// Tells the writer that it need not wait for this kind.
    async fn settled(&mut self, writer: &Sender<Message>) -> bool {
        self.settled = true;
        writer.send(Message::Settled(self.kind)).await.is_ok()
    }

    /// Forgets everything: there is no such kind any more.
    pub(super) async fn clear(&mut self, writer: &Sender<Message>) -> bool {
        self.listed = false;
        // What no list ever has is gone when the list is complete.
        self.list += 1;
        let events = self.complete();
        if let Some(snapshots) = &self.snapshots {
            snapshots.settled(self.kind);
        }
        self.tell(events, writer).await && self.settled(writer).await
    }

    /// Tells the writer; false if there is none any more.
    async fn tell(&mut self, events: Vec<Event>, writer: &Sender<Message>) -> bool {
        if !events.is_empty() && writer.send(Message::Events(events)).await.is_err() {
            return false;
        }
        let claims = std::mem::take(&mut self.claims);
        claims.is_empty() || writer.send(Message::Claims(claims)).await.is_ok()
    }

    fn apply(&mut self, happened: Happened<Item>) -> Vec<Event> {
        match happened {
            Happened::Begun => {
                self.list += 1;
                Vec::new()
            }
            Happened::Found(items) => items
                .into_iter()
                .filter_map(|item| self.put(item))
                .collect(),
            Happened::Complete => self.complete(),
            Happened::Changed(item) if self.is_stale(&item) => Vec::new(),
            Happened::Changed(item) => self.put(item).into_iter().collect(),
            Happened::Gone(item) if self.is_stale(&item) => Vec::new(),
            Happened::Gone(item) => item
                .key
                .and_then(|key| self.remove(&key))
                .into_iter()
                .collect(),
        }
    }

    /// Whether something newer is known.
    fn is_stale(&self, item: &Item) -> bool {
        let known = item.key.as_ref().and_then(|key| self.known.get(key));
        let known = known.and_then(|known| known.version);
        matches!((item.version, known), (Some(new), Some(known)) if new < known)
    }

    fn put(&mut self, item: Item) -> Option<Event> {
        let Some(key) = item.key else {
            self.report.metrics().skipped(self.kind.as_str().into());
            tracing::debug!(resource.type = %self.kind, outcome = ?item.outcome, "an object without a name is not used");
            return None;
        };
        let reference = self.reference(&key);
        let known = self.known.entry(key.clone()).or_default();
        known.version = item.version;
        known.list = self.list;
        let uid = item.written.as_ref().map(|it| it.uid.clone());
        if known.uid != uid {
            // What another object of this name was is not what this one was.
            known.good = None;
            known.uid = uid;
        }
        let (event, spec) = match item.outcome {
            Outcome::Bad { problem, .. } => {
                self.report.metrics().skipped(self.kind.as_str().into());
                known.broken = Some(Broken {
                    problem,
                    claim: item.claim,
                    written: item.written,
                });
                self.broken.insert(key.clone());
                return self.fall_back(&key);
            }
            Outcome::Object(object) => {
                known.stored = true;
                let spec = item.written.as_ref().map(|it| it.spec.clone());
                (Some(Event::Apply(object)), spec)
            }
            // It does not concern the mesh.
            Outcome::Ignored | Outcome::List(_) => {
                let stored = std::mem::take(&mut known.stored);
                (stored.then(|| Event::Delete(reference.clone())), None)
            }
        };
        known.good = item.written.map(|it| Version {
            generation: it.generation,
            spec,
        });
        known.broken = None;
        self.broken.remove(&key);
        clear(known, &self.report, &reference);
        if let Some(snapshots) = &self.snapshots {
            snapshots.judge(&reference, None);
        }
        if self.kind.is_told() {
            self.claims.push((reference, item.claim));
        }
        event
    }

    fn reference(&self, key: &ObjectKey) -> ObjectRef {
        ObjectRef {
            kind: self.kind,
            key: key.clone(),
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Event> {
        let mut known = self.known.remove(key)?;
        self.broken.remove(key);
        let reference = self.reference(key);
        clear(&mut known, &self.report, &reference);
        if let Some(snapshots) = &self.snapshots {
            snapshots.judge(&reference, None);
        }
        if self.kind.is_told() {
            self.claims.push((reference.clone(), None));
        }
        known.stored.then_some(Event::Delete(reference))
    }

    /// What the list does not have is gone.
    fn complete(&mut self) -> Vec<Event> {
        let list = self.list;
        let gone = self.known.iter().filter(|(_, known)| known.list != list);
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        gone.iter().filter_map(|key| self.remove(key)).collect()
    }
}

/// Takes its problem out of the report.
fn clear(known: &mut Known, report: &SourceReport, reference: &ObjectRef) {
    if std::mem::take(&mut known.reported) {
        report.replace(&Place::Object(reference.clone()), Vec::new());
    }
}
