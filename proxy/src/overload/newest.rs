//! Who holds memory on one worker, in the order in which it is taken from them when there is none left.
//!
//! First go streams and connections whose clients take nothing of what there is for them: that is where memory goes, and
//! who behaves is never among them, however late it came. Then who came last: whoever was there before an attack is not
//! its victim.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use tokio::task::{AbortHandle, Id, try_id};

use super::taking::{Taking, is_long_ago, now};
use crate::conn::Direction;

/// One in so many is given up at a time, at least one.
const SHARE: usize = 16;

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

#[derive(Debug)]
struct Stream {
    given_up: Rc<Cell<bool>>,
    waker: Waker,
    /// When the wait began.
    since: u64,
    /// Number of the shared connection by which small pieces come for it; 0: there is none.
    source: usize,
    direction: Direction,
    peer: SocketAddr,
}

/// What is given up, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A stream of HTTP/2 whose client does not take its answer.
    Stream,
    /// A connection whose client takes nothing.
    Unread,
    /// One of the connections that came last.
    Newest,
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
        waker: Waker,
    ) -> Waiting {
        let mut inner = self.0.borrow_mut();
        let (number, given_up) = (inner.number(), Rc::new(Cell::new(false)));
        let stream = Stream {
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

    /// Gives up some of them, and tells what and whose they were.
    pub fn give_up(&self, mut tell: impl FnMut(Victim, Direction, SocketAddr)) {
        let inner = self.0.borrow();
        let mut left = (inner.open.len() + inner.waiting.len()).div_ceil(SHARE);
        drop(inner);
        while left > 0 {
            // Whoever is woken or aborted may look in here.
            let stuck = self.0.borrow_mut().stuck();
            let Some(stream) = stuck else { break };
            stream.given_up.set(true);
            stream.waker.wake();
            tell(Victim::Stream, stream.direction, stream.peer);
            left -= 1;
        }
        for (number, victim) in self.last(left) {
            let connection = self.0.borrow_mut().open.remove(&number);
            if let Some(connection) = connection {
                connection.task.abort();
                tell(victim, connection.direction, connection.peer);
            }
        }
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
        let streams = stuck.into_iter().take(share);
        let streams: Vec<_> = streams.filter_map(|it| inner.waiting.remove(&it)).collect();
        let unread = |it: &Connection| it.taking.is_by(connection) && it.taking.has_stopped();
        let unread = inner.open.iter().filter(|(_, it)| unread(it));
        let unread: Vec<_> = unread.map(|(number, _)| *number).collect();
        let share = unread.len().div_ceil(SHARE);
        let unread = unread.into_iter().take(share);
        let connections: Vec<_> = unread.filter_map(|it| inner.open.remove(&it)).collect();
        // Whoever is woken or aborted may look in here.
        drop(inner);
        for stream in &streams {
            stream.given_up.set(true);
            stream.waker.wake_by_ref();
            tell(stream.direction, stream.peer);
        }
        for connection in &connections {
            connection.task.abort();
            tell(connection.direction, connection.peer);
        }
        !streams.is_empty() || !connections.is_empty()
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

    /// The stream that waits longest, if that is too long: one that goes well waits again and again.
    fn stuck(&mut self) -> Option<Stream> {
        let first = self.waiting.first_entry()?;
        is_long_ago(first.get().since).then(|| first.remove())
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
        self.newest.0.borrow_mut().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use futures_util::task::{ArcWake, waker};
    use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

    use super::*;

    /// Connections from ports 1 to 40, and what they say of their clients.
    async fn forty(newest: &Newest) -> Vec<(JoinHandle<()>, Taking)> {
        let takings = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for port in 1..=40 {
            let place = newest.place();
            let (own, takings) = (newest.clone(), takings.clone());
            let task = spawn_local(async move {
                let _place = place;
                takings.borrow_mut().push(own.taking());
                std::future::pending::<()>().await;
            });
            newest.serves(task.abort_handle(), Direction::Inbound, peer(port));
            tasks.push(task);
        }
        yield_now().await;
        tasks.into_iter().zip(takings.take()).collect()
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// What is given up, and of which ports.
    fn given_up(newest: &Newest) -> Vec<(Victim, u16)> {
        let mut told = Vec::new();
        newest.give_up(|victim, _, peer| told.push((victim, peer.port())));
        told
    }

    #[tokio::test]
    async fn the_newest_go_first_and_one_that_has_ended_does_not_count() {
        LocalSet::new().run_until(ordered()).await;
    }

    async fn ordered() {
        let newest = Newest::default();
        let tasks = forty(&newest).await;
        tasks[39].0.abort();
        yield_now().await;
        let last = [39, 38, 37].map(|port| (Victim::Newest, port));
        assert_eq!(given_up(&newest), last);
        yield_now().await;
        let ended: Vec<_> = tasks.iter().map(|(task, _)| task.is_finished()).collect();
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 4);
        assert!(ended[36..].iter().all(|ended| *ended));
        for _ in 0..40 {
            newest.give_up(|_, _, _| ());
        }
        yield_now().await;
        assert!(tasks.iter().all(|(task, _)| task.is_finished()));
        newest.give_up(|_, _, _| panic!("there is none left"));
    }

    #[tokio::test]
    async fn whose_clients_take_nothing_go_before_the_newest() {
        LocalSet::new().run_until(unread()).await;
    }

    async fn unread() {
        let newest = Newest::default();
        let tasks = forty(&newest).await;
        for port in [2, 5, 7, 40] {
            tasks[port - 1].1.stop();
        }
        let unread = |port| (Victim::Unread, port);
        assert_eq!(given_up(&newest), [unread(40), unread(7), unread(5)]);
        yield_now().await;
        assert!(tasks[39].0.is_finished() && !tasks[38].0.is_finished());
        let last = [unread(2), (Victim::Newest, 39), (Victim::Newest, 38)];
        assert_eq!(given_up(&newest), last);
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl ArcWake for Woken {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn streams_that_wait_for_their_clients_go_first_and_the_longest_of_them() {
        let newest = Newest::default();
        let woken = Arc::new(Woken::default());
        let wait = |port| newest.waits(Direction::Inbound, peer(port), 0, waker(woken.clone()));
        let mut waiting: Vec<_> = (1..=20).map(wait).collect();
        waiting.remove(0);
        newest.give_up(|_, _, _| panic!("they have only begun to wait"));
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(
            given_up(&newest),
            [(Victim::Stream, 2), (Victim::Stream, 3)],
            "the first has gone on"
        );
        assert_eq!(woken.0.load(Relaxed), 2);
        let gone: Vec<_> = waiting.iter().map(Waiting::is_given_up).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 2);
        assert!(gone[0] && gone[1]);
        drop(waiting);
        newest.give_up(|_, _, _| panic!("there is none left"));
    }

    #[tokio::test]
    async fn only_who_takes_nothing_of_what_comes_by_a_connection_goes_for_it() {
        LocalSet::new().run_until(crowding()).await;
    }

    async fn crowding() {
        let newest = Newest::default();
        let tasks = forty(&newest).await;
        let wait = |port, source| {
            let waker = futures_util::task::noop_waker();
            newest.waits(Direction::Inbound, peer(port), source, waker)
        };
        let given_up = |connection| {
            let mut told = Vec::new();
            let any = newest.give_up_answers(connection, |_, peer| told.push(peer.port()));
            assert_eq!(any, !told.is_empty());
            told
        };
        let _waiting = [wait(1, 0), wait(2, 8), wait(3, 7), wait(4, 7)];
        assert!(given_up(7).is_empty(), "they have only begun to wait");
        std::thread::sleep(Duration::from_millis(150));
        for expected in [3, 4] {
            assert_eq!(given_up(7), [expected]);
        }
        assert!(given_up(7).is_empty());
        for port in [5, 6, 9] {
            tasks[port - 1].1.comes_by(if port == 9 { 8 } else { 7 });
        }
        assert!(given_up(7).is_empty(), "they take what there is");
        tasks[4].1.stop();
        tasks[8].1.stop();
        assert_eq!(given_up(7), [5]);
        yield_now().await;
        let ended = tasks.iter().filter(|(task, _)| task.is_finished());
        assert!(ended.count() == 1 && tasks[4].0.is_finished());
    }
}
