//! Where processes run, and how many descriptors they may have.
//!
//! The sidecars share one core, so that what they carry is what one core can carry; the load and the server are elsewhere,
//! each on a core of its own if there are three. What counts is the sidecars' CPU time.

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
/// waits for others of this machine, such as readers of logs, says nothing about a sidecar. All systems have that alike.
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
