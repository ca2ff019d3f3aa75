//! How long what a server sent counts: a resource with a lifetime (TTL) that is not renewed is as good as removed.

use std::time::Duration;

use tokio::time::Instant;
use tulle_xds_proto::google::protobuf;

use super::{Answer, Applied, Tracker, Weight};

/// No lifetime is longer than this.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 86_400);

impl<R: Weight> Tracker<R> {
    /// Takes away what has had its time. Returns these names.
    pub(in crate::xds) fn expire(&mut self, now: Instant) -> Applied {
        let mut applied = Applied::default();
        if self.expires.is_none_or(|at| at > now) {
            return applied;
        }
        let mut expired = Vec::new();
        self.expires = None;
        for (name, entry) in &self.entries {
            match entry.expires {
                Some(at) if at <= now => expired.push(name.clone()),
                Some(at) => self.expires = Some(self.expires.map_or(at, |first| first.min(at))),
                None => {}
            }
        }
        for name in expired {
            self.remove(&name, &mut applied);
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
}

/// How long a resource lives; `None`: as long as nothing else is said, as whatever is not above zero.
fn lifetime(ttl: &protobuf::Duration) -> Option<Duration> {
    let seconds = u64::try_from(ttl.seconds).ok()?;
    let nanos = u32::try_from(ttl.nanos).ok()?.min(999_999_999);
    let life = Duration::new(seconds, nanos).min(LONGEST_LIFE);
    (!life.is_zero()).then_some(life)
}
