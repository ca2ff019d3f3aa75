//! What the kernel says of processes: CPU time, context switches, memory. Of the sidecars' processes and no others.

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::spread::Spread;
use crate::systems::System;

/// How far the two ways to take CPU time may differ: ticks of both sidecars' user and system time, and threads that ended.
const TICKS: f64 = 0.08;

/// Totals so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    /// Seconds of CPU, exactly.
    cpu: f64,
    /// Seconds of CPU as `utime` and `stime` have them, in ticks.
    ticks: f64,
    switches: u64,
}

/// What was used in between.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) cpu: f64,
    pub(crate) switches: f64,
}

impl Clocks {
    /// Reads those of all these processes.
    pub(crate) fn read(pids: &[u32]) -> anyhow::Result<Self> {
        let (mut nanoseconds, mut ticks, mut switches) = (0, 0, 0);
        for pid in pids {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                let read = |name| std::fs::read_to_string(task.join(name));
                // A thread may have ended meanwhile; the other clock still has its time.
                let (Ok(text), Ok(status)) = (read("schedstat"), read("status")) else {
                    continue;
                };
                let on_cpu = text.split(' ').next().context("an empty schedstat")?;
                nanoseconds += on_cpu.parse::<u64>()?;
                switches += number(&status, "voluntary_ctxt_switches:")?;
                switches += number(&status, "nonvoluntary_ctxt_switches:")?;
            }
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // The name may have anything in it; behind it, user and system time are the 12th and the 13th.
            let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
            for field in fields.split_ascii_whitespace().skip(11).take(2) {
                ticks += field.parse::<u64>()?;
            }
        }
        Ok(Self {
            cpu: nanoseconds as f64 / 1e9,
            ticks: ticks as f64 / 100.0,
            switches,
        })
    }

    /// What was used since then. Both ways to take CPU time must agree.
    pub(crate) fn since(&self, before: &Self) -> anyhow::Result<Used> {
        let (cpu, ticks) = (self.cpu - before.cpu, self.ticks - before.ticks);
        ensure!(
            (cpu - ticks).abs() <= TICKS + 0.03 * cpu,
            "CPU time of {cpu:.3} s by the scheduler's clock, {ticks:.3} s by utime and stime"
        );
        Ok(Used {
            cpu,
            switches: self.switches.saturating_sub(before.switches) as f64,
        })
    }
}

/// Memory in bytes.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Its own, and its part of what it shares.
    pub(crate) pss: u64,
    /// Of which no file is the source.
    pub(crate) anonymous: u64,
    /// With all that it shares.
    pub(crate) rss: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let bytes = |name| number(&rollup, name).map(|kilobytes| kilobytes << 10);
        Ok(Self {
            pss: bytes("Pss:")?,
            anonymous: bytes("Anonymous:")?,
            rss: bytes("Rss:")?,
        })
    }

    /// That of several processes together.
    pub(crate) fn sum(pids: &[u32]) -> anyhow::Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| {
            let one = Self::of(*pid)?;
            Ok(Self {
                pss: sum.pss + one.pss,
                anonymous: sum.anonymous + one.anonymous,
                rss: sum.rss + one.rss,
            })
        })
    }

    /// That of one of two.
    pub(crate) fn half(self) -> Self {
        Self {
            pss: self.pss / 2,
            anonymous: self.anonymous / 2,
            rss: self.rss / 2,
        }
    }

    /// The most of each.
    pub(crate) fn most(self, other: Self) -> Self {
        Self {
            pss: self.pss.max(other.pss),
            anonymous: self.anonymous.max(other.anonymous),
            rss: self.rss.max(other.rss),
        }
    }
}

/// Memory of a system's sidecars that carry nothing: of one, half of that of two, look by look.
#[derive(Debug, Serialize)]
pub(crate) struct Still {
    pub(crate) system: System,
    pub(crate) looks: Vec<Rested>,
}

impl Still {
    /// Over the looks.
    pub(crate) fn spread(&self, value: impl Fn(&Rested) -> u64) -> Spread {
        Spread::of(self.looks.iter().map(|look| mib(value(look))))
    }
}

/// Memory of a sidecar that carries nothing.
#[derive(Debug, Serialize)]
pub(crate) struct Rested {
    /// Beside another of its kind, which shares its program text.
    #[serde(flatten)]
    pub(crate) memory: Memory,
    /// PSS as it would be if nobody shared it.
    pub(crate) alone: u64,
}

impl Rested {
    /// Of one of a system's two: half of what both have.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let alone = pids.iter().map(|pid| alone(*pid));
        Ok(Self {
            memory: Memory::sum(pids)?.half(),
            alone: alone.sum::<anyhow::Result<u64>>()? / 2,
        })
    }
}

/// PSS with the whole of what a process has of its own program in memory.
fn alone(pid: u32) -> anyhow::Result<u64> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let program = program.to_string_lossy();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own, mut kilobytes) = (false, 0);
    for line in maps.lines() {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !name.ends_with(':') {
            // FROM-TO rwxp OFFSET DEVICE INODE PATH
            own = rest.ends_with(&*program);
        } else if name == if own { "Rss:" } else { "Pss:" } {
            kilobytes += number(line, name)?;
        }
    }
    Ok(kilobytes << 10)
}

/// The number on the line that begins with this name.
fn number(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    let number = number.with_context(|| format!("no {name}"))?;
    Ok(number.parse()?)
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
