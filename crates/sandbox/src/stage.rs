//! The last step before a container's program: this program again, with one thread, which enters the pod's namespaces,
//! mounts the container's files, gives up what the container may not have and becomes the program.
//!
//! A stage of its own because all of this must happen between fork and exec, where a program with threads may do nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, sethostname, setsid, setuid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use serde::{Deserialize, Serialize};

use tulle_runtime::names::containers::TULLE_IMAGE;

use crate::node::ROOT;

/// `argv[0]` that asks for this stage.
pub(crate) const ARG0: &str = "tulle-sandbox-init";

/// Where containers find tokens, trust bundles and state: a tmpfs of each container's own.
pub(crate) const SECRETS: &str = "/run/secrets";

/// Exit status when the stage itself failed (as a shell's "cannot execute").
const FAILED: i32 = 126;

/// Everything the stage needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Path of the pod's network namespace.
    pub(crate) netns: PathBuf,
    /// A process of the container to join; absent for the container's own first process.
    pub(crate) join: Option<u32>,
    /// Host name of the pod.
    pub(crate) hostname: String,
    /// Files and directories to show in the container.
    pub(crate) binds: Vec<Bind>,
    /// User, group and further groups, where the node has ids to choose from.
    pub(crate) user: Option<UserIds>,
    /// Bits of the capabilities that root keeps.
    pub(crate) capabilities: u64,
    /// Working directory.
    pub(crate) directory: PathBuf,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Run the running executable under the name `argv[0]` instead of a program of that name.
    pub(crate) this_program: bool,
    /// Standard input is a pipe on which to report a failure, closed on success.
    pub(crate) report: bool,
}

/// Who the container's processes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserIds {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// A step that failed.
struct Failure {
    step: String,
    error: io::Error,
}

trait Step<T> {
    fn step(self, name: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            step: name.into(),
            error: error.into(),
        })
    }
}

/// Never returns: becomes the container's program, or reports why not and exits.
pub(crate) fn run(spec: Option<OsString>) -> ! {
    let spec = spec.as_deref().and_then(|text| text.to_str());
    let Some(spec) = spec.and_then(|text| serde_json::from_str::<Spec>(text).ok()) else {
        eprintln!("this name is reserved for the sandbox");
        std::process::exit(FAILED);
    };
    let report = spec
        .report
        .then(|| io::stdin().as_fd().try_clone_to_owned());
    let failure = match prepare(&spec) {
        Ok(()) => exec(&spec),
        Err(failure) => failure,
    };
    let message = format!("cannot {}: {}", failure.step, failure.error);
    match report {
        Some(Ok(pipe)) => tell(pipe, &message),
        _ => eprintln!("{message}"),
    }
    std::process::exit(FAILED)
}

fn tell(pipe: OwnedFd, message: &str) {
    // The reader may be gone, and there is nobody else to tell.
    let _ = File::from(pipe).write_all(message.as_bytes());
}

fn prepare(spec: &Spec) -> Result<(), Failure> {
    setsid().step("start a session")?;
    let netns = File::open(&spec.netns).step("open the pod's network namespace")?;
    setns(netns, CloneFlags::CLONE_NEWNET).step("enter the pod's network namespace")?;
    match spec.join {
        Some(pid) => join(pid)?,
        None => {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                .step("create a mount namespace")?;
            sethostname(&spec.hostname).step("set the host name")?;
            mounts(&spec.binds)?;
        }
    }
    std::env::set_current_dir(&spec.directory)
        .step(format!("enter directory {}", spec.directory.display()))?;
    bound_capabilities(spec.capabilities).step("give up capabilities")?;
    if let Some(ids) = &spec.user {
        let groups: Vec<_> = ids.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).step("set groups")?;
        setgid(Gid::from_raw(ids.group)).step(format!("become group {}", ids.group))?;
        setuid(Uid::from_raw(ids.user)).step(format!("become user {}", ids.user))?;
    }
    set_no_new_privs(true).step("give up gaining privileges")
}

fn join(pid: u32) -> Result<(), Failure> {
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let uts = open("uts").step("open the container's host name namespace")?;
    let mnt = open("mnt").step("open the container's mount namespace")?;
    setns(uts, CloneFlags::CLONE_NEWUTS).step("enter the container's host name namespace")?;
    setns(mnt, CloneFlags::CLONE_NEWNS).step("enter the container's mount namespace")
}

fn mounts(binds: &[Bind]) -> Result<(), Failure> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .step("make mounts private")?;
    tmpfs(SECRETS)?;
    for bind in binds {
        let target = &bind.target;
        if target.starts_with(SECRETS) && !target.exists() {
            make_mount_point(&bind.source, target).step(format!("create {}", target.display()))?;
        }
        let step = || format!("mount {}", target.display());
        mount(
            Some(&bind.source),
            target,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )
        .step(step())?;
        if bind.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(
                none,
                target,
                none,
                flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                none,
            )
            .step(step())?;
        }
    }
    // What the node keeps for other pods is nobody's business in here.
    tmpfs(ROOT)
}

fn tmpfs(path: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=755")).step(format!("mount {path}"))
}

fn make_mount_point(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).map(drop)
}

/// Takes every capability that is not in `keep` out of the bounding set, so that not even root gets it at exec.
fn bound_capabilities(keep: u64) -> io::Result<()> {
    for bit in 0..u64::BITS {
        if keep & (1 << bit) != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Returns only if it failed.
fn exec(spec: &Spec) -> Failure {
    let name = spec.argv.first().map_or("", String::as_str);
    let program = if spec.this_program {
        "/proc/self/exe"
    } else {
        name
    };
    let mut command = Command::new(program);
    command.arg0(name).args(spec.argv.iter().skip(1));
    if spec.report {
        command.stdin(Stdio::null());
    }
    Failure {
        step: format!("run {name}"),
        error: explained(name, command.exec()),
    }
}

/// Says with an error that a program is not there what to do about it.
fn explained(name: &str, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    let remedy = if name == "tulle" {
        format!("use `image: {TULLE_IMAGE}`, which is this program, with `args` and no command")
    } else {
        "a command must be a program on this machine's PATH, since no image is pulled here"
            .to_owned()
    };
    io::Error::new(error.kind(), format!("{error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_said_with_what_to_do() {
        let missing = || io::Error::from_raw_os_error(2);
        let said = explained("tulle", missing()).to_string();
        let image = format!("`image: {TULLE_IMAGE}`");
        assert!(
            said.contains("No such file") && said.contains(&image),
            "{said}"
        );
        let said = explained("python4", missing()).to_string();
        assert!(said.contains("PATH") && !said.contains("tulle"), "{said}");
        let said = explained("tulle", io::Error::from_raw_os_error(13)).to_string();
        assert!(said.contains("denied") && !said.contains("image"), "{said}");
    }
}
