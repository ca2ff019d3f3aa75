//! A sandbox that is killed leaves nothing behind, whichever of its processes it was: no process, no network, no mount.
//!
//! The sandbox is this program again, in a process that the test kills; what is left of it is looked for from outside.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tulle_sandbox::{BRIDGE, Error, Options, Sandbox, dispatch, enter_node};

/// Present in the process that is to be killed: the directory of its manifests.
const VICTIM: &str = "TULLE_TEST_CRASH_MANIFESTS";
/// What it says once its pod runs, followed by its pid namespace.
const READY: &str = "ready in ";
/// What it says where the machine does not permit namespaces.
const SKIP: &str = "SKIP netns: ";
const DEADLINE: Duration = Duration::from_secs(30);

/// A pod that would rather stay: it does not care for signals, and has a child.
const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: stubborn, namespace: shop }
spec:
  containers:
  - name: app
    command: [sh, -c, "trap '' TERM HUP INT; sleep 1000 & while :; do sleep 1; done"]
    volumeMounts: [{ name: data, mountPath: /var/run/secrets/data }]
  volumes: [{ name: data, emptyDir: {} }]
"#;

fn main() -> ExitCode {
    dispatch();
    if let Some(directory) = std::env::var_os(VICTIM) {
        return victim(Path::new(&directory));
    }
    let arguments = Arguments::from_args();
    let trials = Victim::ALL.map(|victim| {
        let name = format!("nothing_is_left_when_{}_is_killed", victim.name());
        Trial::test(name, move || nothing_is_left(victim).map_err(failed))
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn failed(error: Box<dyn StdError>) -> Failed {
    Failed::from(error.to_string())
}

/// The three processes that a node is made of.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Launcher,
    Init,
    Main,
}

impl Victim {
    const ALL: [Self; 3] = [Self::Launcher, Self::Init, Self::Main];

    fn name(self) -> &'static str {
        match self {
            Self::Launcher => "the_launcher",
            Self::Init => "the_init_of_the_node",
            Self::Main => "the_program",
        }
    }

    /// Its process, as this test sees it.
    fn pid(self, launcher: u32) -> Option<u32> {
        let init = || child_of(launcher);
        match self {
            Self::Launcher => Some(launcher),
            Self::Init => init(),
            Self::Main => init().and_then(child_of),
        }
    }
}

/// Runs a sandbox until it is killed.
fn victim(directory: &Path) -> ExitCode {
    let node = match enter_node() {
        Ok(node) => node,
        Err(error) => return not_permitted(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads");
    runtime.block_on(async {
        let sandbox = match Sandbox::start(node, Options::default(), directory).await {
            Ok(sandbox) => sandbox,
            Err(error) => return not_permitted(&error),
        };
        if let Err(error) = sandbox.wait_ready(DEADLINE).await {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        let namespace = fs::read_link("/proc/self/ns/pid").expect("a namespace");
        println!("{READY}{}", namespace.display());
        std::future::pending().await
    })
}

fn not_permitted(error: &Error) -> ExitCode {
    if error.is_denied() {
        println!("{SKIP}{error}");
        return ExitCode::SUCCESS;
    }
    eprintln!("{error}");
    ExitCode::FAILURE
}

type Story = Result<(), Box<dyn StdError>>;

fn nothing_is_left(victim: Victim) -> Story {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("pod.yaml"), MANIFESTS)?;
    // The second one begins where the first one was killed.
    for _ in 0..2 {
        let mut launcher = Launcher(
            Command::new(std::env::current_exe()?)
                .env(VICTIM, directory.path())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let Some(namespace) = ready(&mut launcher.0)? else {
            return Ok(());
        };
        let pids = inhabitants(&namespace);
        // Init, the program, the pod's shell: the look itself must be able to find something.
        if pids.len() < 3 {
            return Err(format!("only {pids:?} in {}", namespace.display()).into());
        }
        let pid = victim.pid(launcher.0.id()).ok_or("it is not there")?;
        kill(pid)?;
        launcher.0.wait()?;
        let end = Instant::now() + DEADLINE;
        while !inhabitants(&namespace).is_empty() {
            if Instant::now() > end {
                let left = inhabitants(&namespace);
                return Err(format!("left behind: {left:?}").into());
            }
            thread::yield_now();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let ours = mounts.lines().find(|line| line.contains("/run/tulle"));
        if let Some(line) = ours {
            return Err(format!("a mount is left: {line}").into());
        }
        if Path::new("/sys/class/net").join(BRIDGE).exists() {
            return Err(format!("{BRIDGE} is on the machine itself").into());
        }
    }
    Ok(())
}

/// Killed when the test is done with it, however that ends.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The pid namespace of a sandbox that runs; none if the machine does not permit one, and need not.
fn ready(launcher: &mut Child) -> Result<Option<PathBuf>, Box<dyn StdError>> {
    let output = launcher.stdout.take().ok_or("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(namespace) = line.strip_prefix(READY) {
            return Ok(Some(namespace.into()));
        }
        if line.starts_with(SKIP) {
            println!("{line}");
            let required = std::env::var_os("TULLE_TEST_REQUIRE").unwrap_or_default();
            let required = required.to_string_lossy().into_owned();
            return match required
                .split(',')
                .map(str::trim)
                .find(|it| ["all", "netns"].contains(it))
            {
                None => Ok(None),
                Some(_) => Err(line.into()),
            };
        }
    }
    Err("the sandbox ended before it was ready".into())
}

/// The processes of a pid namespace, with their names.
fn inhabitants(namespace: &Path) -> BTreeMap<u32, String> {
    let there = |pid: &u32| {
        let link = fs::read_link(format!("/proc/{pid}/ns/pid"));
        link.is_ok_and(|link| link == namespace)
    };
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    processes()
        .filter(there)
        .map(|pid| (pid, name(pid).trim().to_owned()))
        .collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The one child of a process.
fn child_of(parent: u32) -> Option<u32> {
    let line = format!("PPid:\t{parent}");
    processes().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.lines().any(|it| it == line))
    })
}

fn kill(pid: u32) -> Story {
    let status = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("kill: {status}").into())
    }
}
