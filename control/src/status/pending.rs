//! Statuses that are to be written, and when each may be.
//!
//! The same list is written once in a version of its route: what comes of it is seen by the next version, and what the API server
//! takes without a change is not offered again. Who undoes what we write is answered ever more slowly.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tulle_runtime::backoff::Backoff;

use super::Wanted;
use crate::store::ObjectRef;

/// Pauses between writes of one status.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// So long after its last pause a route is as good as new.
const CALM: Duration = Duration::from_secs(60);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    wanted: BTreeMap<ObjectRef, Wanted>,
    attempts: BTreeMap<ObjectRef, Attempt>,
}

/// What was tried for a route.
#[derive(Debug)]
struct Attempt {
    writing: bool,
    /// What was written, and in which version.
    settled: Option<Wanted>,
    /// The generation that was written about.
    generation: i64,
    again: Instant,
    pauses: Backoff,
}

impl Pending {
    /// What is to be written now, and nothing else.
    pub(super) fn replace(&mut self, wanted: BTreeMap<ObjectRef, Wanted>, now: Instant) {
        self.wanted = wanted;
        let wanted = &self.wanted;
        self.attempts.retain(|route, attempt| {
            attempt.writing || wanted.contains_key(route) || now < attempt.again + CALM
        });
    }

    /// Takes up to that many that may be written, and says how long until there are more.
    pub(super) fn begin(
        &mut self,
        room: usize,
        now: Instant,
    ) -> (Vec<(ObjectRef, Wanted)>, Option<Duration>) {
        let (mut due, mut pause): (Vec<_>, Option<Duration>) = (Vec::new(), None);
        for (route, wanted) in &self.wanted {
            let attempt = self.attempts.get(route);
            if attempt.is_some_and(|it| it.writing || it.is_settled(wanted)) {
                continue;
            }
            // What its author has changed does not wait.
            let attempt = attempt.filter(|it| it.generation == wanted.claim.generation);
            let wait = attempt.map_or(Duration::ZERO, |it| it.again.duration_since(now));
            // What there is no room for waits for the next look only.
            if wait.is_zero() && due.len() < room {
                due.push((route.clone(), wanted.clone()));
            } else {
                pause = Some(pause.map_or(wait, |pause| pause.min(wait)));
            }
        }
        for (route, wanted) in &due {
            let generation = wanted.claim.generation;
            let fresh = || Attempt {
                writing: true,
                settled: None,
                generation,
                again: now,
                pauses: Backoff::new(PAUSES.0, PAUSES.1),
            };
            let attempt = self.attempts.entry(route.clone()).or_insert_with(fresh);
            if attempt.generation != generation {
                *attempt = fresh();
            }
            attempt.writing = true;
        }
        (due, pause)
    }

    /// A write has ended.
    pub(super) fn wrote(&mut self, route: &ObjectRef, wanted: Wanted, failed: bool, now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(route) {
            attempt.writing = false;
            attempt.settled = (!failed).then_some(wanted);
            attempt.again = now + attempt.pauses.next_delay();
        }
    }

    /// How many are not as they are to be.
    pub(super) fn len(&self) -> usize {
        let unsettled = |(route, wanted): &(&ObjectRef, &Wanted)| {
            let attempt = self.attempts.get(*route);
            !attempt.is_some_and(|it| it.is_settled(wanted))
        };
        self.wanted.iter().filter(unsettled).count()
    }
}

impl Attempt {
    fn is_settled(&self, wanted: &Wanted) -> bool {
        let settled = self.settled.as_ref();
        settled.is_some_and(|it| {
            let claims = [&it.claim, &wanted.claim];
            let [was, is] = claims.map(|claim| (claim.api, &claim.version));
            was == is && it.list == wanted.list
        })
    }
}
