//! The connections of one key, and the attempt to make one that others wait for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;

use super::limits::Freed;
use super::turns::Turns;
use crate::io::{Asked, Probe};
use crate::retry::RequestBody;
use crate::upstream::crowd::Load;
use crate::upstream::drive::Driver;
use crate::upstream::lease::{Http1Lease, Http2Lease};
use crate::upstream::{ConnectError, Lease};

/// For how long worn connections do after a better one could not be made.
const RESPITE: Duration = Duration::from_secs(1);

/// An HTTP/1 connection that nobody uses.
#[derive(Debug)]
pub(in crate::upstream) struct Idle {
    pub(in crate::upstream) sender: http1::SendRequest<RequestBody>,
    pub(in crate::upstream) asked: Asked,
    pub(in crate::upstream) probe: Probe,
    pub(in crate::upstream) task: Driver,
    pub(in crate::upstream) since: Instant,
}

/// An HTTP/2 connection and how much it is used.
#[derive(Debug)]
pub(in crate::upstream) struct Http2Connection {
    pub(in crate::upstream) sender: http2::SendRequest<RequestBody>,
    pub(in crate::upstream) load: Rc<Load>,
    /// Streams that its peer allows.
    pub(in crate::upstream) max_streams: Rc<Cell<usize>>,
    /// Streams that it carries at a time, whatever more its peer would allow.
    pub(in crate::upstream) most: usize,
    pub(in crate::upstream) since: Cell<Instant>,
}

/// The connections of one key.
#[derive(Debug)]
pub(in crate::upstream) struct Shelf {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Http2Connection>>,
    connecting: RefCell<Option<Rc<Connecting>>>,
    /// When an HTTP/2 connection could last not be made.
    failed: Cell<Option<Instant>>,
    retired: Cell<bool>,
    freed: Freed,
    turns: Turns,
}

impl Shelf {
    pub(super) fn new(freed: Freed) -> Self {
        Self {
            idle: RefCell::default(),
            shared: RefCell::default(),
            connecting: RefCell::default(),
            failed: Cell::default(),
            retired: Cell::new(false),
            freed,
            turns: Turns::default(),
        }
    }

    /// Who makes a connection of these, and who waits for that.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(super) fn freed(&self) -> &Freed {
        &self.freed
    }

    /// A pooled connection that can take a request now.
    pub(super) fn take(self: &Rc<Self>, careful: bool) -> Option<Lease> {
        if let Some(idle) = self.take_idle(careful) {
            return Some(Self::lease_http1(self, idle, true));
        }
        let mut shared = self.shared.borrow_mut();
        shared.retain(Http2Connection::is_useful);
        let mut free = shared.iter().filter(|connection| connection.has_room());
        let good = free.clone().find(|connection| !connection.load.is_worn());
        let any = good.or_else(|| free.next().filter(|_| self.failed_lately()))?;
        Some(self.lease_http2(any, true))
    }

    /// Whether worn connections have to do, because making one has failed and is not tried again for a while.
    fn failed_lately(&self) -> bool {
        self.failed.get().is_some_and(|at| at.elapsed() < RESPITE)
    }

    /// The most recently used connection that is still good.
    fn take_idle(&self, careful: bool) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|connection| !connection.sender.is_closed());
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            if !idle[index].sender.is_ready() {
                continue;
            }
            let connection = idle.remove(index);
            if !(careful && connection.probe.is_stale()) {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn lease_http1(shelf: &Rc<Self>, idle: Idle, reused: bool) -> Lease {
        Lease::Http1(Http1Lease {
            idle: Some(idle),
            shelf: Rc::downgrade(shelf),
            reused,
        })
    }

    fn lease_http2(&self, connection: &Http2Connection, reused: bool) -> Lease {
        let streams = &connection.load.streams;
        streams.set(streams.get() + 1);
        connection.since.set(Instant::now());
        Lease::Http2(Http2Lease {
            sender: connection.sender.clone(),
            load: connection.load.clone(),
            freed: self.freed.clone(),
            reused,
        })
    }

    /// Takes an HTTP/1 connection back.
    pub(in crate::upstream) fn put(&self, mut idle: Idle) {
        if self.retired.get() || idle.sender.is_closed() || self.freed.is_wanted_elsewhere() {
            return;
        }
        idle.since = Instant::now();
        self.idle.borrow_mut().push(idle);
        self.freed.one();
        self.turns.one();
    }

    /// Takes a new HTTP/2 connection and leases its first stream. It takes the place of those that are worn.
    pub(super) fn put_http2(&self, connection: Http2Connection) -> Lease {
        let lease = self.lease_http2(&connection, false);
        if !self.retired.get() {
            let mut shared = self.shared.borrow_mut();
            shared.retain(|connection| !connection.load.is_worn());
            shared.push(connection);
            drop(shared);
            self.freed.many();
        }
        lease
    }

    /// Closes what is idle, now and whenever something comes back; streams end first.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Closes one connection that nobody uses.
    pub(super) fn evict(&self) -> bool {
        if self.idle.borrow_mut().pop().is_some() {
            return true;
        }
        let mut shared = self.shared.borrow_mut();
        let unused = shared
            .iter()
            .position(|connection| connection.load.streams.get() == 0);
        unused.map(|index| shared.swap_remove(index)).is_some()
    }

    /// Closes what nobody has used for a while.
    pub(super) fn reap(&self, timeout: Duration) {
        self.idle.borrow_mut().retain(|connection| {
            !connection.sender.is_closed() && connection.since.elapsed() < timeout
        });
        self.shared.borrow_mut().retain(|connection| {
            let used =
                connection.load.streams.get() > 0 || connection.since.get().elapsed() < timeout;
            used && !connection.sender.is_closed()
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// The attempt to connect that is under way.
    pub(super) fn connecting(&self) -> Option<Rc<Connecting>> {
        self.connecting.borrow().clone()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len() + self.shared.borrow().len()
    }
}

impl Http2Connection {
    fn has_room(&self) -> bool {
        self.load.streams.get() < self.max_streams.get().min(self.most)
    }

    /// Whether it is of any use: its peer has not closed it, nor allows no stream at all, and something comes by it.
    fn is_useful(&self) -> bool {
        let allowed = self.max_streams.get() > 0 || self.load.streams.get() > 0;
        allowed && !self.sender.is_closed() && !self.load.is_stuck()
    }
}

/// An attempt to connect that several requests wait for.
#[derive(Debug, Default)]
pub(super) struct Connecting {
    ended: Notify,
    outcome: Cell<Outcome>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Outcome {
    #[default]
    Open,
    /// It was made, or whoever made it went away: look again.
    LookAgain,
    Failed,
}

impl Connecting {
    pub(super) fn begin(shelf: &Rc<Shelf>) -> ConnectingGuard {
        let connecting = Rc::new(Self::default());
        *shelf.connecting.borrow_mut() = Some(connecting.clone());
        ConnectingGuard {
            shelf: shelf.clone(),
            connecting,
        }
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&self) -> Result<(), ConnectError> {
        let ended = self.ended.notified();
        if matches!(self.outcome.get(), Outcome::Open) {
            ended.await;
        }
        match self.outcome.get() {
            Outcome::Failed => Err(ConnectError::Shared),
            Outcome::Open | Outcome::LookAgain => Ok(()),
        }
    }
}

/// Whoever makes the connection; dropped, it lets the next one try.
#[derive(Debug)]
pub(super) struct ConnectingGuard {
    shelf: Rc<Shelf>,
    connecting: Rc<Connecting>,
}

impl ConnectingGuard {
    pub(super) fn end(self, made: bool) {
        let (outcome, failed) = if made {
            (Outcome::LookAgain, None)
        } else {
            (Outcome::Failed, Some(Instant::now()))
        };
        self.connecting.outcome.set(outcome);
        self.shelf.failed.set(failed);
    }
}

impl Drop for ConnectingGuard {
    fn drop(&mut self) {
        if matches!(self.connecting.outcome.get(), Outcome::Open) {
            self.connecting.outcome.set(Outcome::LookAgain);
        }
        *self.shelf.connecting.borrow_mut() = None;
        self.connecting.ended.notify_waiters();
    }
}
