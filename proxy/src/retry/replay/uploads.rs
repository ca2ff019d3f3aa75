//! Bodies of requests that are under way on a worker, so that those are found that hold memory and do not move.
//!
//! A body is entered with its request and leaves with it: two steps in a list of places, for requests that have one. What
//! it does in between is looked at only while memory is short, so that moving costs nothing more.

use std::cell::RefCell;
use std::rc::Weak;

use super::{HEAVY, RequestFailure, Shared, State};
use crate::overload::{Haste, Since};

/// Places beyond which a list that has become empty is not kept.
const PLACES: usize = 1_024;

/// The bodies of a worker.
#[derive(Debug, Default)]
pub struct Uploads(RefCell<Places>);

#[derive(Debug, Default)]
struct Places {
    bodies: Vec<Option<Upload>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Upload {
    body: Weak<RefCell<Shared>>,
    /// How far it was when it was looked at; `None`: nothing of it waited for the next hop.
    at: Option<At>,
    /// Since when it has been there.
    since: Since,
}

/// How far the next hop has taken a body: the attempt, and what it has had.
type At = (u32, u64, usize);

impl Uploads {
    pub(super) fn enter(&self, body: Weak<RefCell<Shared>>) -> usize {
        let upload = Upload {
            body,
            at: None,
            since: Since::now(),
        };
        let mut places = self.0.borrow_mut();
        if let Some(place) = places.free.pop() {
            places.bodies[place] = Some(upload);
            return place;
        }
        places.bodies.push(Some(upload));
        places.bodies.len() - 1
    }

    pub(super) fn leave(&self, place: usize) {
        let mut places = self.0.borrow_mut();
        places.bodies[place] = None;
        places.free.push(place);
        if places.free.len() == places.bodies.len() && places.bodies.len() > PLACES {
            *places = Places::default();
        }
    }

    /// Lets go of what is kept for another attempt, and gives bodies up of which the next hop has taken nothing for too
    /// long although there is something, those first of which it has not for longest. Returns whether that helped.
    pub fn give_up(&self, haste: Haste) -> bool {
        let (mut stuck, mut helped) = (Vec::new(), false);
        for upload in self.0.borrow_mut().bodies.iter_mut().flatten() {
            let Some(body) = upload.body.upgrade() else {
                continue;
            };
            let mut shared = body.borrow_mut();
            helped |= shared.let_go();
            let at = shared.waits_at();
            drop(shared);
            if at != upload.at {
                (upload.at, upload.since) = (at, Since::now());
            } else if at.is_some() && upload.since.is_long_ago() {
                stuck.push((upload.since, body));
            }
        }
        stuck.sort_unstable_by_key(|(since, _)| *since);
        stuck.truncate(haste.share(stuck.len()));
        for (_, body) in &stuck {
            body.borrow_mut().give_up();
        }
        helped || !stuck.is_empty()
    }
}

impl Shared {
    /// Keeps nothing for another attempt any more, unless there will be one. False: that helps nobody.
    fn let_go(&mut self) -> bool {
        let kept = self.next > 0 && self.cap > 0 && !self.promised;
        if kept {
            self.stop_keeping();
        }
        kept
    }

    /// How far it is if there is more of it that waits for the next hop, as far as anyone can tell: who waits for the client
    /// has said so, a body that is small cannot hold much, and where there is no connection yet there is no next hop.
    fn waits_at(&self) -> Option<At> {
        let under_way = matches!(self.state, State::Kept | State::Streamed);
        let small = self.announced.upper().is_some_and(|upper| upper <= HEAVY);
        let asked = !self.promised && self.waker.is_none();
        let waits = under_way && asked && !small && !self.has_come();
        waits.then_some((self.attempt, self.bytes, self.next))
    }

    /// It will never be complete, and what has come of it is gone.
    fn give_up(&mut self) {
        self.fail(RequestFailure::Overload);
        self.forget();
        (self.source, self.ahead) = (None, None);
        if let Some(exchange) = self.exchange.take() {
            exchange.wake();
        }
    }
}

/// Leaves the list of its worker.
impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.worker.uploads.leave(place);
        }
    }
}
