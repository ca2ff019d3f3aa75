//! How much of its memory the process uses, looked at from outside the data path, and how tight that is.
//!
//! The limit is the operator's, or that of the cgroup, which ends the process when it is passed. What counts is what the
//! kernel counts against that limit. Workers read one number.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tulle_runtime::allocator;

use super::cgroup::Cgroup;
use crate::io::Intake;
use crate::settings::Bounds;

/// Shares of the limit, in percent, from which on nothing new is accepted, somebody has to go, and requests are refused:
/// those of newcomers, and all.
const HIGH: u64 = 80;
const CRITICAL: u64 = 90;
const LAST: u64 = 95;
const FULL: u64 = 98;
/// What a connection may come to use, and how soon after it was accepted. In such a time no more are accepted than fit in
/// what is left: else many would have been let in before any of them is seen to use something.
const CONNECTION: u64 = 384 << 10;
const SETTLED: Duration = Duration::from_secs(1);
/// Share of what is left until somebody has to go that may be read until the next look, and what may be read anyhow, until
/// memory is about to end and then.
const INTAKE: u64 = 4;
const LEAST_INTAKE: (u64, u64) = (32 << 10, 4 << 10);
/// How far below a share memory has to come before the share does not count any more.
const RELIEF: u64 = 5;
/// Between two looks, by the share of the limit that is used: the closer it comes, the less it can grow unseen.
const LOOKS: [(u64, Duration); 3] = [
    (70, Duration::from_millis(3)),
    (40, Duration::from_millis(20)),
    (0, Duration::from_millis(100)),
];
/// Share of the limit from which on the allocator is made to give free memory back, and the time between two times. That
/// takes microseconds when there is none, and never more than a hundredth of the time until memory is short.
const GIVE_BACK: u64 = 50;
const TRIM: Duration = Duration::from_millis(25);
/// Between two times that somebody has to go: until then what the last ones had has come back.
const RELIEVED: Duration = Duration::from_millis(30);
/// Between two lines about it.
const TELL: Duration = Duration::from_secs(10);
/// How long what counts as cache may be taken for what it was.
const CACHE: Duration = Duration::from_millis(250);

/// How tight memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Normal,
    /// Nothing new is accepted.
    High,
    /// Large transfers are cut, and streams and connections are given up.
    Critical,
    /// Requests of connections that have not had one served are refused too.
    Last,
    /// All requests are.
    Full,
}

/// The level now, for everybody to see.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressure(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    level: AtomicU8,
    /// Connections that may be accepted before some of those before them have settled.
    room: AtomicU64,
    /// Rung at every look at which somebody has to go.
    critical: Notify,
    /// What came of it when that happened while memory was about to end.
    outcome: AtomicU8,
    /// What may be read until the next look.
    intake: Intake,
}

/// Nobody was asked to go, in time, since memory was not about to end.
const UNTRIED: u8 = 0;
/// Somebody has to go, and no worker has answered yet.
const ASKED: u8 = 1;
/// Somebody has.
const HELPED: u8 = 2;
/// When it was asked the last time, there was nobody.
const FUTILE: u8 = 3;

impl Default for Shared {
    /// Of a process without a limit.
    fn default() -> Self {
        Self {
            level: AtomicU8::new(Level::Normal as u8),
            room: AtomicU64::new(u64::MAX),
            critical: Notify::new(),
            outcome: AtomicU8::new(UNTRIED),
            intake: Intake::default(),
        }
    }
}

impl Pressure {
    /// Of a process that has one.
    fn limited(delayed: Counter) -> Self {
        Self(Arc::new(Shared {
            intake: Intake::limited(delayed),
            ..Shared::default()
        }))
    }

    pub(super) fn intake(&self) -> &Intake {
        &self.0.intake
    }

    #[inline]
    pub(super) fn level(&self) -> Level {
        match self.0.level.load(Relaxed) {
            0 => Level::Normal,
            1 => Level::High,
            2 => Level::Critical,
            3 => Level::Last,
            _ => Level::Full,
        }
    }

    /// Resolves when memory is short and no more can be given back, and again at the next look at which that is
    /// so.
    pub(super) async fn critical(&self) {
        self.0.critical.notified().await;
    }

    /// Has somebody go.
    pub(super) fn ring(&self) {
        let outcome = &self.0.outcome;
        let next = match outcome.load(Relaxed) {
            _ if self.level() < Level::Last => UNTRIED,
            FUTILE => FUTILE,
            _ => ASKED,
        };
        // Whoever answers between the two looks answers the next time too.
        outcome.store(next, Relaxed);
        self.0.critical.notify_waiters();
    }

    /// A worker was asked who has to go, and there was somebody, or nobody who holds memory for nothing.
    pub(super) fn answer(&self, somebody: bool) {
        let outcome = &self.0.outcome;
        if somebody {
            outcome.store(HELPED, Relaxed);
        } else {
            // What another worker has said counts.
            let _ = outcome.compare_exchange(ASKED, FUTILE, Relaxed, Relaxed);
        }
    }

    /// Whether there was nobody to give up but those who behave.
    pub(super) fn is_futile(&self) -> bool {
        self.0.outcome.load(Relaxed) == FUTILE
    }

    /// Whether another connection may be accepted before some of those before it have settled.
    pub(super) fn has_room(&self) -> bool {
        self.0.room.load(Relaxed) > 0
    }

    /// A connection was accepted.
    pub(super) fn take_room(&self) {
        self.change_room(|room| room.saturating_sub(1));
    }

    /// A connection has ended.
    pub(super) fn give_room(&self) {
        self.change_room(|room| room.saturating_add(1));
    }

    fn change_room(&self, change: impl Fn(u64) -> u64) {
        let change = |room| (room != u64::MAX).then(|| change(room));
        // What cannot be changed is without a limit.
        let _ = self.0.room.fetch_update(Relaxed, Relaxed, change);
    }

    /// So much of a limit is used; gives the level.
    pub(super) fn note(&self, used: u64, limit: u64) -> Level {
        let percent = u128::from(used) * 100 / u128::from(limit.max(1));
        let before = self.level();
        let reaches = |level, share: u64| {
            let relief = if before >= level { RELIEF } else { 0 };
            percent >= u128::from(share - relief)
        };
        let after = if reaches(Level::Full, FULL) {
            Level::Full
        } else if reaches(Level::Last, LAST) {
            Level::Last
        } else if reaches(Level::Critical, CRITICAL) {
            Level::Critical
        } else if reaches(Level::High, HIGH) {
            Level::High
        } else {
            Level::Normal
        };
        if after < Level::Critical {
            self.0.outcome.store(UNTRIED, Relaxed);
        }
        self.0.level.store(after as u8, Relaxed);
        after
    }
}

/// What is exported of it.
#[derive(Clone, Debug, Default)]
pub struct MemoryMetrics {
    used: Gauge<u64, AtomicU64>,
    limit: Gauge<u64, AtomicU64>,
    delayed: Counter,
}

impl MemoryMetrics {
    /// Registers the metrics of this room.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "memory_used_bytes",
            "Memory that counts against the limit; 0 where there is none",
            metrics.used.clone(),
        );
        registry.register(
            "memory_limit_bytes",
            "Memory that the sidecar may use; 0 where there is no limit",
            metrics.limit.clone(),
        );
        registry.register(
            "memory_delayed_reads",
            "Reads that waited because as much was read as there is room for",
            metrics.delayed.clone(),
        );
        metrics
    }
}

/// Watches over the memory of this process.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    /// Whose use counts; `None`: that of this process alone.
    cgroup: Option<Cgroup>,
    pressure: Pressure,
    metrics: MemoryMetrics,
}

impl Memory {
    /// Finds the limit, if there is any.
    #[must_use]
    pub fn find(bounds: &Bounds, metrics: MemoryMetrics) -> Option<Self> {
        let cgroup = Cgroup::find(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        let of_cgroup = cgroup.as_ref().and_then(Cgroup::limit);
        // The operator may say less than the cgroup; more would be of no use.
        let (limit, cgroup) = match (bounds.memory, of_cgroup) {
            (Some(said), None) => (said, None),
            (Some(said), Some(hard)) if said < hard => (said, None),
            (_, Some(hard)) => (hard, cgroup),
            (None, None) => return None,
        };
        metrics.limit.set(limit);
        Some(Self {
            limit,
            cgroup,
            pressure: Pressure::limited(metrics.delayed.clone()),
            metrics,
        })
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn pressure(&self) -> Pressure {
        self.pressure.clone()
    }

    /// Looks at it for ever.
    pub async fn watch(self) {
        let mut cached = (0, Instant::now());
        let (mut trimmed, mut relieved, mut settled) = (cached.1, cached.1, None::<Instant>);
        let (mut pause, mut told) = (TRIM, None::<Instant>);
        self.refresh(&mut cached);
        loop {
            if cached.1.elapsed() >= CACHE {
                self.refresh(&mut cached);
            }
            let (mut used, mut level) = self.look(cached.0);
            let share = used / (self.limit / 100).max(1);
            let due = match level {
                Level::Normal => pause,
                Level::High => RELIEVED.max(pause / 10),
                Level::Critical | Level::Last | Level::Full => RELIEVED,
            };
            if share >= GIVE_BACK && trimmed.elapsed() >= due {
                let begun = Instant::now();
                allocator::trim();
                trimmed = Instant::now();
                let took = trimmed - begun;
                pause = TRIM.max(took * 100);
                let before = used;
                (used, level) = self.look(cached.0);
                tracing::trace!(before, used, ?took, "free memory was given back");
            }
            // Nobody goes for memory that is only not given back yet.
            if level >= Level::High && relieved < trimmed {
                relieved = Instant::now();
                self.pressure.ring();
            }
            if level >= Level::High && told.is_none_or(|told| told.elapsed() >= TELL) {
                told = Some(Instant::now());
                self.tell(used);
            }
            if settled.is_none_or(|settled| settled.elapsed() >= SETTLED) {
                settled = Some(Instant::now());
                let left = (self.limit / 100 * HIGH).saturating_sub(used) / CONNECTION;
                self.pressure.0.room.store(left.max(1), Relaxed);
            }
            self.pressure.intake().allow(self.allowance(used));
            self.pause(used, level).await;
        }
    }

    /// What may be read until the next look if so much is used.
    fn allowance(&self, used: u64) -> u64 {
        let percent = self.limit / 100;
        let left = (percent * CRITICAL).saturating_sub(used);
        let least = if used < percent * LAST {
            LEAST_INTAKE.0
        } else {
            LEAST_INTAKE.1
        };
        least.max(left / INTAKE)
    }

    /// Until the next look, which comes early where there is room for what is read fast.
    async fn pause(&self, used: u64, level: Level) {
        let share = used / (self.limit / 100).max(1);
        let look = LOOKS.iter().find(|(from, _)| share >= *from);
        let pause = tokio::time::sleep(look.map_or(CACHE, |(_, look)| *look));
        tokio::select! {
            biased;
            () = pause => {}
            () = self.pressure.intake().runs_low(), if level < Level::High => {}
        }
    }

    /// What is used now, and how tight that is. What cannot be read, as when files run out, is what it was before.
    fn look(&self, cached: u64) -> (u64, Level) {
        let Some(used) = self.used() else {
            return (self.metrics.used.get(), self.pressure.level());
        };
        let used = used.saturating_sub(cached);
        self.metrics.used.set(used);
        (used, self.pressure.note(used, self.limit))
    }

    fn tell(&self, used: u64) {
        tracing::warn!(
            used,
            limit = self.limit,
            "memory is short: new connections wait, then those go that hold it; raise the limit of the sidecar"
        );
    }

    /// What counts against the limit, cache of files included.
    fn used(&self) -> Option<u64> {
        match &self.cgroup {
            Some(cgroup) => cgroup.used(),
            None => resident(&std::fs::read_to_string("/proc/self/statm").ok()?),
        }
    }

    /// Looks at how much of that the kernel would give up: slower, and it hardly changes.
    fn refresh(&self, cached: &mut (u64, Instant)) {
        let cache = self.cgroup.as_ref().and_then(Cgroup::cached);
        *cached = (cache.unwrap_or(cached.0), Instant::now());
    }
}

/// Bytes of this process that are in memory and no file's.
pub(super) fn resident(statm: &str) -> Option<u64> {
    let mut pages = statm
        .split_ascii_whitespace()
        .skip(1)
        .map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * page_size())
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_left_only_well_below_where_it_began() {
        let pressure = Pressure::default();
        for (percent, level) in [
            (79, Level::Normal),
            (80, Level::High),
            (76, Level::High),
            (89, Level::High),
            (94, Level::Critical),
            (95, Level::Last),
            (98, Level::Full),
            (93, Level::Full),
            (92, Level::Last),
            (90, Level::Last),
            (89, Level::Critical),
            (85, Level::Critical),
            (84, Level::High),
            (74, Level::Normal),
            (90, Level::Critical),
            (200, Level::Full),
            (0, Level::Normal),
        ] {
            assert_eq!(pressure.note(percent << 20, 100 << 20), level, "{percent}");
            assert_eq!(pressure.level(), level);
        }
    }

    #[test]
    fn only_so_many_are_accepted_between_two_looks_unless_there_is_no_limit() {
        let pressure = Pressure::default();
        pressure.take_room();
        assert_eq!(pressure.0.room.load(Relaxed), u64::MAX);
        pressure.0.room.store(2, Relaxed);
        for room in [true, true, false, false] {
            assert_eq!(pressure.has_room(), room);
            pressure.take_room();
        }
        pressure.give_room();
        assert!(pressure.has_room(), "one has ended");
    }

    #[test]
    fn memory_of_files_does_not_count() {
        assert_eq!(
            resident("5000 300 100 50 0 400 0\n"),
            Some(200 * page_size())
        );
        assert_eq!(resident(""), None);
        let own = resident(&std::fs::read_to_string("/proc/self/statm").unwrap());
        assert!(own > Some(0), "{own:?}");
    }

    #[test]
    fn the_operators_limit_counts_where_it_is_the_lower_one() {
        let bounds = Bounds {
            memory: Some(1 << 20),
            ..Bounds::default()
        };
        let memory = Memory::find(&bounds, MemoryMetrics::default()).unwrap();
        assert_eq!(memory.limit(), 1 << 20);
        assert!(memory.used() > Some(0));
    }

    #[test]
    fn the_less_memory_is_left_the_less_may_be_read_until_the_next_look_but_never_nothing() {
        let memory = Memory {
            limit: 100 << 20,
            cgroup: None,
            pressure: Pressure::default(),
            metrics: MemoryMetrics::default(),
        };
        for (used, allowed) in [
            (10 << 20, 20 << 20),
            (50 << 20, 10 << 20),
            (86 << 20, 1 << 20),
            (90 << 20, LEAST_INTAKE.0),
            (95 << 20, LEAST_INTAKE.1),
            (200 << 20, LEAST_INTAKE.1),
        ] {
            assert_eq!(memory.allowance(used), allowed, "{used}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_look_comes_early_where_there_is_room_for_what_is_read_fast() {
        let memory = Memory {
            limit: 100 << 20,
            cgroup: None,
            pressure: Pressure::limited(Counter::default()),
            metrics: MemoryMetrics::default(),
        };
        let paused = async |percent: u64, level, read: usize| {
            let begun = tokio::time::Instant::now();
            memory.pressure.intake().allow(10);
            memory.pressure.intake().take(read);
            memory.pause(percent << 20, level).await;
            begun.elapsed()
        };
        assert_eq!(paused(10, Level::Normal, 4).await, LOOKS[2].1);
        assert_eq!(paused(10, Level::Normal, 5).await, Duration::ZERO);
        assert_eq!(paused(82, Level::High, 10).await, LOOKS[0].1);
    }

    #[test]
    fn what_cannot_be_read_is_what_it_was_before() {
        let nowhere = Some(Cgroup::V2("/proc/self/nowhere".into()));
        for (cgroup, keeps) in [(nowhere, true), (None, false)] {
            let memory = Memory {
                limit: 100 << 30,
                cgroup,
                pressure: Pressure::default(),
                metrics: MemoryMetrics::default(),
            };
            memory.metrics.used.set(96 << 30);
            memory.pressure.note(96, 100);
            let before = (96 << 30, Level::Last);
            assert_eq!(memory.look(0) == before, keeps);
            assert_eq!(memory.pressure.level() == Level::Last, keeps);
            let mut cached = (7, Instant::now());
            memory.refresh(&mut cached);
            assert_eq!(cached.0, 7);
        }
    }
}
