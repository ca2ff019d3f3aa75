//! Strangers that take room here, and who gives way when there are too many: handshakes that are going on, and connections
//! without a certificate.
//!
//! Whoever says nothing must not keep out who does. One that has had its time is given up for a newer one: at the
//! limit of an address its own oldest, at that of all the oldest of the address that holds most. One that has not is
//! left alone, and who has said something has more time than who has not: a crowd that comes at once says hello at once,
//! and cuts off none of its own, however long the hellos wait for their turn here. Only who fills an address has less: there
//! silence is given up for a newer one after a moment, because behind the address may be many. And what one address has more
//! than another it has only while there is room: a few that are full of those who say something, again and again, keep out
//! nobody elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How old one must be to be given up for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grace {
    /// Without a word from its client, for one more of an address that has as many as it may.
    pub(crate) crowded: Duration,
    /// Without a word from its client.
    pub(crate) silent: Duration,
    /// With one.
    pub(crate) spoke: Duration,
}

/// A limit, and what it is called where it is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) many: usize,
    pub(super) name: &'static str,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Crowd {
    all: Most,
    of_address: Most,
    grace: Grace,
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
    began: Instant,
    spoke: bool,
    given_up: CancellationToken,
}

/// One of them, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Stranger {
    all: Arc<Crowd>,
    address: IpAddr,
    number: u64,
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

impl Crowd {
    /// At most so many of all, and of an address.
    pub(super) fn new(all: Most, of_address: Most, grace: Grace) -> Arc<Self> {
        Arc::new(Self {
            all,
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
    ) -> Option<Stranger> {
        let mut waited = false;
        loop {
            match self.room(address) {
                Room::For(number, given_up, limit) => {
                    if let Some(limit) = limit.filter(|_| !waited) {
                        tell(limit);
                    }
                    return Some(self.stranger(address, number, given_up));
                }
                Room::No => {
                    tell(self.of_address.name);
                    return None;
                }
                Room::Later(until) => {
                    if !std::mem::replace(&mut waited, true) {
                        tell(self.all.name);
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

    /// One more with this address, if there is room now, or the limit that leaves none. `tell` hears of one that was
    /// reached although there is room.
    pub(super) fn try_begin(
        self: &Arc<Self>,
        address: IpAddr,
        tell: impl FnOnce(&'static str),
    ) -> Result<Stranger, &'static str> {
        match self.room(address) {
            Room::For(number, given_up, limit) => {
                if let Some(limit) = limit {
                    tell(limit);
                }
                Ok(self.stranger(address, number, given_up))
            }
            Room::No => Err(self.of_address.name),
            Room::Later(_) => Err(self.all.name),
        }
    }

    fn stranger(
        self: &Arc<Self>,
        address: IpAddr,
        number: u64,
        given_up: CancellationToken,
    ) -> Stranger {
        Stranger {
            all: self.clone(),
            address,
            number,
            given_up,
        }
    }

    fn room(&self, address: IpAddr) -> Room {
        let now = Instant::now();
        let mut open = self.open.lock();
        let mut limit = None;
        let own = open.by_address.get(&address);
        if let Some(own) = own.filter(|own| own.len() >= self.of_address.many) {
            let gives_way = self.oldest_due(own, now).or_else(|| {
                let silent = |one: &One| !one.spoke && one.began + self.grace.crowded <= now;
                own.iter().find(|(_, one)| silent(one)).map(|it| *it.0)
            });
            let Some(number) = gives_way else {
                return Room::No;
            };
            open.give_up(address, number);
            limit = Some(self.of_address.name);
        }
        if open.all >= self.all.many {
            let gives_way = self.oldest_of_most(&open, now);
            let Some((address, number)) = gives_way.or_else(|| open.newest_of_more(address)) else {
                let due = open.by_address.values().flat_map(BTreeMap::values);
                let first = due.map(|one| self.due(one)).min();
                return Room::Later(first.unwrap_or(now));
            };
            open.give_up(address, number);
            limit = limit.or(Some(self.all.name));
        }
        open.last += 1;
        open.all += 1;
        let (number, given_up) = (open.last, CancellationToken::new());
        let of_address = open.by_address.entry(address).or_default();
        let one = One {
            began: now,
            spoke: false,
            given_up: given_up.clone(),
        };
        of_address.insert(number, one);
        Room::For(number, given_up, limit)
    }

    /// From when on one may be given up for any other.
    fn due(&self, one: &One) -> Instant {
        one.began
            + if one.spoke {
                self.grace.spoke
            } else {
                self.grace.silent
            }
    }

    /// The oldest that has had its time.
    fn oldest_due(&self, of_address: &BTreeMap<u64, One>, now: Instant) -> Option<u64> {
        let due = of_address.iter().find(|(_, one)| self.due(one) <= now);
        due.map(|(number, _)| *number)
    }

    /// The oldest of the address that has most, of those that have had their time.
    fn oldest_of_most(&self, open: &Open, now: Instant) -> Option<(IpAddr, u64)> {
        let oldest = open.by_address.iter();
        let oldest = oldest.filter_map(|(address, all)| {
            let number = self.oldest_due(all, now)?;
            Some((all.len(), Reverse(number), *address))
        });
        let (_, Reverse(number), address) = oldest.max()?;
        Some((address, number))
    }
}

impl Open {
    /// The newest, on which the least work was done, of the address that has most, if it has more than `address` with one more.
    fn newest_of_more(&self, address: IpAddr) -> Option<(IpAddr, u64)> {
        let own = self.by_address.get(&address).map_or(0, BTreeMap::len);
        let by_address = self.by_address.iter();
        let (most, all) = by_address.max_by_key(|(address, all)| (all.len(), **address))?;
        let (newest, _) = all.last_key_value()?;
        (all.len() > own + 1).then_some((*most, *newest))
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

impl Stranger {
    /// Its client has said something.
    pub(crate) fn spoke(&self) {
        let mut open = self.all.open.lock();
        let one = open.by_address.get_mut(&self.address);
        if let Some(one) = one.and_then(|all| all.get_mut(&self.number)) {
            one.spoke = true;
        }
    }
}

impl Drop for Stranger {
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
    const GRACE: Grace = Grace {
        crowded: Duration::from_millis(100),
        silent: SILENT,
        spoke: Duration::from_secs(5),
    };

    fn crowd(all: usize, of_address: usize) -> Arc<Crowd> {
        let most = |many, name| Most { many, name };
        let of_address = most(of_address, "handshakes_of_address");
        Crowd::new(most(all, "handshakes"), of_address, GRACE)
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// That many with each of these addresses, one after the other.
    async fn begun(all: &Arc<Crowd>, many: &[(u8, usize)]) -> Vec<Stranger> {
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
    fn given_up(begun: &[Stranger]) -> Vec<usize> {
        let given_up = begun.iter().enumerate();
        let given_up = given_up.filter(|(_, it)| it.given_up.is_cancelled());
        given_up.map(|(index, _)| index).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn four_addresses_full_of_silence_keep_a_fifth_from_nothing() {
        let all = crowd(8, 2);
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
        let all = crowd(4, 3);
        let open = begun(&all, &[(1, 1), (2, 3)]).await;
        tokio::time::advance(SILENT).await;
        let _one = all.begin(address(3), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_cuts_off_none_of_its_own() {
        let all = crowd(4, 4);
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
        let all = crowd(8, 2);
        let open = begun(&all, &[(2, 1), (1, 2)]).await;
        open[1].spoke();
        open[2].spoke();
        let told = Mutex::new(Vec::new());
        let tell = |limit| told.lock().push(limit);
        assert!(all.begin(address(1), tell).await.is_none());
        tokio::time::advance(SILENT).await;
        assert!(all.begin(address(1), tell).await.is_none());
        assert_eq!(given_up(&open), [0; 0]);
        tokio::time::advance(GRACE.spoke - SILENT).await;
        let _third = all.begin(address(1), tell).await.expect("room");
        assert_eq!(given_up(&open), [1], "its own, although another is older");
        assert_eq!(*told.lock(), ["handshakes_of_address"; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_has_as_many_as_it_may_gives_up_its_own_silence_after_a_moment() {
        let all = crowd(8, 3);
        let open = begun(&all, &[(2, 1), (1, 3)]).await;
        open[1].spoke();
        assert!(all.begin(address(1), |_| {}).await.is_none(), "all are new");
        tokio::time::advance(GRACE.crowded).await;
        let fourth = all.begin(address(1), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [2], "the silent one, although it is newer");
        fourth.spoke();
        let _fifth = all.begin(address(1), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [2, 3]);
        // Nobody else's silence is given up so soon.
        let all = crowd(1, 1);
        let open = begun(&all, &[(1, 1)]).await;
        tokio::time::advance(GRACE.crowded).await;
        let refused = all.try_begin(address(2), |limit| panic!("{limit}"));
        assert_eq!(refused.expect_err("all are new"), "handshakes");
        tokio::time::advance(SILENT).await;
        let told = Mutex::new(Vec::new());
        let taken = all.try_begin(address(2), |limit| told.lock().push(limit));
        assert_eq!((given_up(&open), taken.is_ok()), (vec![0], true));
        assert_eq!(*told.lock(), ["handshakes"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_addresses_that_say_something_keep_nobody_elsewhere_out_or_waiting() {
        let all = crowd(8, 4);
        let open = begun(&all, &[(1, 4), (2, 4)]).await;
        open.iter().for_each(Stranger::spoke);
        let now = Instant::now();
        let mut others = Vec::new();
        for _ in 0..2 {
            for last in [3, 4] {
                others.extend(all.begin(address(last), |_| {}).await);
            }
        }
        assert_eq!((others.len(), Instant::now()), (4, now), "at once");
        assert_eq!(given_up(&open), [2, 3, 6, 7], "the newest of each");
        // Each has two: more than its share is nobody's, however often he comes.
        for last in [1, 3] {
            let more = all.try_begin(address(last), |limit| panic!("{limit}"));
            assert_eq!(more.expect_err("as many as others"), "handshakes");
        }
        assert_eq!(given_up(&others), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_said_something_has_more_time() {
        let all = crowd(2, 2);
        let open = begun(&all, &[(1, 2)]).await;
        open[0].spoke();
        tokio::time::advance(SILENT).await;
        let _third = all.begin(address(2), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [1], "the silent one, although it is newer");
        tokio::time::advance(GRACE.spoke - SILENT).await;
        let _fourth = all.begin(address(2), |_| {}).await.expect("room");
        assert_eq!(given_up(&open), [0, 1], "it has had its time, too");
    }
}
