//! A program of the cluster that is to run until the end, and the log that it writes.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lines of a log that an error shows.
const TAIL: usize = 20;

/// A running program.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) name: String,
    /// What to do if it does not work.
    remedy: &'static str,
    log: PathBuf,
    command: Command,
    child: Child,
}

impl Component {
    /// Starts it; its log will be in the folder, under its name.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        logs: &Path,
        remedy: &'static str,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A Ctrl-C at the terminal is not meant for it.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            remedy,
            log,
            command,
            child,
        })
    }

    /// Starts it again, after its end.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let name = &self.name;
        self.child = self
            .command
            .spawn()
            .with_context(|| format!("start {name} again"))?;
        Ok(())
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.trouble(&format!("{} ended ({status})", self.name))),
        }
    }

    /// An error about it, with the end of its log and the next step.
    pub(crate) fn trouble(&self, problem: &str) -> anyhow::Error {
        anyhow!("{problem}\n{}\nnext: {}", tail(&self.log), self.remedy)
    }

    /// Lets it go on. Who stops a program stops also the one that started it here, by which it then could not end.
    pub(crate) fn resume(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // Fails only if it has ended.
        let _ = kill(pid, Signal::SIGCONT);
    }

    /// Waits for its end, which must have been brought about.
    pub(crate) fn reap(&mut self) {
        // Fails only if there is nothing to wait for.
        let _ = self.child.wait();
    }
}

/// The end of a log, under its name.
pub(crate) fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    format!("--- the end of {}\n{last}\n---", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_named_with_its_last_words_and_the_next_step() {
        let logs = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "seq 1 30; echo flag provided but not defined >&2; exit 3",
        ]);
        let mut component =
            Component::start("kubelet", command, logs.path(), "look at the flags").expect("starts");
        component.reap();
        let error = component.check().expect_err("it has ended").to_string();
        for part in [
            "kubelet ended (exit status: 3)",
            "kubelet.log\n12\n13",
            "30\nflag provided but not defined",
            "next: look at the flags",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn what_runs_is_no_trouble() {
        let logs = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut component = Component::start("etcd", command, logs.path(), "").expect("starts");
        component.check().expect("it runs");
        component.child.kill().expect("it runs");
        component.reap();
        component.check().expect_err("it has ended");
    }
}
