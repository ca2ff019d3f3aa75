//! Who goes first when memory has to be given back.

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
    own.for_each(|it| it.since = now() + 3_600_000 * u64::from(milliseconds == 0) - milliseconds);
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
