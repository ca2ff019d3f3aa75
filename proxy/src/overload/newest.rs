//! Who holds memory on one worker, in the order in which it is taken from them when there is none left.
//!
//! First go the streams of connections on which many answers wait at once, all of them: a few such connections are enough
//! to use up everything, and faster than anybody could be given up one by one. Then streams and connections whose clients
//! take nothing of what there is for them: that is where memory goes, and who behaves is never among them, however late it
//! came. Only where nobody else holds any, who came last: whoever was there before an attack is not its victim.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use tokio::task::{AbortHandle, Id, try_id};

use super::taking::{PATIENCE, Taking, has_waited, is_long_ago, now};
use crate::conn::Direction;

/// One in so many is given up at a time, at least one.
const SHARE: usize = 16;
/// Answers that may wait on a connection at once before they are given up together, and on one that many clients share.
const FEW: u32 = 32;
const FEW_SHARED: u32 = 8 * FEW;
/// How long each of more than these must have waited, in milliseconds: longer than a packet is on its way within a cluster.
const MANY_PATIENCE: u64 = 20;

/// Connections of a worker, and streams that wait for their clients. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Newest(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Connection>,
    waiting: BTreeMap<u64, Stream>,
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    direction: Direction,
    peer: SocketAddr,
    taking: Taking,
}

/// How many answers of a connection wait for its client. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    waiting: Rc<Cell<u32>>,
    few: u32,
    shared: bool,
}

impl Unread {
    /// Of a connection that is one client's, or that many share.
    pub(crate) fn of(shared: bool) -> Self {
        Self {
            waiting: Rc::default(),
            few: if shared { FEW_SHARED } else { FEW },
            shared,
        }
    }

    /// Whether there are so many that they are given up together, and that there should not be more.
    pub(crate) fn are_many(&self) -> bool {
        self.waiting.get() > self.few
    }

    /// Whether there are, or so many times as many requests under way as there may be answers, unless those are many clients'.
    pub(crate) fn are_crowded(&self, active: usize, times: usize) -> bool {
        let requests = active > times * self.few as usize;
        self.are_many() || requests && !self.shared
    }

    fn add(&self) {
        self.waiting.set(self.waiting.get().saturating_add(1));
    }

    fn take(&self) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
    }
}

#[derive(Debug)]
struct Stream {
    unread: Unread,
    given_up: Rc<Cell<bool>>,
    waker: Waker,
    /// When the wait began.
    since: u64,
    /// Number of the shared connection by which small pieces come for it; 0: there is none.
    source: usize,
    direction: Direction,
    peer: SocketAddr,
}

impl Stream {
    /// Has it go, and tells whose it was.
    fn give_up(self, tell: &mut impl FnMut(Direction, SocketAddr)) {
        self.given_up.set(true);
        self.waker.wake();
        tell(self.direction, self.peer);
    }
}

/// Which connection is given up, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A connection whose client takes nothing.
    Unread,
    /// One of the connections that came last.
    Newest,
}

/// How much time there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Haste {
    /// Nothing new is accepted, but what is there goes on.
    Little,
    /// Somebody has to go.
    Some,
    /// Memory ends in a moment.
    Great,
}

impl Haste {
    /// How many go of so many who have held memory for too long.
    pub(crate) fn share(self, count: usize) -> usize {
        match self {
            Self::Little => 0,
            Self::Some => count.div_ceil(4),
            Self::Great => count,
        }
    }
}

/// A place among the connections, given back when dropped.
#[derive(Debug)]
pub struct Place {
    newest: Newest,
    number: u64,
}

/// The place of a stream that waits for its client, given back when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    newest: Newest,
    number: u64,
    unread: Unread,
    given_up: Rc<Cell<bool>>,
}

impl Newest {
    /// The place of the next connection; it goes with whatever serves the connection.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            newest: self.clone(),
            number: self.0.borrow_mut().number(),
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
            taking: Taking::default(),
        };
        inner.open.insert(number, connection);
    }

    /// Where to say whether the client of the connection takes what there is for it, whose task runs now.
    #[must_use]
    pub fn taking(&self) -> Taking {
        let (inner, id) = (self.0.borrow(), try_id());
        // It is one of the last, as a rule.
        let mut open = inner.open.values().rev();
        let own = open.find(|it| id == Some(it.task.id()));
        own.map(|it| it.taking.clone()).unwrap_or_default()
    }

    /// A stream waits for its client from now on, with what comes by a connection with this number; it is woken if it has
    /// to go.
    pub(crate) fn waits(
        &self,
        direction: Direction,
        peer: SocketAddr,
        source: usize,
        unread: &Unread,
        waker: Waker,
    ) -> Waiting {
        unread.add();
        let mut inner = self.0.borrow_mut();
        let (number, given_up) = (inner.number(), Rc::new(Cell::new(false)));
        let stream = Stream {
            unread: unread.clone(),
            given_up: given_up.clone(),
            waker,
            since: now(),
            source,
            direction,
            peer,
        };
        inner.waiting.insert(number, stream);
        Waiting {
            newest: self.clone(),
            number,
            unread: unread.clone(),
            given_up,
        }
    }

    /// Gives one of the connections up.
    pub(crate) fn give_up_task(&self, id: Id) {
        let mut inner = self.0.borrow_mut();
        let found = inner.open.iter().find(|(_, it)| it.task.id() == id);
        let found = found.map(|(number, _)| *number);
        if let Some(connection) = found.and_then(|number| inner.open.remove(&number)) {
            connection.task.abort();
        }
    }

    /// Gives up streams whose clients take nothing, and tells whose they were: all of those of which there are many on a
    /// connection, and, unless there is time, the longest of the others, more of them the greater the haste. Returns whether
    /// there are such streams.
    pub fn give_up_streams(
        &self,
        haste: Haste,
        mut tell: impl FnMut(Direction, SocketAddr),
    ) -> bool {
        let mut inner = self.0.borrow_mut();
        let (many, mut any) = inner.many(haste);
        let others = inner.stuck(haste);
        // Whoever is woken may look in here.
        drop(inner);
        any |= !others.is_empty();
        for stream in many.into_iter().chain(others) {
            stream.give_up(&mut tell);
        }
        any
    }

    /// Gives up some connections whose clients take nothing, and tells what and whose they were; where there are not
    /// enough, and unless they are `spared`, others too. Returns whether there was one whose client takes nothing.
    pub fn give_up_connections(
        &self,
        spared: bool,
        mut tell: impl FnMut(Victim, Direction, SocketAddr),
    ) -> bool {
        let count = self.0.borrow().open.len().div_ceil(SHARE);
        let mut any = false;
        for (number, victim) in self.last(count) {
            if victim == Victim::Newest && spared {
                break;
            }
            let connection = self.0.borrow_mut().open.remove(&number);
            if let Some(connection) = connection {
                connection.task.abort();
                tell(victim, connection.direction, connection.peer);
                any |= victim == Victim::Unread;
            }
        }
        any
    }

    /// Gives some of those up whose clients take nothing of the small pieces that come for them by a connection with this
    /// number, the longest first, and tells whose they were. False: there is nobody.
    pub(crate) fn give_up_answers(
        &self,
        connection: usize,
        mut tell: impl FnMut(Direction, SocketAddr),
    ) -> bool {
        let mut inner = self.0.borrow_mut();
        let stuck = |it: &Stream| it.source == connection && is_long_ago(it.since);
        let stuck = inner.waiting.iter().filter(|(_, it)| stuck(it));
        let stuck: Vec<_> = stuck.map(|(number, _)| *number).collect();
        let share = stuck.len().div_ceil(SHARE);
        let streams = inner.take(stuck.into_iter().take(share));
        let unread = |it: &Connection| it.taking.is_by(connection) && it.taking.has_stopped();
        let unread = inner.open.iter().filter(|(_, it)| unread(it));
        let unread: Vec<_> = unread.map(|(number, _)| *number).collect();
        let share = unread.len().div_ceil(SHARE);
        let unread = unread.into_iter().take(share);
        let connections: Vec<_> = unread.filter_map(|it| inner.open.remove(&it)).collect();
        // Whoever is woken or aborted may look in here.
        drop(inner);
        let any = !streams.is_empty() || !connections.is_empty();
        for stream in streams {
            stream.give_up(&mut tell);
        }
        for connection in connections {
            connection.task.abort();
            tell(connection.direction, connection.peer);
        }
        any
    }

    /// So many connections: those whose clients take nothing, and if there are not enough, others, the last first.
    fn last(&self, count: usize) -> Vec<(u64, Victim)> {
        let inner = self.0.borrow();
        let open = || inner.open.iter().rev();
        let unread = open().filter(|(_, it)| it.taking.has_stopped());
        let mut chosen: Vec<_> = unread
            .take(count)
            .map(|(number, _)| (*number, Victim::Unread))
            .collect();
        let unread = chosen.len();
        for (number, _) in open() {
            if chosen.len() >= count {
                break;
            }
            // Those that were chosen already are in the same order.
            if !chosen[..unread].iter().any(|(it, _)| it == number) {
                chosen.push((*number, Victim::Newest));
            }
        }
        chosen
    }
}

#[cfg(test)]
impl Newest {
    /// Whether there is a stream or a connection whose client takes nothing.
    pub(crate) fn somebody_waits(&self) -> bool {
        let inner = self.0.borrow();
        let mut open = inner.open.values();
        let mut waiting = inner.waiting.values();
        waiting.any(|it| is_long_ago(it.since)) || open.any(|it| it.taking.has_stopped())
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The streams of connections on which many wait, as far as they have waited for long enough; and whether there is
    /// such a connection.
    fn many(&mut self, haste: Haste) -> (Vec<Stream>, bool) {
        let patience = match haste {
            Haste::Little => PATIENCE,
            Haste::Some => MANY_PATIENCE,
            Haste::Great => 0,
        };
        let mut any = false;
        let many = self.waiting.iter().filter(|(_, it)| {
            let many = it.unread.are_many();
            any |= many;
            many && has_waited(it.since, patience)
        });
        let many: Vec<_> = many.map(|(number, _)| *number).collect();
        (self.take(many), any)
    }

    /// The streams that have waited longest, if that is too long: one that goes well waits again and again.
    fn stuck(&mut self, haste: Haste) -> Vec<Stream> {
        let stuck = self.waiting.iter();
        let stuck = stuck.take_while(|(_, it)| is_long_ago(it.since));
        let mut stuck: Vec<_> = stuck.map(|(number, _)| *number).collect();
        stuck.truncate(haste.share(stuck.len()));
        self.take(stuck)
    }

    fn take(&mut self, streams: impl IntoIterator<Item = u64>) -> Vec<Stream> {
        let streams = streams.into_iter();
        streams.filter_map(|it| self.waiting.remove(&it)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.newest.0.borrow_mut().open.remove(&self.number);
    }
}

impl Waiting {
    /// Whether the stream has to go.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.unread.take();
        self.newest.0.borrow_mut().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
