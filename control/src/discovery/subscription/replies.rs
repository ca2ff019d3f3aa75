//! Responses that wait for their replies, and what a reply says of what was in them.
//!
//! A client that takes nothing of a response from the first resource on that it refuses says nothing about the others: to it
//! none is sent while as many wait as may, so that none of its replies is lost. Of any other's the oldest is forgotten.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::time::Instant;
use tulle_xds_proto::ResourceType;

use super::{Batch, Held, Owed, Reply, Subscription, Verdict};
use crate::discovery::resource::{Name, Version};

/// How many responses may wait for their acknowledgement. With more the oldest is forgotten, whose reply then counts as one to
/// none (`tulle_xds_expired_nonce`), and a client that never replies makes no more than these wait; or, where a refusal says
/// nothing about the others in its response, the next one waits until there are fewer.
pub(super) const MAX_UNACKNOWLEDGED: usize = 16;
/// Into how many responses a refused one is taken apart: few enough that all of their replies are waited for.
const PARTS: usize = 12;
/// How much of a client's error text is kept; the rest is dropped, so that nothing grows by it.
pub(super) const MAX_ERROR_TEXT: usize = 1024;

/// A time of day, for people and other programs: RFC 3339 in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(SystemTime);

impl Time {
    fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = Timestamp::try_from(self.0).unwrap_or_default();
        serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// A response that waits for its reply.
#[derive(Debug)]
pub(super) struct Sent {
    nonce: String,
    world: String,
    /// What was new in it: a refusal is about this.
    names: Vec<(Name, Version)>,
    /// Whoever accepts it accepts all there is.
    lists: bool,
    since: Option<Instant>,
}

impl Sent {
    pub(super) fn is(&self, nonce: &str) -> bool {
        self.nonce == nonce
    }
}

impl Subscription {
    /// A conversation with a client that takes nothing of a response from the first resource on that it refuses: what it
    /// refused comes again in smaller parts, until what is refused came alone.
    pub(crate) fn taking_apart(kind: ResourceType, limit: usize) -> Self {
        Self {
            takes_apart: true,
            ..Self::new(kind, limit)
        }
    }

    /// Whether replies have to come first: where a refusal says nothing about the others in its response, none of them may
    /// be forgotten.
    pub(super) fn waits(&self) -> bool {
        self.takes_apart && self.unacknowledged.len() >= MAX_UNACKNOWLEDGED
    }

    /// Whether the client may have to be sent anew what it was sent: as long as it may refuse any of it, and so may not have
    /// what was with that in a response, whatever it has from before may still be in use.
    pub(crate) fn is_unsure(&self) -> bool {
        self.takes_apart && !self.unacknowledged.is_empty()
    }

    /// Remembers that `batch` left under `nonce`, showing the world's version `world`.
    pub(crate) fn sent(&mut self, nonce: String, world: String, batch: &Batch) {
        self.status.sent_nonce = Some(nonce.clone());
        self.unacknowledged.push_back(Sent {
            nonce,
            world,
            names: batch.fresh.clone(),
            lists: batch.lists,
            since: batch.since,
        });
        if self.unacknowledged.len() > MAX_UNACKNOWLEDGED {
            self.unacknowledged.pop_front();
        }
    }

    /// Takes in the client's word on a response.
    pub(super) fn reply(&mut self, reply: Reply) -> Verdict {
        let Some(at) = self
            .unacknowledged
            .iter()
            .position(|sent| sent.is(&reply.nonce))
        else {
            // A client of the state-of-the-world variant names the last response in each of its requests.
            return match &self.status.sent_nonce {
                Some(last) if *last == reply.nonce => Verdict::None,
                _ => Verdict::Stale,
            };
        };
        let Some(sent) = self.unacknowledged.drain(..=at).next_back() else {
            return Verdict::Stale;
        };
        self.judge(&sent.names, reply.error.is_some());
        if let Some(error) = reply.error {
            // Copied: cut off where it is, it would keep all the memory that the client's text took.
            let kept = &error[..error.floor_char_boundary(MAX_ERROR_TEXT)];
            self.status.last_error = Some(kept.to_owned());
            self.status.refused = Some(Time::now());
            return Verdict::Refused;
        }
        self.status.acknowledged = Some(Time::now());
        self.status.acked_nonce = Some(sent.nonce);
        self.status.acked_version = Some(sent.world);
        if self.status.last_error.is_some() {
            let mut entries = self.entries.values_mut();
            if sent.lists {
                entries.for_each(|entry| entry.rejected = false);
                self.status.last_error = None;
            } else if !entries.any(|entry| entry.rejected) {
                self.status.last_error = None;
            }
        }
        Verdict::Accepted(sent.since.map(|since| since.elapsed()))
    }

    /// Notes of what was new in a response whether it was refused, or may have been: then it comes again.
    fn judge(&mut self, names: &[(Name, Version)], refused: bool) {
        let apart = refused && self.takes_apart && names.len() > 1;
        if apart {
            self.together = names.len().div_ceil(PARTS);
        }
        for (name, version) in names {
            if let Some(entry) = self.entries.get_mut(name)
                && entry.held == Held::Version(*version)
            {
                entry.rejected = refused && !apart;
                if apart {
                    self.owe(name.clone(), Owed::Repeat);
                }
            }
        }
    }
}
