//! Sidecars under limits: what some tests' pods run in the place of an ordinary sidecar.
//!
//! The namespace of a pod says which limits. Whatever the system counts against them is counted from the sidecar's first
//! moment, because they are in force before it starts.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, setrlimit};
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;

/// Set for the sidecar itself, which must not be prepared again.
const PREPARED: &str = "TULLE_TEST_PREPARED";

/// What the sidecars of a namespace get.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) namespace: &'static str,
    /// Only the pods of this app, if it is not empty.
    pub(crate) app: &'static str,
    /// Limit of open files.
    pub(crate) files: Option<u64>,
    /// Name of the memory cgroup that it waits to be put into.
    pub(crate) cgroup: Option<&'static str>,
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

/// Prepares this process and becomes the sidecar; `None`: it is an ordinary one.
pub(crate) fn sidecar(all: &[Limits]) -> Option<anyhow::Result<()>> {
    let env = Env::process();
    let namespace = env.text(variables::POD_NAMESPACE)?;
    let pod = env.text(variables::POD_NAME)?;
    let limits = all
        .iter()
        .find(|limits| limits.namespace == namespace && pod.starts_with(limits.app))?;
    env.text(PREPARED).is_none().then(|| limits.apply())
}

impl Limits {
    fn apply(&self) -> anyhow::Result<()> {
        if let Some(files) = self.files {
            setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
        }
        if let Some(name) = self.cgroup {
            wait_for(name)?;
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tulle").args(["proxy", "run"]);
        command
            .env(PREPARED, "yes")
            .envs(self.variables.iter().copied());
        Err(command.exec()).context("the sidecar cannot be started")
    }
}

/// Waits until the test has put this process into its cgroup.
fn wait_for(name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !std::fs::read_to_string("/proc/self/cgroup")?.contains(name) {
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("nobody put the sidecar into the cgroup {name}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
