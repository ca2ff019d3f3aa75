//! A container of a pod, seen from the machine that all of it runs on.

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A container as it runs: started again, it is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    id: String,
}

impl Container {
    /// That of a pod, if it runs and is ready.
    pub fn ready(pod: &Value, name: &str) -> anyhow::Result<Self> {
        let statuses = ["containerStatuses", "initContainerStatuses"];
        let statuses = statuses.iter().map(|list| &pod["status"][list]);
        let mut statuses = statuses.filter_map(Value::as_array).flatten();
        let status = statuses.find(|status| status["name"] == name);
        let status = status.with_context(|| format!("there is no {name} in {pod}"))?;
        ensure!(status["ready"] == true, "{name} is not ready: {status}");
        let id = status["containerID"].as_str().context("it runs")?;
        let (_, id) = id.split_once("://").context("an id has a scheme")?;
        Ok(Self { id: id.to_owned() })
    }

    /// Ends its first process without notice.
    pub fn kill(&self) -> anyhow::Result<()> {
        Ok(kill(self.process()?, Signal::SIGKILL)?)
    }

    /// Its first process, as it is seen here.
    fn process(&self) -> anyhow::Result<Pid> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            let cgroup = std::fs::read_to_string(entry.path().join("cgroup"));
            if let (Some(pid), Ok(cgroup)) = (pid, cgroup)
                && cgroup.contains(&self.id)
            {
                pids.push(pid);
            }
        }
        let first = pids.into_iter().min();
        let first = first.with_context(|| format!("no process is in the container {}", self.id))?;
        Ok(Pid::from_raw(first))
    }
}
