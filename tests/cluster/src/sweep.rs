//! Names of clusters, and the end of those whose harness was killed before it could end them.
//!
//! A cluster's tag names the process that started it, so that everybody can see whether it is still wanted. Its folder is
//! called like that, so are its cgroups, and the processes that hold its machines have it among their arguments.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroups;
use crate::progress::Progress;

const PREFIX: &str = "tulle-cluster-";
/// Programs that hold a machine.
const HOLDERS: [&str; 4] = ["nsenter", "pause", "sh", "unshare"];
/// How long processes that were killed may take to be gone.
const GONE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Removes what a cluster has outside of its namespaces.
pub(crate) const CLEAN: &str = include_str!("scripts/clean.sh");

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A name for a new cluster of this process.
pub(crate) fn new_tag() -> Result<String> {
    let pid = std::process::id();
    let began = began(pid).context("this process is not in /proc")?;
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{PREFIX}{pid}-{began}-{number}"))
}

/// Where a cluster keeps its files.
pub(crate) fn folder(tag: &str) -> PathBuf {
    std::env::temp_dir().join(tag)
}

/// Ends clusters whose harness is gone, and removes what is left of them; their tags. [`Cluster::start`] does it first.
///
/// [`Cluster::start`]: crate::Cluster::start
pub fn sweep() -> Result<Vec<String>> {
    let mut tags: BTreeSet<String> = cgroups::tags(PREFIX).into_iter().collect();
    let files = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    let files = files.flatten().map(|entry| entry.file_name());
    tags.extend(files.filter_map(|name| name.into_string().ok()));
    for process in processes() {
        tags.extend(process.arguments);
    }
    let orphans: Vec<_> = tags
        .into_iter()
        .filter(|tag| owner(tag).is_some_and(|(pid, time)| began(pid) != Some(time)))
        .collect();
    for tag in &orphans {
        remove(tag).with_context(|| format!("end {tag}, whose harness was killed"))?;
    }
    Ok(orphans)
}

fn remove(tag: &str) -> Result<()> {
    let mut progress = Progress::new(format!("ending {tag}, whose harness was killed"));
    loop {
        let held: Vec<_> = holders(tag).map(|process| process.pid).collect();
        if held.is_empty() {
            break;
        }
        ensure!(
            progress.elapsed() < GONE,
            "processes {held:?} do not end\nnext: see what they wait for (cat /proc/PID/stack)"
        );
        for pid in held {
            // One that has ended meanwhile is what is wanted.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        cgroups::thaw(tag);
        progress.tick();
        sleep(LOOK);
    }
    clean(tag)
}

/// Removes the folder and the cgroups of a cluster that has no processes any more.
fn clean(tag: &str) -> Result<()> {
    let folder = folder(tag);
    let mut command = Command::new("sh");
    command.args(["-c", CLEAN, "clean", tag]).arg(&folder);
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success() && !folder.exists(),
        "cannot remove it: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The process that holds a machine, once it has begun to.
pub(crate) fn holder(tag: &str, machine: &str) -> Option<u32> {
    let own = holders(tag).find(|process| {
        let name = process.arguments.first().map(Path::new);
        name.is_some_and(|name| name.ends_with("pause"))
            && process.arguments.last().is_some_and(|it| it == machine)
    });
    own.map(|process| process.pid)
}

fn holders(tag: &str) -> impl Iterator<Item = Process> {
    processes().filter(move |process| {
        let name = process.arguments.first().map(Path::new);
        name.is_some_and(|name| HOLDERS.iter().any(|holder| name.ends_with(holder)))
            && process.arguments.iter().skip(1).any(|it| it == tag)
    })
}

struct Process {
    pid: u32,
    arguments: Vec<String>,
}

/// All processes that still have arguments: one that has ended has none, even if nobody has asked for its status.
fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words = line.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let arguments = words.map(|word| String::from_utf8_lossy(word).into_owned());
        Some(Process {
            pid,
            arguments: arguments.collect(),
        })
    })
}

/// The process that a tag names, and when it began.
fn owner(tag: &str) -> Option<(u32, u64)> {
    let mut parts = tag.strip_prefix(PREFIX)?.split('-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some(owner)
}

/// When a process began, in ticks since the machine did (proc_pid_stat(5), field 22).
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_the_process_that_made_it() {
        let tag = new_tag().expect("a tag");
        let (pid, time) = owner(&tag).expect("it has an owner");
        assert_eq!(pid, std::process::id());
        assert_eq!(began(pid), Some(time));
        assert_ne!(tag, new_tag().expect("another"));
    }

    #[test]
    fn nothing_else_is_a_tag() {
        for text in [
            "tulle-cluster-",
            "tulle-cluster-1",
            "tulle-cluster-1-2",
            "tulle-cluster-a-2-3",
            "tulle-cluster-1-2-3-4",
            "tulle-cluster-1-2-3.bak",
            "other-1-2-3",
        ] {
            assert!(owner(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_not() {
        let own = folder(&new_tag().expect("a tag"));
        // No process has began with the machine itself but the first.
        let orphan = folder(&format!("{PREFIX}{}-0-0", std::process::id()));
        for folder in [&own, &orphan] {
            fs::create_dir(folder).expect("a folder");
        }
        let swept = sweep().expect("swept");
        assert!(swept.iter().any(|tag| orphan.ends_with(tag)), "{swept:?}");
        assert!(!orphan.exists());
        assert!(own.exists());
        fs::remove_dir(own).expect("it is there");
    }
}
