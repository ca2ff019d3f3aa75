//! What the kernel says of a sidecar's process: files, CPU, memory; and memory cgroups to put one into.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_runtime::names::containers;
use tulle_tests::Arena;

/// The process of a sidecar, or another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

impl Process {
    /// That of a pod's sidecar.
    pub(crate) fn of(arena: &Arena<'_>, pod_or_app: &str) -> anyhow::Result<Self> {
        let pod = arena.pod(pod_or_app)?;
        let sidecar = pod.container(containers::PROXY).context("no sidecar")?;
        Ok(Self(sidecar.pid.context("the sidecar does not run")?))
    }

    /// A process by its id.
    pub(crate) fn with_id(id: u32) -> Self {
        Self(id)
    }

    /// It is still the one that it was, and its pod is ready.
    pub(crate) fn lives(self, arena: &Arena<'_>, pod_or_app: &str) -> anyhow::Result<()> {
        let now = Self::of(arena, pod_or_app)?;
        ensure!(
            now.0 == self.0,
            "the sidecar of {pod_or_app} was started again"
        );
        let ready = arena.pod(pod_or_app)?.ready;
        ensure!(ready, "{pod_or_app} is not ready any more");
        Ok(())
    }

    /// Files that it has open.
    pub(crate) fn files(self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.0))?.count())
    }

    /// Time on a processor so far.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let on_cpu = text.split(' ').next().context("an empty schedstat")?;
            nanoseconds += on_cpu.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Bytes of memory that are its own.
    pub(crate) fn memory(self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().nth(1));
        let kilobytes = number.and_then(|number| number.parse::<u64>().ok());
        Ok(kilobytes.context("no RssAnon in status")? << 10)
    }
}

/// A memory cgroup. It is removed when dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    at: PathBuf,
    v2: bool,
}

impl Cgroup {
    /// Makes one under that of this process.
    pub(crate) fn create(name: &str, limit: u64) -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let path = |controllers: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (found, path) = rest.split_once(':')?;
                (found == controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let root = Path::new("/sys/fs/cgroup");
        let (parent, v2) = match path("memory") {
            Some(path) => (root.join("memory").join(path), false),
            None => (root.join(path("").context("no cgroup")?), true),
        };
        let at = parent.join(name);
        // That of an earlier run, whose counts are not ours.
        let _ = fs::remove_dir(&at);
        fs::create_dir_all(&at).with_context(|| format!("{} cannot be made", at.display()))?;
        let cgroup = Self { at, v2 };
        let file = if v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        fs::write(cgroup.at.join(file), limit.to_string()).context("no memory controller")?;
        if !v2 {
            fs::write(cgroup.at.join("memory.max_usage_in_bytes"), "0")?;
        }
        Ok(cgroup)
    }

    /// Puts a process into it.
    pub(crate) fn add(&self, pid: u32) -> anyhow::Result<()> {
        Ok(fs::write(self.at.join("cgroup.procs"), pid.to_string())?)
    }

    /// The most that was ever used.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        let file = if self.v2 {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        Ok(fs::read_to_string(self.at.join(file))?.trim().parse()?)
    }

    /// Processes that the kernel has ended for want of memory.
    pub(crate) fn kills(&self) -> anyhow::Result<u64> {
        let file = if self.v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.at.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.context("no oom_kill")?.parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not empty as long as its process lives; then it stays until the machine goes.
        let _ = fs::remove_dir(&self.at);
    }
}
