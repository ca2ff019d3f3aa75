//! Where processes run, and how many descriptors they may have.
//!
//! The sidecars share one core, so that what they carry is what one core can carry; the load and the server are elsewhere,
//! each on a core of its own if there are three. What counts is the sidecars' CPU time.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// What containers usually get.
const DESCRIPTORS: u64 = 1 << 20;

/// Who runs where.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cores {
    pub(crate) sidecars: Vec<usize>,
    pub(crate) load: Vec<usize>,
    pub(crate) server: Vec<usize>,
}

impl Cores {
    /// Divides those that this process may use.
    pub(crate) fn divide() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let all: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|core| allowed.is_set(*core))
            .collect();
        ensure!(all.len() >= 2, "at least two cores are needed");
        Ok(Self {
            sidecars: vec![all[0]],
            load: vec![all[1]],
            server: vec![all[if all.len() > 2 { 2 } else { 1 }]],
        })
    }

    /// Everywhere but where the sidecars are.
    pub(crate) fn others(&self) -> anyhow::Result<Vec<usize>> {
        let allowed = sched_getaffinity(None)?;
        let others = (0..CpuSet::MAX_CPU)
            .filter(|core| allowed.is_set(*core) && !self.sidecars.contains(core));
        Ok(others.collect())
    }
}

/// Keeps this thread, and those that it will start, on these cores.
pub(crate) fn stay(cores: &[usize]) -> anyhow::Result<()> {
    Ok(sched_setaffinity(None, &set(cores))?)
}

/// Lets this thread run anywhere.
pub(crate) fn roam() -> anyhow::Result<()> {
    let all: Vec<_> = (0..CpuSet::MAX_CPU).collect();
    stay(&all)
}

/// Keeps a process, all its threads, on these cores.
pub(crate) fn keep(pid: u32, cores: &[usize]) -> anyhow::Result<()> {
    for task in tasks(pid)? {
        match sched_setaffinity(task, &set(cores)) {
            // A thread that has ended meanwhile needs no place.
            Err(rustix::io::Errno::SRCH) | Ok(()) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("process {pid} cannot be put on a core"));
            }
        }
    }
    Ok(())
}

/// Keeps this process on these cores.
pub(crate) fn keep_self(cores: &[usize]) -> anyhow::Result<()> {
    keep(Pid::this().as_raw().cast_unsigned(), cores)
}

/// Has the kernel run a process, all its threads, as soon as it has something to do, where that is allowed: what it
/// waits for others of this machine says nothing about a sidecar. All systems have that alike.
pub(crate) fn prefer(pid: u32) {
    const FIRST: i32 = -20;
    // Sessions are preferred apart from their threads.
    let _ = std::fs::write(format!("/proc/{pid}/autogroup"), FIRST.to_string());
    for task in tasks(pid).unwrap_or_default() {
        let _ = rustix::process::setpriority_process(task, FIRST);
    }
}

/// As [`prefer`], for this process.
pub(crate) fn prefer_self() {
    prefer(std::process::id());
}

/// Runs processes, and those that they have started, before all that share the machine by its usual scheduling, for as
/// long as this lives and where that is allowed. What is preferred by [`prefer`] alone still waits for the others' slices
/// of milliseconds, which is all that a latency of the slowest hundredth would tell. Not for what uses its core up: who
/// reads the logs would wait for ever.
pub(crate) struct RealTime(Vec<u32>);

impl RealTime {
    pub(crate) fn new(pids: impl IntoIterator<Item = u32>) -> Self {
        let mut all: Vec<u32> = pids.into_iter().collect();
        let mut next = 0;
        while let Some(&pid) = all.get(next) {
            // Those that it starts from now on have it from their parent.
            schedule(pid, &["--rr", "--pid", "1"]);
            all.extend(children(pid));
            next += 1;
        }
        Self(all)
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        for pid in &self.0 {
            schedule(*pid, &["--other", "--pid", "0"]);
        }
    }
}

fn schedule(pid: u32, how: &[&str]) {
    let mut chrt = Command::new("chrt");
    chrt.arg("--all-tasks").args(how).arg(pid.to_string());
    // Where it is not allowed it goes on as it was; the report's spread shows it.
    let _ = chrt.stdout(Stdio::null()).stderr(Stdio::null()).status();
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace();
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

fn tasks(pid: u32) -> anyhow::Result<Vec<Option<rustix::process::Pid>>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let task = |task: std::io::Result<std::fs::DirEntry>| {
        let task: i32 = task?.file_name().to_string_lossy().parse()?;
        Ok(rustix::process::Pid::from_raw(task))
    };
    tasks.map(task).collect()
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    set
}

/// Allows this process and those that it will start more descriptors, where that is allowed.
pub(crate) fn want_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    if hard < DESCRIPTORS {
        // Who may not has what it has; a sidecar that lacks some says so by refusing.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, DESCRIPTORS);
    }
}

/// Allows this process as many descriptors as it may have.
pub(crate) fn raise_descriptors() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
