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
}

impl Unread {
    /// Of a connection that is one client's, or that many share.
    pub(crate) fn of(shared: bool) -> Self {
        Self {
            waiting: Rc::default(),
            few: if shared { FEW_SHARED } else { FEW },
        }
    }

    /// Whether there are so many that they are given up together, and that there should not be more.
    pub(crate) fn are_many(&self) -> bool {
        self.waiting.get() > self.few
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
            stream.given_up.set(true);
            stream.waker.wake();
            tell(stream.direction, stream.peer);
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
        let many = many.map(|(number, _)| *number).collect();
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

    fn take(&mut self, streams: Vec<u64>) -> Vec<Stream> {
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

    /// Which connections are given up, of which ports.
    fn given_up(newest: &Newest) -> Vec<(Victim, u16)> {
        let mut told = Vec::new();
        let mut idle = false;
        let any = newest.give_up_connections(false, |victim, _, peer| {
            idle |= victim != Victim::Newest;
            told.push((victim, peer.port()));
        });
        assert_eq!(any, idle);
        told
    }

    /// Of which ports streams are given up, and whether there are any such.
    fn streams_given_up(newest: &Newest, haste: Haste) -> (Vec<u16>, bool) {
        let mut told = Vec::new();
        let any = newest.give_up_streams(haste, |_, peer| told.push(peer.port()));
        (told, any)
    }

    /// A stream of a connection waits for its client.
    fn wait(newest: &Newest, port: u16, unread: &Unread) -> Waiting {
        let waker = futures_util::task::noop_waker();
        newest.waits(Direction::Inbound, peer(port), 0, unread, waker)
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
            given_up(&newest);
        }
        yield_now().await;
        assert!(tasks.iter().all(|(task, _)| task.is_finished()));
        assert!(given_up(&newest).is_empty(), "there is none left");
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
        let spared = newest.give_up_connections(true, |victim, _, peer| {
            assert_eq!((victim, peer.port()), unread(2));
        });
        assert!(spared, "there was one");
        let last = [39, 38, 37].map(|port| (Victim::Newest, port));
        assert_eq!(given_up(&newest), last);
        assert!(!newest.give_up_connections(true, |_, _, _| panic!("they are spared")));
    }

    /// As if the streams of that port had waited for so many milliseconds, and no longer.
    fn waited(newest: &Newest, port: u16, milliseconds: u64) {
        let mut inner = newest.0.borrow_mut();
        let waiting = inner.waiting.values_mut();
        let own = waiting.filter(|it| it.peer == peer(port));
        // What lies ahead has not been waited for at all.
        own.for_each(|it| {
            it.since = now() + 3_600_000 * u64::from(milliseconds == 0) - milliseconds
        });
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
        let wait = |port| {
            let waker = waker(woken.clone());
            newest.waits(Direction::Inbound, peer(port), 0, &Unread::of(false), waker)
        };
        let mut waiting: Vec<_> = (1..=20).map(wait).collect();
        waiting.remove(0);
        (2..=20).for_each(|port| waited(&newest, port, 0));
        let nobody = (Vec::new(), false);
        assert_eq!(streams_given_up(&newest, Haste::Great), nobody);
        (2..=20).for_each(|port| waited(&newest, port, PATIENCE));
        assert_eq!(streams_given_up(&newest, Haste::Little), nobody);
        assert_eq!(
            streams_given_up(&newest, Haste::Some),
            ((2..=6).collect(), true),
            "the first has gone on"
        );
        assert_eq!(woken.0.load(Relaxed), 5);
        let gone: Vec<_> = waiting.iter().map(Waiting::is_given_up).collect();
        assert_eq!(gone, (2..=20).map(|port| port <= 6).collect::<Vec<_>>());
        let all = (7..=20).collect();
        assert_eq!(streams_given_up(&newest, Haste::Great), (all, true));
        drop(waiting);
        assert_eq!(streams_given_up(&newest, Haste::Great), nobody);
    }

    #[test]
    fn where_many_answers_wait_all_of_them_go_the_sooner_the_greater_the_haste() {
        for (haste, patience) in [
            (Haste::Little, PATIENCE),
            (Haste::Some, MANY_PATIENCE),
            (Haste::Great, 0),
        ] {
            let newest = Newest::default();
            let (few, many, shared) = (Unread::of(false), Unread::of(false), Unread::of(true));
            let few_wait: Vec<_> = (0..FEW).map(|_| wait(&newest, 1, &few)).collect();
            let many_wait: Vec<_> = (0..=FEW).map(|_| wait(&newest, 2, &many)).collect();
            let clients = (0..FEW_SHARED).map(|_| wait(&newest, 1, &shared));
            let clients: Vec<_> = clients.collect();
            assert!(!few.are_many() && many.are_many() && !shared.are_many());
            waited(&newest, 1, 0);
            waited(&newest, 2, 0);
            if patience > 0 {
                let early = streams_given_up(&newest, haste);
                assert_eq!(early, (Vec::new(), true), "{haste:?}: they have only begun");
                waited(&newest, 2, patience);
            }
            let all = vec![2; many_wait.len()];
            assert_eq!(streams_given_up(&newest, haste), (all, true), "{haste:?}");
            assert!(many_wait.iter().all(Waiting::is_given_up), "{haste:?}");
            drop(many_wait);
            assert!(!many.are_many(), "{haste:?}");
            let mut others = few_wait.iter().chain(&clients);
            assert!(!others.any(Waiting::is_given_up), "{haste:?}");
            let one_more = wait(&newest, 1, &shared);
            assert!(shared.are_many(), "{haste:?}");
            drop(one_more);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_takes_nothing_of_what_comes_by_a_connection_goes_for_it() {
        LocalSet::new().run_until(crowding()).await;
    }

    async fn crowding() {
        let newest = Newest::default();
        let tasks = forty(&newest).await;
        let wait = |port, source| {
            let (waker, unread) = (futures_util::task::noop_waker(), Unread::of(false));
            newest.waits(Direction::Inbound, peer(port), source, &unread, waker)
        };
        let given_up = |connection| {
            let mut told = Vec::new();
            let any = newest.give_up_answers(connection, |_, peer| told.push(peer.port()));
            assert_eq!(any, !told.is_empty());
            told
        };
        let _waiting = [wait(1, 0), wait(2, 8), wait(3, 7), wait(4, 7)];
        assert!(given_up(7).is_empty(), "they have only begun to wait");
        tokio::time::advance(Duration::from_secs(1)).await;
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
