//! Processes of pods: started through the stage, found by their namespaces, ended.
//!
//! A container has a mount namespace of its own, so "everything in this container" is whoever has that namespace, however
//! often it forked and whatever session it started.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::Error;
use crate::stage::{ARG0, Spec};

/// The command that becomes the program of `spec`, with exactly this environment.
pub(crate) fn command(spec: &Spec, environment: &[(String, String)]) -> Result<Command, Error> {
    let spec = serde_json::to_string(spec).map_err(|error| Error::Io {
        what: "describe a container".to_owned(),
        source: io::Error::other(error),
    })?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(ARG0).arg(spec).env_clear();
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// The mount namespace of a container, held: its number could otherwise be another's as soon as its last process ended.
#[derive(Debug)]
pub(crate) struct MountNamespace {
    name: PathBuf,
    _held: File,
}

impl MountNamespace {
    /// That of a process which has one of its own.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let held = File::open(format!("/proc/{pid}/ns/mnt")).ok()?;
        let inode = held.metadata().ok()?.ino();
        Some(Self {
            name: format!("mnt:[{inode}]").into(),
            _held: held,
        })
    }

    /// Ends every process in it.
    pub(crate) async fn clear(&self) {
        kill_all("mnt", &self.name).await;
    }
}

/// A namespace of a process, in the kernel's notation, such as `mnt:[4026531841]`.
fn namespace(pid: u32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// Sends a signal; a process that is gone needs none.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// Sends SIGKILL to every process in the namespace, until there is none.
pub(crate) async fn kill_all(kind: &str, namespace: &Path) {
    // A process that forks while it is looked for may need another round; one that cannot die does not get for ever.
    for _ in 0..200 {
        let found = members(kind, namespace);
        if found.is_empty() {
            return;
        }
        found.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tracing::warn!(namespace = %namespace.display(), "processes do not end");
}

/// Sends SIGKILL once to every process in the namespace.
pub(crate) fn kill_now(kind: &str, namespace: &Path) {
    let found = members(kind, namespace);
    found.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
}

/// Processes in the namespace; never this one, whose own namespace nobody may clear out.
fn members(kind: &str, target: &Path) -> Vec<u32> {
    let own = std::process::id();
    if namespace(own, kind).is_none_or(|ours| ours == target) {
        return Vec::new();
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| namespace(*pid, kind).is_some_and(|found| found == target))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_namespace_of_this_process_is_never_cleared_out() {
        let ours = namespace(std::process::id(), "mnt").expect("our own");
        assert_eq!(members("mnt", &ours), Vec::<u32>::new());
        kill_all("mnt", &ours).await;
    }
}
