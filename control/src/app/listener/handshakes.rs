//! Handshakes that are going on, and who gives way when there are too many.
//!
//! Whoever says nothing must not keep out who does. A handshake that has had its time is given up for a newer one: at the
//! limit of an address its own oldest, at that of all the oldest of the address that holds most. One that has not is
//! left alone, and who has said something has more time than who has not: a crowd that comes at once says hello at once,
//! and cuts off none of its own, however long the hellos wait for their turn here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All of them.
#[derive(Debug)]
pub(super) struct Handshakes {
    most: usize,
    of_address: usize,
    /// How old one must be to be given up for another: without a word from its client, and with.
    grace: (Duration, Duration),
    open: Mutex<Open>,
    ended: Notify,
}

/// By address and number, which is their age.
#[derive(Debug, Default)]
struct Open {
    last: u64,
    all: usize,
    by_address: HashMap<IpAddr, BTreeMap<u64, One>>,
}

/// From when on it may be given up, and how.
#[derive(Debug)]
struct One {
    due: Instant,
    given_up: CancellationToken,
}

/// One of them, for as long as it lives.
#[derive(Debug)]
pub(super) struct Handshaking {
    all: Arc<Handshakes>,
    address: IpAddr,
    number: u64,
    began: Instant,
    pub(super) given_up: CancellationToken,
}

/// What there is for one more.
enum Room {
    /// Room, because others were given up if a limit is named.
    For(u64, CancellationToken, Option<&'static str>),
    /// Not before this moment, unless one ends.
    Later(Instant),
    /// None for this address.
    No,
}

impl Handshakes {
    /// `grace` is how old one must be to be given up for another: without a word from its client, and with.
    pub(super) fn new(most: usize, of_address: usize, grace: (Duration, Duration)) -> Arc<Self> {
        Arc::new(Self {
            most,
            of_address,
            grace,
            open: Mutex::default(),
            ended: Notify::new(),
        })
    }

    /// One more with this address, as soon as there is room among all; `None` if it has as many as it may. `tell` hears of
    /// each limit that was reached.
    pub(super) async fn begin(
        self: &Arc<Self>,
        address: IpAddr,
        tell: impl Fn(&'static str),
    ) -> Option<Handshaking> {
        let mut waited = false;
        loop {
            let room = self.room(address);
            match room {
                Room::For(number, given_up, limit) => {
                    if let Some(limit) = limit.filter(|_| !waited) {
                        tell(limit);
                    }
                    return Some(Handshaking {
                        all: self.clone(),
                        address,
                        number,
                        began: Instant::now(),
                        given_up,
                    });
                }
                Room::No => {
                    tell("handshakes_of_address");
                    return None;
                }
                Room::Later(until) => {
                    if !std::mem::replace(&mut waited, true) {
                        tell("handshakes");
                    }
                    tokio::select! {
                        // Either is a reason to look again.
                        () = self.ended.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    fn room(&self, address: IpAddr) -> Room {
        let now = Instant::now();
        let mut open = self.open.lock();
        let mut limit = None;
        let own = open.by_address.get(&address);
        if own.is_some_and(|own| own.len() >= self.of_address) {
            let Some(number) = own.and_then(|own| oldest_due(own, now)) else {
                return Room::No;
            };
            open.give_up(address, number);
            limit = Some("handshakes_of_address");
        }
        if open.all >= self.most {
            let Some((address, number)) = open.oldest_of_most(now) else {
                let first = open.by_address.values().flat_map(BTreeMap::values);
                return Room::Later(first.map(|it| it.due).min().unwrap_or(now));
            };
            open.give_up(address, number);
            limit = limit.or(Some("handshakes"));
        }
        open.last += 1;
        open.all += 1;
        let (number, given_up) = (open.last, CancellationToken::new());
        let of_address = open.by_address.entry(address).or_default();
        let one = One {
            due: now + self.grace.0,
            given_up: given_up.clone(),
        };
        of_address.insert(number, one);
        Room::For(number, given_up, limit)
    }
}

impl Open {
    /// The oldest of the address that has most, of those that have had their time.
    fn oldest_of_most(&self, now: Instant) -> Option<(IpAddr, u64)> {
        let oldest = self.by_address.iter();
        let oldest = oldest.filter_map(|(address, all)| {
            let number = oldest_due(all, now)?;
            Some((all.len(), Reverse(number), *address))
        });
        let (_, Reverse(number), address) = oldest.max()?;
        Some((address, number))
    }

    fn give_up(&mut self, address: IpAddr, number: u64) {
        if let Some(given_up) = self.remove(address, number) {
            given_up.cancel();
        }
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<CancellationToken> {
        let of_address = self.by_address.get_mut(&address)?;
        let one = of_address.remove(&number)?;
        if of_address.is_empty() {
            self.by_address.remove(&address);
        }
        self.all -= 1;
        Some(one.given_up)
    }
}

/// The oldest that has had its time.
fn oldest_due(of_address: &BTreeMap<u64, One>, now: Instant) -> Option<u64> {
    let due = of_address.iter().find(|(_, one)| one.due <= now);
    due.map(|(number, _)| *number)
}

impl Handshaking {
    /// Its client has said something.
    pub(super) fn spoke(&self) {
        let mut open = self.all.open.lock();
        let one = open.by_address.get_mut(&self.address);
        if let Some(one) = one.and_then(|all| all.get_mut(&self.number)) {
            one.due = self.began + self.all.grace.1;
        }
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        let removed = self.all.open.lock().remove(self.address, self.number);
        if removed.is_some() {
            // Whoever comes to wait later finds the room, too.
            self.all.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_secs(2);
    const GRACE: (Duration, Duration) = (SILENT, Duration::from_secs(5));

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// That many with each of these addresses, one after the other.
    async fn begun(all: &Arc<Handshakes>, many: &[(u8, usize)]) -> Vec<Handshaking> {
        let mut begun = Vec::new();
        for (last, many) in many {
            for _ in 0..*many {
                let one = all.begin(address(*last), |limit| panic!("{limit}")).await;
                begun.push(one.expect("there is room"));
            }
        }
        begun
    }

    /// Which of them were given up.
    fn given_up(begun: &[Handshaking]) -> Vec<usize> {
        let given_up = begun.iter().enumerate();
        let given_up = given_up.filter(|(_, it)| it.given_up.is_cancelled());
        given_up.map(|(index, _)| index).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn four_addresses_full_of_silence_keep_a_fifth_from_nothing() {
        let all = Handshakes::new(8, 2, GRACE);
        let silent = begun(&all, &[(1, 2), (2, 2), (3, 2), (4, 2)]).await;
        tokio::time::advance(SILENT).await;
        let (now, told) = (Instant::now(), Mutex::new(Vec::new()));
        let tell = |limit| told.lock().push(limit);
        let fifth = all.begin(address(5), tell).await.expect("room");
        let more = all.begin(address(5), tell).await.expect("room");
        assert_eq!(Instant::now(), now, "at once");
        assert_eq!(*told.lock(), ["handshakes", "handshakes"]);
        assert_eq!(
            given_up(&silent),
            [0, 2],
            "the oldest, and of an address that has most then"
        );
        drop((fifth, more, silent));
        assert!(all.open.lock().by_address.is_empty());
        assert_eq!(all.open.lock().all, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_most_gives_way_before_who_is_older() {
        let all = Handshakes::new(4, 3, GRACE);
        let open = begun(&all, &[(1, 1), (2, 3)]).await;
        tokio::time::advance(SILENT).await;
        let _one = all.begin(address(3), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_cuts_off_none_of_its_own() {
        let all = Handshakes::new(4, 4, GRACE);
        let mut open = begun(&all, &[(1, 1), (2, 1), (3, 1), (4, 1)]).await;
        let (began, told) = (Instant::now(), Mutex::new(Vec::new()));
        let tell = |limit| told.lock().push(limit);
        // One ends, and its room is taken at once.
        let (fifth, ()) = tokio::join!(all.begin(address(5), tell), async { drop(open.pop()) });
        assert_eq!((given_up(&open), Instant::now()), (vec![], began));
        // None does, until the oldest has had its time.
        let sixth = all.begin(address(6), tell).await;
        assert_eq!((given_up(&open), began.elapsed()), (vec![0], SILENT));
        assert_eq!(*told.lock(), ["handshakes", "handshakes"]);
        drop((fifth, sixth));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_has_as_many_as_it_may_gives_up_its_own_once_they_have_had_their_time()
    {
        let all = Handshakes::new(8, 2, GRACE);
        let open = begun(&all, &[(2, 1), (1, 2)]).await;
        let told = Mutex::new(Vec::new());
        let tell = |limit| told.lock().push(limit);
        assert!(all.begin(address(1), tell).await.is_none());
        assert_eq!(given_up(&open), [0; 0]);
        tokio::time::advance(SILENT).await;
        let _third = all.begin(address(1), tell).await.expect("room");
        assert_eq!(given_up(&open), [1], "its own, although another is older");
        assert_eq!(*told.lock(), ["handshakes_of_address"; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_said_something_has_more_time() {
        let all = Handshakes::new(2, 2, GRACE);
        let open = begun(&all, &[(1, 2)]).await;
        open[0].spoke();
        tokio::time::advance(SILENT).await;
        let _third = all.begin(address(2), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [1], "the silent one, although it is newer");
        tokio::time::advance(GRACE.1 - SILENT).await;
        let _fourth = all.begin(address(2), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [0, 1], "it has had its time, too");
    }
}
