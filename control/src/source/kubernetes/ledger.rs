//! What is known of the objects of one kind: what a list or an event means for the store and for the report.
//!
//! A list counts as it is. An event counts unless it tells of an earlier version than what is known, which is what events
//! do that come twice or out of order. An object that cannot be used leaves in force what it was before.

use std::collections::HashMap;

use tokio::sync::mpsc::Sender;

use super::watch::Happened;
use super::writer::Message;
use crate::source::parse::Outcome;
use crate::source::report::{Place, Problem, SourceReport};
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
}

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Ledger {
    kind: Kind,
    known: HashMap<ObjectKey, Known>,
    /// The list that is under way, or was last.
    list: u64,
    /// Whether one was ever complete.
    listed: bool,
    /// Claims that the writer was not told of.
    claims: Vec<(ObjectRef, Option<Claim>)>,
    report: SourceReport,
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
}

impl Ledger {
    pub(super) fn new(kind: Kind, report: SourceReport) -> Self {
        Self {
            kind,
            known: HashMap::new(),
            list: 0,
            listed: false,
            claims: Vec::new(),
            report,
        }
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
        let first = complete && !self.listed;
        self.listed |= complete;
        !first || self.settled(writer).await
    }

    /// Tells the writer that it need not wait for this kind.
    pub(super) async fn settled(&self, writer: &Sender<Message>) -> bool {
        writer.send(Message::Settled(self.kind)).await.is_ok()
    }

    /// Forgets everything: there is no such kind any more.
    pub(super) async fn clear(&mut self, writer: &Sender<Message>) -> bool {
        // What no list ever has is gone when the list is complete.
        self.list += 1;
        let events = self.complete();
        self.tell(events, writer).await
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
        let reference = ObjectRef {
            kind: self.kind,
            key: key.clone(),
        };
        let known = self.known.entry(key).or_default();
        known.version = item.version;
        known.list = self.list;
        if self.kind.is_told() {
            let claim = match &item.outcome {
                Outcome::Bad { problem, .. } => {
                    let claim = item.claim;
                    claim.map(|claim| claim.but(&problem.field, &problem.message))
                }
                _ => item.claim,
            };
            self.claims.push((reference.clone(), claim));
        }
        let problem = match item.outcome {
            Outcome::Bad { problem, .. } => Some(problem),
            Outcome::Object(object) => {
                known.stored = true;
                clear(known, &self.report, &reference);
                return Some(Event::Apply(object));
            }
            // It does not concern the mesh.
            Outcome::Ignored | Outcome::List(_) => None,
        };
        let Some(problem) = problem else {
            clear(known, &self.report, &reference);
            return std::mem::take(&mut known.stored).then_some(Event::Delete(reference));
        };
        self.report.metrics().skipped(self.kind.as_str().into());
        known.reported = true;
        let place = Place::Object(reference);
        let problem = Problem {
            field: problem.field,
            ..Problem::of(place.clone(), problem.message)
        };
        for problem in self.report.replace(&place, vec![problem]) {
            tracing::warn!(
                resource.name = %problem.object, field = %problem.field, error = %problem.message,
                "object not used; the last good version stays in force",
            );
        }
        None
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Event> {
        let mut known = self.known.remove(key)?;
        let reference = ObjectRef {
            kind: self.kind,
            key: key.clone(),
        };
        clear(&mut known, &self.report, &reference);
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
