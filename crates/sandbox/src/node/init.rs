//! Pid 1 of the node: mounts what the node needs, starts the main process and reaps whatever is left to it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;

use nix::libc::{O_NONBLOCK, O_PATH};
use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::signals::Signals;
use super::{Ids, ROOT, Stage, same_program};
use crate::Error;

/// Of the machine's /run, what the node must not see: daemons that would answer name lookups in place of the node's DNS.
const HIDDEN: [&str; 4] = ["systemd", "nscd", "dbus", "avahi-daemon"];

/// Never returns: exits with the main process's status.
pub(super) fn run(ids: Ids, launcher: u32, lifeline: u32) -> ! {
    let status = start(ids, launcher, lifeline).unwrap_or_else(|error| {
        let mut message = format!("error: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        eprintln!("{message}");
        1
    });
    std::process::exit(status)
}

fn start(ids: Ids, launcher: u32, lifeline: u32) -> Result<i32, Error> {
    set_pdeathsig(Signal::SIGKILL).map_err(Error::errno("tie the node to its launcher"))?;
    if !launcher_lives(lifeline) {
        return Ok(1);
    }
    prepare_mounts().map_err(|source| Error::Privilege {
        what: "mount /proc and /run in a mount namespace",
        remedy: "run it as root, or outside a container that masks /proc",
        source,
    })?;
    let signals = Signals::block()?;
    let main = same_program(&Stage::Main { ids, launcher })
        .spawn()
        .map_err(Error::io("start this program again"))?;
    signals.supervise(main.id())
}

/// The launcher holds the other end of the pipe; if it died before the line above, there is nobody to be tied to.
fn launcher_lives(lifeline: u32) -> bool {
    let path = format!("/proc/self/fd/{lifeline}");
    let pipe = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path);
    let lives = pipe.and_then(|mut pipe| pipe.read(&mut [0]));
    let _ = nix::unistd::close(lifeline.cast_signed());
    matches!(lives, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn prepare_mounts() -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let run = File::options()
        .read(true)
        .custom_flags(O_PATH)
        .open("/run")?;
    let entries: Vec<_> = fs::read_dir("/run")?.collect::<Result<_, _>>()?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        guarded,
        Some("mode=755"),
    )?;
    for entry in entries {
        let name = entry.file_name();
        if HIDDEN.iter().any(|hidden| name == *hidden) {
            continue;
        }
        let old = Path::new("/proc/self/fd")
            .join(run.as_raw_fd().to_string())
            .join(&name);
        // An entry that cannot be shown (a socket that vanished meanwhile) is simply not there.
        let _ = show(&old, &Path::new("/run").join(&name));
    }
    fs::create_dir_all("/run/secrets")?;
    fs::create_dir_all(ROOT)?;
    let proc = guarded | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), proc, none)?;
    Ok(())
}

/// Makes an entry of the machine's /run visible in the node's.
fn show(old: &Path, new: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(old)?.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(old)?, new);
    }
    if kind.is_dir() {
        fs::create_dir(new)?;
    } else {
        File::create(new)?;
    }
    mount(
        Some(old),
        new,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}
