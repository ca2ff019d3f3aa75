//! How much of its memory the process uses, looked at from outside the data path, and how tight that is.
//!
//! The limit is the operator's, or that of the cgroup, which ends the process when it is passed. What counts is what the
//! kernel counts against that limit. Workers read one number.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::cgroup::Cgroup;
use crate::settings::Bounds;

/// Shares of the limit, in percent, from which on nothing new is accepted, or requested.
const HIGH: u64 = 80;
const CRITICAL: u64 = 90;
/// How far below a share memory has to come before the share does not count any more.
const RELIEF: u64 = 5;
/// Between two looks, while there is plenty, and while there is not: memory grows by some ten MiB in such a time at most.
const LOOK: Duration = Duration::from_millis(250);
const CLOSE_LOOK: Duration = Duration::from_millis(20);
/// Share of the limit from which on looks are close.
const CLOSE: u64 = 40;

/// How tight memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Normal,
    /// Nothing new is accepted.
    High,
    /// Requests are refused too.
    Critical,
}

/// The level now, for everybody to see.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressure(Arc<AtomicU8>);

impl Pressure {
    #[inline]
    pub(super) fn level(&self) -> Level {
        match self.0.load(Relaxed) {
            0 => Level::Normal,
            1 => Level::High,
            _ => Level::Critical,
        }
    }

    /// So much of a limit is used; gives the levels before and after.
    pub(super) fn note(&self, used: u64, limit: u64) -> (Level, Level) {
        let percent = u128::from(used) * 100 / u128::from(limit.max(1));
        let before = self.level();
        let reaches = |level, share: u64| {
            let relief = if before >= level { RELIEF } else { 0 };
            percent >= u128::from(share - relief)
        };
        let after = if reaches(Level::Critical, CRITICAL) {
            Level::Critical
        } else if reaches(Level::High, HIGH) {
            Level::High
        } else {
            Level::Normal
        };
        self.0.store(after as u8, Relaxed);
        (before, after)
    }
}

/// What is exported of it.
#[derive(Clone, Debug, Default)]
pub struct MemoryMetrics {
    used: Gauge<u64, AtomicU64>,
    limit: Gauge<u64, AtomicU64>,
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
            pressure: Pressure::default(),
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
        loop {
            let used = self.used().unwrap_or(0);
            self.metrics.used.set(used);
            match self.pressure.note(used, self.limit) {
                (before, after) if before == after => {}
                (_, Level::Normal) => {
                    tracing::info!(used, limit = self.limit, "memory suffices again");
                }
                (_, level) => tracing::warn!(
                    used,
                    limit = self.limit,
                    refused = if level == Level::Critical {
                        "connections and requests"
                    } else {
                        "connections"
                    },
                    "memory is short; raise the limit of the sidecar"
                ),
            }
            let close = used >= self.limit / 100 * CLOSE;
            tokio::time::sleep(if close { CLOSE_LOOK } else { LOOK }).await;
        }
    }

    fn used(&self) -> Option<u64> {
        match &self.cgroup {
            Some(cgroup) => cgroup.used(),
            None => resident(&std::fs::read_to_string("/proc/self/statm").ok()?),
        }
    }
}

/// Bytes of this process that are in memory and no file's.
fn resident(statm: &str) -> Option<u64> {
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
            (90, Level::Critical),
            (85, Level::Critical),
            (84, Level::High),
            (74, Level::Normal),
            (200, Level::Critical),
            (0, Level::Normal),
        ] {
            assert_eq!(
                pressure.note(percent << 20, 100 << 20).1,
                level,
                "{percent}"
            );
            assert_eq!(pressure.level(), level);
        }
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
}
