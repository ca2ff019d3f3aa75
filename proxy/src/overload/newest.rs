//! The connections of one worker in the order in which they were accepted, so that the newest can be given up.
//!
//! Who came last goes first: whoever was there before an attack is not its victim.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::task::{AbortHandle, Id};

use crate::conn::Direction;

/// One in so many connections is given up at a time, at least one.
const SHARE: usize = 16;

/// Connections of a worker. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Newest(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    direction: Direction,
    peer: SocketAddr,
}

/// A place among them, given back when dropped.
#[derive(Debug)]
pub struct Place {
    newest: Newest,
    number: u64,
}

impl Newest {
    /// The place of the next connection; it goes with whatever serves the connection.
    #[must_use]
    pub fn place(&self) -> Place {
        let mut inner = self.0.borrow_mut();
        inner.next += 1;
        Place {
            newest: self.clone(),
            number: inner.next,
        }
    }

    /// A task serves the connection that has the newest place.
    pub fn serves(&self, task: AbortHandle, direction: Direction, peer: SocketAddr) {
        let mut inner = self.0.borrow_mut();
        let number = inner.next;
        let connection = Connection {
            task,
            direction,
            peer,
        };
        inner.open.insert(number, connection);
    }

    /// Gives one of them up.
    pub(crate) fn give_up_task(&self, id: Id) {
        let mut inner = self.0.borrow_mut();
        let found = inner.open.iter().find(|(_, it)| it.task.id() == id);
        let found = found.map(|(number, _)| *number);
        if let Some(connection) = found.and_then(|number| inner.open.remove(&number)) {
            connection.task.abort();
        }
    }

    /// Gives up some of them, and tells whose they were.
    pub fn give_up(&self, mut tell: impl FnMut(Direction, SocketAddr)) {
        let count = self.0.borrow().open.len().div_ceil(SHARE);
        for _ in 0..count {
            // Aborting may drop a place, which looks in here.
            let last = self.0.borrow_mut().open.pop_last();
            if let Some((_, last)) = last {
                last.task.abort();
                tell(last.direction, last.peer);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.newest.0.borrow_mut().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[tokio::test]
    async fn the_newest_go_first_and_one_that_has_ended_does_not_count() {
        LocalSet::new().run_until(ordered()).await;
    }

    async fn ordered() {
        let newest = Newest::default();
        let mut tasks = Vec::new();
        for port in 1..=40 {
            let place = newest.place();
            let task = spawn_local(async move {
                let _place = place;
                std::future::pending::<()>().await;
            });
            let peer = SocketAddr::from(([10, 0, 0, 1], port));
            newest.serves(task.abort_handle(), Direction::Inbound, peer);
            tasks.push(task);
        }
        yield_now().await;
        tasks[39].abort();
        yield_now().await;
        let mut told = Vec::new();
        newest.give_up(|_, peer| told.push(peer.port()));
        assert_eq!(told, [39, 38, 37]);
        yield_now().await;
        let ended: Vec<_> = tasks.iter().map(|task| task.is_finished()).collect();
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 4);
        assert!(ended[36..].iter().all(|ended| *ended));
        for _ in 0..40 {
            newest.give_up(|_, _| ());
        }
        yield_now().await;
        assert!(tasks.iter().all(|task| task.is_finished()));
        newest.give_up(|_, _| panic!("there is none left"));
    }
}
