//! What the sidecar can bear: how many connections it takes in, and whether it takes on another request.
//!
//! At a limit what is open goes on, and what is new waits in the kernel until there is room again, which costs nothing,
//! or is answered 503 if it is a request. Where memory is short, from 80 % on, what is kept of requests for another attempt goes.
//! Where it is all but used up, those who hold it are given up before the kernel ends them all, in this order: whose clients do
//! not take their answers, those first that have many, whose app does not take their requests, who moves much, and, if there is
//! nobody else, who came last. Requests are refused where many answers wait already, and where there is nobody left to give up:
//! first those of connections that have not had one served. Until then no more is read than there is room for: a client that
//! behaves waits for moments and loses nothing. Looking costs a request one relaxed load, and with a limit of memory an
//! addition. Files that the process may open are shared out in advance, so that every connection that was accepted can have
//! one upstream, and that the admin endpoint and the control plane are reached whatever happens on the data path.

mod calm;
mod cgroup;
mod memory;
mod newest;
mod taking;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tulle_runtime::backoff::Backoff;

use crate::conn::Direction;
use crate::io::Intake;
use crate::net::Count;
use crate::settings::Bounds;
use crate::telemetry::Limit;

pub use calm::give_back_what_was_freed;
use memory::{Level, Pressure};
pub use memory::{Memory, MemoryMetrics};
pub use newest::{Haste, Newest, Place, Victim};
pub(crate) use newest::{Unread, Waiting};
pub(crate) use taking::Since;
pub use taking::{Giving, Taking};

/// Files that an accepted connection may need: itself, one upstream, and a duplicate of that to look at it by.
const FILES_PER_CONNECTION: u64 = 3;
/// Files for everything that is no captured connection: the servers of the admin room, 64 connections each, the control
/// plane, the workers' own ...
const OWN_FILES: u64 = 256;
/// What a request comes to use beside what is read for it, more or less.
const REQUEST: usize = 16 << 10;
/// How many times as many requests as answers may wait a client may have under way while memory is short, but not critical.
const MANY_REQUESTS: usize = 8;
/// Between two looks at a client that only holds a connection. While there is no room for others that is also how long it
/// may.
pub(crate) const LOOK: Duration = Duration::from_secs(10);
/// How long nothing is accepted before the next look, at first and in the end, unless a connection closes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What all workers share of it.
#[derive(Clone, Debug, Default)]
pub struct Overload {
    outbound: Arc<Count>,
    inbound: Arc<Count>,
    room: Room,
    pressure: Pressure,
}

/// The room of a connection in memory that nobody has seen it use yet.
#[derive(Debug)]
pub struct Admitted(Pressure);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.give_room();
    }
}

/// Connections that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// In one direction. Outsiders must not use up what the app needs to call out.
    each: usize,
    /// In both together.
    both: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            each: usize::MAX,
            both: usize::MAX,
        }
    }
}

impl Room {
    /// The operator's word, within what so many files have room for; one direction gets four fifths of that at most.
    fn new(files: u64, bounds: &Bounds) -> Self {
        let own = OWN_FILES.min(files / 2);
        let both = usize::try_from((files - own) / FILES_PER_CONNECTION).unwrap_or(usize::MAX);
        let each = both / 5 * 4 + both % 5 * 4 / 5;
        Self {
            each: bounds.connections.unwrap_or(each).min(each).max(1),
            both: both.max(1),
        }
    }
}

impl Overload {
    /// For a process that may open so many files, and whose memory is watched by `memory`, if it is.
    #[must_use]
    pub fn new(files: u64, bounds: &Bounds, memory: Option<&Memory>) -> Self {
        Self {
            outbound: Arc::default(),
            inbound: Arc::default(),
            room: Room::new(files, bounds),
            pressure: memory.map(Memory::pressure).unwrap_or_default(),
        }
    }

    /// The connections of a direction.
    #[must_use]
    pub fn count(&self, direction: Direction) -> &Arc<Count> {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    /// Whether no captured connection is open.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.outbound.get() == 0 && self.inbound.get() == 0
    }

    /// Connections that there may be in one direction.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.room.each
    }

    /// Resolves when another connection may be accepted. If it has to wait, `tell` is told once for what.
    pub async fn admit(&self, direction: Direction, tell: impl Fn(Limit)) {
        let Some(limit) = self.full(direction) else {
            return;
        };
        tell(limit);
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        while self.full(direction).is_some() {
            let closed = self.count(direction).one_closed();
            // Either way there is another look: memory comes back without a connection that closes.
            let _ = timeout(backoff.next_delay().max(PAUSE.0), closed).await;
        }
    }

    /// A connection was accepted; it gives its room back with what is returned.
    #[must_use]
    pub fn accepted(&self) -> Admitted {
        self.pressure.take_room();
        Admitted(self.pressure.clone())
    }

    /// How much may be read of what peers send.
    #[must_use]
    pub fn intake(&self) -> Intake {
        self.pressure.intake().clone()
    }

    /// There is another request: what it takes is not read for others.
    #[inline]
    pub fn begins_request(&self) {
        self.pressure.intake().take(REQUEST);
    }

    /// Why no connection may be accepted now.
    fn full(&self, direction: Direction) -> Option<Limit> {
        let (outbound, inbound) = (self.outbound.get(), self.inbound.get());
        let this = match direction {
            Direction::Outbound => outbound,
            Direction::Inbound => inbound,
        };
        if this >= self.room.each || outbound.saturating_add(inbound) >= self.room.both {
            return Some(Limit::Connections);
        }
        let short = self.pressure.level() >= Level::High || !self.pressure.has_room();
        short.then_some(Limit::Memory)
    }

    /// Whether memory is too short for another request on a connection that has had one served, or has not, whose client
    /// leaves so many answers unread, and on which so many requests are under way, this one included.
    pub(crate) fn refuses_requests(&self, served: bool, unread: &Unread, active: usize) -> bool {
        let futile = || self.pressure.is_futile();
        match self.pressure.level() {
            Level::Normal => false,
            // Requests that come all at once are in before an answer to any of them waits.
            Level::High => unread.are_crowded(active, MANY_REQUESTS),
            Level::Critical => unread.are_crowded(active, 1),
            Level::Last => unread.are_crowded(active, 1) || !served && futile(),
            Level::Full => unread.are_crowded(active, 1) || futile(),
        }
    }

    /// How much time there is to choose who has to go.
    #[must_use]
    pub fn haste(&self) -> Haste {
        match self.pressure.level() {
            Level::Normal | Level::High => Haste::Little,
            Level::Critical => Haste::Some,
            Level::Last | Level::Full => Haste::Great,
        }
    }

    /// Those were given up who had to be, if there was somebody who holds memory for nothing.
    pub fn has_given_up(&self, somebody: bool) {
        self.pressure.answer(somebody);
    }

    /// Whether memory is too short for those that move much.
    #[must_use]
    pub fn cuts_transfers(&self) -> bool {
        self.pressure.level() >= Level::Critical
    }

    /// Whether memory is short.
    #[must_use]
    pub fn is_short_of_memory(&self) -> bool {
        self.pressure.level() >= Level::High
    }

    /// Whether there is so little room that who only holds a connection should not: memory is short, or there are as many
    /// connections as there may be.
    #[must_use]
    pub fn is_crowded(&self, direction: Direction) -> bool {
        self.is_short_of_memory() || self.full(direction) == Some(Limit::Connections)
    }

    /// Waits for something from a client that does nothing but hold a connection, for as long as it may. `None`: its time is
    /// up, or others need the room.
    pub async fn wait_for<T>(
        &self,
        direction: Direction,
        patience: Duration,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        let mut what = pin!(what);
        let until = Instant::now() + patience;
        loop {
            let look = until.min(Instant::now() + LOOK);
            if let Ok(done) = timeout_at(look, what.as_mut()).await {
                return Some(done);
            }
            if look == until || self.is_crowded(direction) {
                return None;
            }
        }
    }

    /// Resolves when memory is short and somebody may have to go, and again as long as it is.
    pub async fn must_give_up(&self) {
        self.pressure.critical().await;
    }

    /// As if so much of the memory were used, in percent; for tests.
    #[cfg(test)]
    pub(crate) fn use_memory(&self, percent: u64) {
        self.pressure.note(percent, 100);
    }

    /// As if there were as many connections as there may be; for tests.
    #[cfg(test)]
    pub(crate) fn fill(&self, direction: Direction) {
        self.count(direction).set(self.room.each);
    }

    /// As if nobody could be given up but those who behave; for tests.
    #[cfg(test)]
    pub(crate) fn give_up_in_vain(&self) {
        self.pressure.ring();
        self.pressure.answer(false);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn room(files: u64, connections: Option<usize>) -> Room {
        let bounds = Bounds {
            connections,
            ..Bounds::default()
        };
        Room::new(files, &bounds)
    }

    #[test]
    fn files_are_shared_out_so_that_nobody_who_was_let_in_lacks_one() {
        for (files, connections, each, both) in [
            (512, None, 68, 85),
            (20_000, None, 5_264, 6_581),
            (1 << 20, None, 279_552, 349_440),
            (512, Some(10), 10, 85),
            (512, Some(1_000), 68, 85),
            (64, None, 8, 10),
            (0, None, 1, 1),
            (
                u64::MAX,
                Some(usize::MAX),
                4_919_086_619_456_504_000,
                6_148_858_274_320_630_000,
            ),
        ] {
            let room = room(files, connections);
            if files != u64::MAX {
                assert_eq!(room, Room { each, both }, "{files} files, {connections:?}");
            }
            assert!(room.each <= room.both && room.each > 0, "{files} files");
            let needed = room.both as u64 * FILES_PER_CONNECTION;
            assert!(files == 0 || needed <= files, "{files} files");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_until_one_has_closed() {
        let bounds = Bounds {
            connections: Some(2),
            ..Bounds::default()
        };
        let overload = Overload::new(1_000, &bounds, None);
        let told = Cell::new(0);
        let admit = || {
            overload.admit(Direction::Inbound, |limit| {
                assert_eq!(limit, Limit::Connections);
                told.set(told.get() + 1);
            })
        };
        admit().await;
        overload.inbound.set(2);
        let begun = Instant::now();
        let closing = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(told.get(), 1, "it is told once, however long it takes");
            overload.inbound.set(1);
        };
        tokio::join!(admit(), closing);
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
        // The other direction is not affected.
        overload.inbound.set(2);
        overload
            .admit(Direction::Outbound, |_| panic!("there is room"))
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_holds_a_connection_is_waited_for_until_others_need_the_room() {
        let patience = 10 * LOOK;
        let overload = Overload::default();
        let wait = async |direction| {
            let begun = Instant::now();
            let nothing = std::future::pending::<()>();
            assert_eq!(overload.wait_for(direction, patience, nothing).await, None);
            begun.elapsed()
        };
        overload.fill(Direction::Inbound);
        assert_eq!(wait(Direction::Inbound).await, LOOK);
        let ready = std::future::ready(7);
        let heard = overload.wait_for(Direction::Inbound, patience, ready).await;
        assert_eq!(heard, Some(7));
        overload.inbound.set(0);
        assert_eq!(wait(Direction::Inbound).await, patience);
        overload.use_memory(80);
        assert_eq!(wait(Direction::Outbound).await, LOOK);
    }

    #[test]
    fn both_directions_together_have_a_limit_too() {
        let overload = Overload::new(512, &Bounds::default(), None);
        overload.inbound.set(overload.room.each);
        let left = overload.room.both - overload.room.each;
        overload.outbound.set(left - 1);
        assert_eq!(overload.full(Direction::Outbound), None);
        overload.outbound.set(left);
        assert_eq!(overload.full(Direction::Outbound), Some(Limit::Connections));
    }

    #[test]
    fn the_shorter_memory_is_the_fewer_requests_may_a_client_have_under_way_at_once() {
        let overload = Overload::default();
        for (percent, most) in [(79, usize::MAX), (80, 256), (90, 32), (95, 32), (98, 32)] {
            overload.use_memory(percent);
            for shared in [false, true] {
                let unread = Unread::of(shared);
                let refuses = |active| overload.refuses_requests(true, &unread, active);
                assert!(!refuses(most), "{percent} %: {most}");
                let more = most.saturating_add(1);
                let expected = more > most && !shared;
                assert_eq!(refuses(more), expected, "{percent} %: {more}, {shared}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_wait_while_memory_is_short_and_requests_are_refused_when_it_is_shorter() {
        let overload = Overload::default();
        overload.use_memory(79);
        let unread = Unread::of(false);
        let refuses = || [true, false].map(|served| overload.refuses_requests(served, &unread, 1));
        assert!(overload.full(Direction::Inbound).is_none());
        assert_eq!(refuses(), [false, false]);
        overload.use_memory(85);
        assert_eq!(overload.full(Direction::Inbound), Some(Limit::Memory));
        assert_eq!(refuses(), [false, false]);
        overload.use_memory(95);
        assert_eq!(refuses(), [false, false], "somebody may have to go first");
        overload.give_up_in_vain();
        assert_eq!(refuses(), [false, true]);
        overload.use_memory(98);
        assert_eq!(refuses(), [true, true], "there is nobody");
        overload.pressure.ring();
        assert_eq!(refuses(), [true, true], "nor was there when it was asked");
        overload.has_given_up(true);
        assert_eq!(refuses(), [false, false], "now somebody has gone");
        overload.pressure.ring();
        assert_eq!(refuses(), [false, false], "nobody has answered yet");
        overload.has_given_up(false);
        assert_eq!(refuses(), [true, true]);
        overload.use_memory(80);
        overload.use_memory(98);
        overload.pressure.ring();
        assert_eq!(refuses(), [false, false], "it is tried anew");
        let freed = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            overload.use_memory(50);
        };
        let begun = Instant::now();
        tokio::join!(overload.admit(Direction::Inbound, |_| ()), freed);
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_secs(7) && took <= Duration::from_secs(8),
            "{took:?}"
        );
    }
}
