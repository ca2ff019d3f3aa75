//! A machine of the cluster: namespaces of its own, held by one process (`pause`) that ends when its standard input does.
//!
//! The harness has the other end of that pipe, so the machine cannot outlive it; and with the first process of a namespace
//! the kernel ends all others, and its mounts and network go. Nodes are inside the machine of the control plane.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::component::tail;
use crate::progress::Progress;
use crate::{cgroups, programs, sweep};

/// Name of the machine of the control plane.
pub(crate) const CONTROL: &str = "control";
/// Where a node finds the programs that ./tests/run builds.
pub(crate) const NODE_PROGRAMS: &str = "/run/tulle/bin";
/// Where a node finds its own folder.
pub(crate) const NODE_FOLDER: &str = "/run/tulle/node";
/// Search path of everything in a cluster.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const KEEPER: &str = include_str!("scripts/keeper.sh");
const BOOT: &str = include_str!("scripts/machine.sh");
/// How long a machine may take to come up.
const UP: Duration = Duration::from_secs(20);
/// How long everything in it may take to be gone.
const DOWN: Duration = Duration::from_secs(30);
/// What dies in time is not looked after.
const PROMPT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// What is the cluster's own on the file system.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) tag: String,
    pub(crate) folder: PathBuf,
}

impl Place {
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    name: String,
    pid: u32,
    place: Place,
    /// The process that waits for its end. Its standard input keeps the machine up.
    child: Child,
}

impl Machine {
    /// The first machine, which holds all others.
    pub(crate) fn control(place: &Place) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "keeper", &place.tag])
            .arg(&place.folder)
            .arg(programs::folder())
            .args([BOOT, sweep::CLEAN]);
        Self::boot(place, CONTROL, command)
    }

    /// A machine for a node.
    pub(crate) fn node(&self, name: &str) -> Result<Self> {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--target", &self.pid.to_string()])
            .args(["unshare", "--mount", "--pid", "--net", "--uts", "--ipc"])
            .args(["--fork", "--kill-child", "sh", "-euc", BOOT, "machine"])
            .arg(&self.place.tag)
            .arg(&self.place.folder)
            .arg(programs::folder())
            .arg(name);
        Self::boot(&self.place, name, command)
    }

    fn boot(place: &Place, name: &str, mut command: Command) -> Result<Self> {
        let log = place.logs().join(format!("{name}.log"));
        command
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let mut machine = Self {
            name: name.to_owned(),
            pid: 0,
            place: place.clone(),
            child,
        };
        if said.trim() != "ready" {
            let tail = tail(&log);
            machine.end();
            bail!(
                "machine {name} does not come up\n{tail}\nnext: it needs what only root outside of containers may do: \
                namespaces, mounts and /proc/sys"
            );
        }
        let end = Instant::now() + UP;
        while machine.pid == 0 {
            ensure!(
                Instant::now() < end,
                "the first process of {name} is not there"
            );
            match sweep::holder(&place.tag, name) {
                Some(pid) => machine.pid = pid,
                None => sleep(LOOK),
            }
        }
        Ok(machine)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first process, as the harness sees it: `nsenter --all --target PID` is a shell on it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A program on the machine, with nothing of this process's environment.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--target"])
            .arg(self.pid.to_string())
            .arg("--")
            .arg(program.as_ref())
            .env_clear()
            .envs([("PATH", PATH), ("HOME", "/nonexistent")]);
        command
    }

    /// A program that sees the files of this process but the network of the machine.
    #[must_use]
    pub fn on_network(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--target"])
            .arg(self.pid.to_string())
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Sends a signal to what runs under a name on this machine, and not on those inside of it.
    pub(crate) fn signal(&self, program: &str, signal: Signal) -> Result<()> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
        let own = namespace(&self.pid.to_string())?;
        let mut met = 0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name();
            let Some(pid) = pid.to_str() else { continue };
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == program && namespace(pid).is_ok_and(|it| it == own) {
                kill(Pid::from_raw(pid.parse()?), signal)?;
                met += 1;
            }
        }
        ensure!(met > 0, "no {program} runs on {}", self.name);
        Ok(())
    }

    /// Pulls the plug: no process of it has time to say goodbye. Returns when all are gone.
    pub(crate) fn end(&mut self) {
        drop(self.child.stdin.take());
        let mut progress = Progress::new(format!("waiting for the end of {}", self.name));
        loop {
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return,
            }
            if progress.elapsed() > PROMPT {
                cgroups::thaw(&self.place.tag);
                progress.tick();
            }
            if progress.elapsed() > DOWN {
                let tag = &self.place.tag;
                eprintln!("cluster: {} does not end; ps -ef | grep {tag}", self.name);
                return;
            }
            sleep(LOOK);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
