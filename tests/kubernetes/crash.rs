//! A cluster whose harness is killed. The harness is this program again; what is left of it is looked for from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_cluster::{Cluster, sweep};
use tulle_tests::{Kubernetes, eventually};

tulle_tests::cases! { in Kubernetes:
    a_killed_harness_leaves_nothing_behind;
}

/// Present in the process that is to be killed.
const VICTIM: &str = "TULLE_TEST_CLUSTER_VICTIM";
/// What it says once its cluster runs a pod, followed by the cluster's folder.
const READY: &str = "ready: ";
const DEADLINE: Duration = Duration::from_secs(30);

/// A pod with mounts, and what holds it.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: orphan }
spec:
  nodeName: node0
  containers:
  - name: app
    image: tulle.test/pause:1
    volumeMounts: [{ name: memory, mountPath: /memory }]
  volumes: [{ name: memory, emptyDir: { medium: Memory } }]
"#;

pub(crate) fn is_victim() -> bool {
    std::env::var_os(VICTIM).is_some()
}

/// Runs a cluster until it is killed.
pub(crate) fn victim() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    cluster.ask(["apply", "-f", "-"], POD)?;
    let condition = "--for=condition=Ready";
    cluster.ask(["wait", condition, "pod/orphan", "--timeout=60s"], "")?;
    println!("{READY}{}", cluster.folder().display());
    loop {
        std::thread::park();
    }
}

async fn a_killed_harness_leaves_nothing_behind(_: &Kubernetes) -> anyhow::Result<()> {
    let mut victim = Victim(
        Command::new("/proc/self/exe")
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let folder = ready(&mut victim.0)?;
    let tag = folder.file_name().context("a folder has a name")?;
    let tag = tag.to_str().context("a tag is text")?.to_owned();
    let namespaces = namespaces(&tag);
    let inhabitants = || inhabitants(&namespaces);
    let before = inhabitants();
    // The look itself must be able to find something.
    for program in ["etcd", "kube-apiserver", "kubelet", "containerd", "pause"] {
        ensure!(before.values().any(|it| it == program), "{before:?}");
    }
    ensure!(!cgroups(&tag).is_empty() && folder.exists());
    // Who would clean up goes first.
    let keeper = processes().find(|(_, line)| line.contains("\0keeper\0") && line.contains(&tag));
    let (keeper, _) = keeper.context("nobody keeps the cluster")?;
    for pid in [keeper, victim.0.id()] {
        kill(pid)?;
    }
    victim.0.wait()?;
    eventually(DEADLINE, async || {
        let left = inhabitants();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
    .await?;
    ensure!(folder.exists(), "it is swept before anybody swept");

    let swept = sweep()?;
    ensure!(swept.contains(&tag), "{swept:?}");
    ensure!(!folder.exists(), "{} is left", folder.display());
    let left = cgroups(&tag);
    ensure!(left.is_empty(), "left behind: {left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let left = mounts.lines().find(|line| line.contains(&tag));
    ensure!(left.is_none(), "left behind: {left:?}");
    ensure!(!sweep()?.contains(&tag), "it is swept twice");
    Ok(())
}

/// Killed when the test is done with it, however that ends.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ready(victim: &mut Child) -> anyhow::Result<PathBuf> {
    let output = victim.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        if let Some(folder) = line?.strip_prefix(READY) {
            return Ok(folder.into());
        }
    }
    anyhow::bail!("the harness ended before its cluster was ready")
}

/// The pid namespaces of a cluster's machines.
fn namespaces(tag: &str) -> BTreeSet<PathBuf> {
    let holders = processes().filter(|(_, line)| line.contains(&format!("pause\0{tag}\0")));
    holders
        .filter_map(|(pid, _)| fs::read_link(format!("/proc/{pid}/ns/pid")).ok())
        .collect()
}

/// The processes in them, with their names.
fn inhabitants(namespaces: &BTreeSet<PathBuf>) -> BTreeMap<u32, String> {
    let there = |pid: u32| {
        let link = fs::read_link(format!("/proc/{pid}/ns/pid"));
        link.is_ok_and(|link| namespaces.contains(&link))
    };
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    processes()
        .filter(|(pid, _)| there(*pid))
        .map(|(pid, _)| (pid, name(pid).trim().to_owned()))
        .collect()
}

/// All processes, with their command lines.
fn processes() -> impl Iterator<Item = (u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).into_owned()))
    })
}

/// A cluster's cgroups, in whatever hierarchy.
fn cgroups(tag: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let roots = entries.map(|entry| entry.path()).chain([root.to_owned()]);
    roots
        .map(|root| root.join(tag))
        .filter(|path| path.exists())
        .collect()
}

fn kill(pid: u32) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()?;
    ensure!(status.success(), "kill: {status}");
    Ok(())
}
