//! How long what a server sent counts: a resource with a lifetime (TTL) that is not renewed is as good as removed.
//!
//! What it was is kept all the same, as long as there is room for it: a heartbeat that comes too late, as after a pause of
//! either side, brings it back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tulle_xds_proto::google::protobuf;

use super::{Answer, Applied, Entry, Tracker, Weight};

/// No lifetime is longer than this.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 86_400);

impl<R: Weight> Tracker<R> {
    /// Takes away what has had its time. Returns these names.
    pub(in crate::xds) fn expire(&mut self, now: Instant) -> Applied {
        let mut applied = Applied::default();
        if self.expires.is_none_or(|at| at > now) {
            return applied;
        }
        self.expires = None;
        for (name, entry) in &mut self.entries {
            match entry.expires {
                Some(at) if at <= now => {
                    self.expired += usize::from(entry.expire());
                    applied.changed.push(name.clone());
                    applied.confirmed.push(name.clone());
                }
                Some(at) => self.expires = Some(self.expires.map_or(at, |first| first.min(at))),
                None => {}
            }
        }
        applied
    }

    /// When [`Tracker::expire`] may have something to do.
    pub(in crate::xds) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// What is known under a name lives as long as its server says now, whatever it said before.
    pub(super) fn renew(&mut self, name: &str, ttl: Option<&protobuf::Duration>) {
        if let Some(entry) = self.entries.get_mut(name)
            && matches!(entry.answer, Answer::Known(_))
        {
            entry.expires = ttl.and_then(lifetime).map(|life| Instant::now() + life);
            if let Some(at) = entry.expires {
                self.expires = Some(self.expires.map_or(at, |first| first.min(at)));
            }
        }
    }

    /// The server says that it still has what it sent. What has expired here counts again; where that is not kept, or is
    /// another version, it is asked for.
    pub(super) fn heartbeat(
        &mut self,
        name: &str,
        version: &str,
        ttl: Option<&protobuf::Duration>,
        applied: &mut Applied,
    ) {
        let Some((name, _)) = self.entries.get_key_value(name) else {
            return;
        };
        let name = name.clone();
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        if matches!(entry.answer, Answer::Removed) {
            let is_same = entry.version == version;
            if let Some(resource) = entry.expired.take_if(|_| is_same) {
                entry.answer = Answer::Known(resource);
                self.expired -= 1;
                applied.changed.push(name.clone());
                applied.confirmed.push(name.clone());
            } else if !self.wildcard {
                self.want_again(&name);
            }
        }
        self.renew(&name, ttl);
    }

    /// Whether there is room for this much under a name, if need be in the place of what has expired.
    pub(super) fn make_room(&mut self, name: &Arc<str>, weight: usize) -> bool {
        if self.has_room(name, weight) {
            return true;
        }
        if self.expired == 0 {
            return false;
        }
        let (wildcard, mut bytes) = (self.wildcard, 0);
        self.entries.retain(|_, entry| {
            if entry.expired.is_none() {
                return true;
            }
            bytes += entry.weight;
            *entry = Entry::empty(Answer::Removed);
            !wildcard
        });
        self.bytes -= bytes;
        self.expired = 0;
        self.has_room(name, weight)
    }
}

impl<R> Entry<R> {
    /// As good as removed from now on; whether there is something to bring back.
    fn expire(&mut self) -> bool {
        self.expires = None;
        let answer = std::mem::replace(&mut self.answer, Answer::Removed);
        if let Answer::Known(resource) = answer {
            self.expired = Some(resource);
        }
        self.expired.is_some()
    }
}

/// How long a resource lives; `None`: as long as nothing else is said, as whatever is not above zero.
fn lifetime(ttl: &protobuf::Duration) -> Option<Duration> {
    let seconds = u64::try_from(ttl.seconds).ok()?;
    let nanos = u32::try_from(ttl.nanos).ok()?.min(999_999_999);
    let life = Duration::new(seconds, nanos).min(LONGEST_LIFE);
    (!life.is_zero()).then_some(life)
}
