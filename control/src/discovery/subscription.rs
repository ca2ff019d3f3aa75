//! One resource type's conversation on one stream: who subscribed to what, what was sent, what is still owed.
//!
//! Pure state, no I/O: requests of either protocol variant decode to an [`Ask`], and [`Subscription::take`] says what
//! to send next. What is owed is a set of names, never a queue of messages, so a slow client costs no memory and
//! always gets the newest state.

mod ask;
mod replies;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;
use tulle_xds_proto::ResourceType;

use super::resource::{Encoded, Name, Version};
use replies::{Sent, Time};

pub(crate) use ask::{Ask, Reply, Verdict};

/// The name that stands for "all resources of this type".
pub(crate) const WILDCARD: &str = "*";
/// Bytes of a name on average, at most: a few may be long, not all of them.
const AVERAGE_NAME: usize = 128;
/// Entries for which there may be room although nothing is in it.
const MOST_ROOM: usize = 1024;
/// More names than a stream may subscribe to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {limit} {kind} subscriptions on one stream, or more than {AVERAGE_NAME} bytes for each of so many; unsubscribe idle names first"
)]
pub(crate) struct TooMany {
    kind: &'static str,
    limit: usize,
}

impl TooMany {
    /// More of a type than so many.
    pub(crate) fn of(kind: ResourceType, limit: usize) -> Self {
        let kind = kind.short_name();
        Self { kind, limit }
    }
}

/// How a client wants a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It asked for it, so that it gets it if it exists.
    ByName,
    /// It asked for all, of which this must be one.
    AsOneOfAll,
}

/// When removals may leave: make before break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Additions, changes, and removals of types that nothing else refers to.
    Make,
    /// Removals of clusters and endpoints, once what referred to them is gone.
    Break,
}

/// One response to send.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// New or changed resources.
    pub(crate) resources: Vec<(Name, Arc<Encoded>)>,
    /// Names that do not exist.
    pub(crate) removed: Vec<Name>,
    /// Those of the resources that the client does not have yet; the others only complete the list.
    pub(crate) fresh: Vec<(Name, Version)>,
    /// Bytes of those that the client asked for: what changes is not its doing.
    pub(crate) asked: usize,
    /// Whether it lists everything that the client should have.
    lists: bool,
    /// When the oldest change in it was noticed.
    since: Option<Instant>,
}

/// What an operator may see of a subscription.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Status {
    /// Whether all resources are wanted.
    pub(crate) wildcard: bool,
    /// Names subscribed to explicitly.
    pub(crate) subscribed: usize,
    /// Names that changed and are not sent yet.
    pub(crate) pending: usize,
    /// Nonce of the last response sent.
    pub(crate) sent_nonce: Option<String>,
    /// Nonce of the last response that the client accepted.
    pub(crate) acked_nonce: Option<String>,
    /// Version of the world that the client last accepted.
    pub(crate) acked_version: Option<String>,
    /// When the client last accepted something.
    pub(crate) acknowledged: Option<Time>,
    /// When the client last refused something.
    pub(crate) refused: Option<Time>,
    /// Responses without a reply.
    pub(crate) unacknowledged: usize,
    /// Names that the client refused at the version it was last sent.
    pub(crate) rejected: Vec<String>,
    /// Why, in the client's words.
    pub(crate) last_error: Option<String>,
}

/// State of one type on one stream.
#[derive(Debug)]
pub(crate) struct Subscription {
    kind: ResourceType,
    limit: usize,
    wildcard: bool,
    started: bool,
    /// In the state-of-the-world variant: something was named at some time.
    named: bool,
    /// An answer is owed even if there is nothing to put into it: the client waits to hear that it has all.
    greet: bool,
    /// A refusal may be about any one resource of a response, so that it says nothing about the others.
    takes_apart: bool,
    /// Resources in a response, at most.
    together: usize,
    entries: HashMap<Name, Entry>,
    /// How many of the entries are explicit.
    explicit: usize,
    /// Bytes of their names.
    bytes: usize,
    owed: BTreeMap<Name, Owed>,
    /// In the state-of-the-world variant: the last list that was sent, of the types that are listed.
    listed: BTreeMap<Name, Arc<Encoded>>,
    since: Option<Instant>,
    unacknowledged: VecDeque<Sent>,
    status: Status,
}

#[derive(Debug, Default)]
struct Entry {
    explicit: bool,
    held: Held,
    rejected: bool,
}

/// What the client has under a name, as far as we know.
#[derive(Debug, Default, PartialEq, Eq)]
enum Held {
    /// Nothing was said about it yet.
    #[default]
    Unknown,
    /// This version was sent, or the client came with it.
    Version(Version),
    /// It came with a version that is not one of ours.
    Foreign,
    /// It was told that there is none.
    Absent,
}

/// How strongly something is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owed {
    /// Only if it differs from what the client has.
    Change,
    /// In any case.
    Repeat,
    /// In any case, because the client asks for it.
    Answer,
}

impl Subscription {
    /// A conversation that has not begun; `limit` caps the explicit names.
    pub(crate) fn new(kind: ResourceType, limit: usize) -> Self {
        Self {
            kind,
            limit,
            wildcard: false,
            started: false,
            named: false,
            greet: false,
            takes_apart: false,
            together: usize::MAX,
            entries: HashMap::new(),
            explicit: 0,
            bytes: 0,
            owed: BTreeMap::new(),
            listed: BTreeMap::new(),
            since: None,
            unacknowledged: VecDeque::new(),
            status: Status::default(),
        }
    }

    /// Applies a request. `all` lists every resource of the type, for a client that wants them all.
    ///
    /// A subscription change counts whatever the reply beside it says, and whatever nonce it names.
    ///
    /// # Errors
    /// If the client subscribes to more names than the limit.
    pub(crate) fn apply(
        &mut self,
        ask: Ask,
        all: impl FnOnce() -> Vec<Name>,
    ) -> Result<Verdict, TooMany> {
        let first = !std::mem::replace(&mut self.started, true);
        let verdict = ask.reply.map_or(Verdict::None, |reply| self.reply(reply));
        let mut came_with = Vec::new();
        if first {
            // A client that has everything already is told so by an empty answer.
            self.greet = !ask.initial_versions.is_empty();
            for (name, version) in ask.initial_versions {
                let held = version.map_or(Held::Foreign, Held::Version);
                self.entries.insert(
                    name.clone(),
                    Entry {
                        held,
                        ..Entry::default()
                    },
                );
                came_with.push(name);
            }
        }
        for name in &ask.unsubscribe {
            self.unsubscribe(name);
        }
        let mut begins = first && ask.subscribe.is_empty() && self.kind.supports_wildcard();
        for name in ask.subscribe {
            if &*name == WILDCARD && self.kind.supports_wildcard() {
                begins = true;
            } else {
                self.subscribe(name, first)?;
            }
        }
        if begins && !self.wildcard {
            self.wildcard = true;
            self.greet = true;
            for name in all() {
                self.owe(name, Owed::Change);
            }
        }
        self.settle_initial(came_with);
        Ok(verdict)
    }

    /// What a client of the state-of-the-world variant asks by naming all it wants: the difference to what it wanted before.
    /// If it speaks of an older response only its word on that one counts: it will name what it wants again once it has seen
    /// the last one. `None` if it speaks of none that waits for a reply. Before there is any response a nonce is one of another
    /// stream and means nothing.
    pub(crate) fn restate(&mut self, names: Vec<Name>, reply: Option<Reply>) -> Option<Ask> {
        if let Some(Reply { nonce, .. }) = &reply
            && let Some(last) = &self.status.sent_nonce
            && last != nonce
        {
            let waits = self.unacknowledged.iter().any(|sent| sent.is(nonce));
            return waits.then(|| Ask {
                reply,
                ..Ask::default()
            });
        }
        // Naming nothing means all, until something was named for the first time.
        self.named |= !names.is_empty();
        let names: BTreeSet<Name> = names.into_iter().collect();
        let had = |name: &Name| {
            if &**name == WILDCARD {
                self.wildcard
            } else {
                self.wants(name)
            }
        };
        let subscribe = names.iter().filter(|name| !had(name)).cloned().collect();
        let dropped = self
            .entries
            .iter()
            .filter(|(name, entry)| entry.explicit && !names.contains(*name));
        let mut unsubscribe: Vec<Name> = dropped.map(|(name, _)| name.clone()).collect();
        if self.wildcard && self.named && !names.contains(WILDCARD) {
            unsubscribe.push(WILDCARD.into());
        }
        Some(Ask {
            subscribe,
            unsubscribe,
            initial_versions: Vec::new(),
            reply,
        })
    }

    /// Notes that a resource may have changed at `at`.
    pub(crate) fn changed(&mut self, name: &Name, at: Instant) {
        if self.wildcard || self.entries.contains_key(name) {
            self.owe(name.clone(), Owed::Change);
            self.since = Some(self.since.map_or(at, |since| since.min(at)));
        }
    }

    /// Whether the client subscribed to this name explicitly.
    pub(crate) fn wants(&self, name: &Name) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.explicit)
    }

    /// Every name that the client may hold or wants: what to look at again when anything may have changed.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.entries.keys()
    }

    /// Whether all resources of the type are wanted.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Owes this resource again although it did not change: what depends on it was sent anew.
    /// A version that the client refused is not pushed again.
    pub(crate) fn repeat(&mut self, name: &Name) {
        if self
            .entries
            .get(name)
            .is_some_and(|entry| entry.explicit && !entry.rejected)
        {
            self.owe(name.clone(), Owed::Repeat);
        }
    }

    /// Whether anything may have to be sent.
    pub(crate) fn is_owing(&self) -> bool {
        (self.greet || !self.owed.is_empty()) && !self.waits()
    }

    /// Bytes that naming all that is wanted takes, at most: those of each name, its tag and its length.
    pub(crate) fn said_again(&self) -> usize {
        self.bytes + 4 * (self.explicit + 1)
    }

    /// How much there is to look at when something is owed.
    pub(crate) fn size(&self) -> usize {
        self.owed.len() + self.listed.len()
    }

    /// What to send next, at most `budget` bytes of resources (but at least one), or `None` if nothing is due now. `lookup`
    /// finds what was asked for by name, or one of all.
    ///
    /// Takes what it returns as sent: the caller follows with [`Self::sent`].
    pub(crate) fn take(
        &mut self,
        phase: Phase,
        budget: usize,
        mut lookup: impl FnMut(&Name, Asked) -> Option<Arc<Encoded>>,
    ) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut size = 0;
        let mut later = BTreeMap::new();
        while let Some((name, owed)) = self.owed.pop_first() {
            let asked = if self.wants(&name) {
                Asked::ByName
            } else {
                Asked::AsOneOfAll
            };
            match lookup(&name, asked) {
                Some(encoded) => {
                    if !self.differs(&name, encoded.version) && owed == Owed::Change {
                        continue;
                    }
                    let is_full = size + encoded.size() > budget && !batch.resources.is_empty();
                    if is_full || batch.resources.len() >= self.together {
                        later.insert(name, owed);
                        break;
                    }
                    size += encoded.size();
                    if owed == Owed::Answer {
                        batch.asked += encoded.size();
                    }
                    self.hold(&name, encoded.version);
                    batch.fresh.push((name.clone(), encoded.version));
                    batch.resources.push((name, encoded));
                }
                None if phase == Phase::Make && self.breaks_late() => {
                    later.insert(name, owed);
                }
                None => {
                    if self.forget(&name) || owed != Owed::Change {
                        batch.removed.push(name);
                    }
                }
            }
        }
        self.owed.append(&mut later);
        self.is_due(&mut batch).then_some(batch)
    }

    /// Whether there is anything to send in a batch, now that all that is owed has been looked at.
    fn is_due(&mut self, batch: &mut Batch) -> bool {
        let has_any = !batch.resources.is_empty() || !batch.removed.is_empty();
        let has_all = self.owed.is_empty();
        if has_all {
            self.give_room_back();
            self.together = usize::MAX;
            batch.since = self.since.take();
        } else {
            batch.since = self.since;
        }
        let is_due = has_any || (self.greet && has_all);
        self.greet &= !is_due;
        is_due
    }

    /// As [`Self::take`], for the state-of-the-world variant: clusters and listeners are always listed in full, and of the
    /// other types nothing can be removed. What is gone stays in the list until it is time to break.
    pub(crate) fn take_full(
        &mut self,
        phase: Phase,
        budget: usize,
        lookup: impl FnMut(&Name, Asked) -> Option<Arc<Encoded>>,
    ) -> Option<Batch> {
        let is_listed = self.kind.supports_wildcard();
        let budget = if is_listed { usize::MAX } else { budget };
        let mut batch = self.take(phase, budget, lookup)?;
        let removed = std::mem::take(&mut batch.removed);
        if !is_listed {
            return (!batch.resources.is_empty()).then_some(batch);
        }
        self.listed.extend(std::mem::take(&mut batch.resources));
        for name in &removed {
            self.listed.remove(name);
        }
        batch.lists = true;
        let list = self.listed.iter();
        batch.resources = list.map(|(name, it)| (name.clone(), it.clone())).collect();
        Some(batch)
    }

    /// What an operator may see.
    pub(crate) fn status(&self) -> Status {
        let mut rejected: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.rejected)
            .map(|(name, _)| name.to_string())
            .collect();
        rejected.sort();
        Status {
            wildcard: self.wildcard,
            subscribed: self.explicit,
            pending: self.owed.len(),
            unacknowledged: self.unacknowledged.len(),
            rejected,
            ..self.status.clone()
        }
    }

    fn subscribe(&mut self, name: Name, first: bool) -> Result<(), TooMany> {
        let entry = self.entries.entry(name.clone()).or_default();
        // A reconnecting client already has this one; endpoints are sent all the same, its clusters warm on them.
        let has_it = first && entry.held != Held::Unknown && self.kind != ResourceType::Endpoints;
        if !std::mem::replace(&mut entry.explicit, true) {
            self.explicit += 1;
            self.bytes += name.len();
        }
        self.owe(name, if has_it { Owed::Change } else { Owed::Answer });
        if self.explicit > self.limit || self.bytes > self.limit.saturating_mul(AVERAGE_NAME) {
            return Err(TooMany::of(self.kind, self.limit));
        }
        Ok(())
    }

    fn unsubscribe(&mut self, name: &Name) {
        if &**name == WILDCARD && self.kind.supports_wildcard() {
            self.wildcard = false;
            self.greet = false;
            self.entries.retain(|_, entry| entry.explicit);
            self.owed.retain(|name, _| self.entries.contains_key(name));
            self.listed
                .retain(|name, _| self.entries.contains_key(name));
        } else if self.wildcard {
            // It is still wanted as one of all: the client must hear what became of it.
            if let Some(entry) = self.entries.get_mut(name)
                && std::mem::replace(&mut entry.explicit, false)
            {
                self.explicit -= 1;
                self.bytes -= name.len();
                self.owe(name.clone(), Owed::Answer);
            }
        } else {
            if self
                .entries
                .remove(name)
                .is_some_and(|entry| entry.explicit)
            {
                self.explicit -= 1;
                self.bytes -= name.len();
            }
            self.owed.remove(name);
            self.listed.remove(name);
        }
    }

    /// Checks what a reconnecting client came with, and drops what it does not want any more.
    fn settle_initial(&mut self, names: Vec<Name>) {
        for name in names {
            if self.wildcard || self.entries.get(&name).is_some_and(|entry| entry.explicit) {
                self.owe(name, Owed::Change);
            } else {
                self.entries.remove(&name);
            }
        }
        self.give_room_back();
    }

    /// However much its client came with, no more room is kept than what it wants takes.
    fn give_room_back(&mut self) {
        if self.entries.capacity() > MOST_ROOM.max(4 * self.entries.len()) {
            self.entries.shrink_to_fit();
        }
    }

    fn owe(&mut self, name: Name, owed: Owed) {
        let slot = self.owed.entry(name).or_insert(owed);
        *slot = (*slot).max(owed);
    }

    fn differs(&self, name: &Name, version: Version) -> bool {
        self.entries
            .get(name)
            .is_none_or(|entry| entry.held != Held::Version(version))
    }

    fn hold(&mut self, name: &Name, version: Version) {
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.held != Held::Version(version) {
            *entry = Entry {
                explicit: entry.explicit,
                held: Held::Version(version),
                rejected: false,
            };
        }
    }

    /// The resource does not exist: returns whether the client has to be told.
    fn forget(&mut self, name: &Name) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let had = matches!(entry.held, Held::Version(_) | Held::Foreign);
        if entry.explicit {
            *entry = Entry {
                explicit: true,
                held: Held::Absent,
                rejected: false,
            };
        } else {
            self.entries.remove(name);
        }
        had
    }

    fn breaks_late(&self) -> bool {
        matches!(self.kind, ResourceType::Cluster | ResourceType::Endpoints)
    }
}

#[cfg(test)]
mod apart;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
