//! The launcher: unshares, has the ids mapped, starts init and waits.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, pipe2};
use tulle_runtime::names::PROXY_UID;

use super::idmap::{Mapper, subordinate_ids};
use super::signals::Signals;
use super::{Ids, Stage, outer_id, same_program};
use crate::Error;

const USER_NAMESPACE_REMEDY: &str = "run it as root, or allow unprivileged user namespaces \
    (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)";

/// Runs the program in new namespaces and returns its exit status.
pub(super) fn run() -> Result<i32, Error> {
    let ids = enter_namespaces()?;
    let signals = Signals::block()?;
    let (lifeline, _held) = pipe2(OFlag::O_CLOEXEC).map_err(Error::errno("make a pipe"))?;
    fcntl(&lifeline, FcntlArg::F_SETFD(FdFlag::empty())).map_err(Error::errno("share a pipe"))?;
    let stage = Stage::Init {
        ids,
        launcher: std::process::id(),
        lifeline: lifeline.as_raw_fd().cast_unsigned(),
    };
    let init = same_program(&stage)
        .spawn()
        .map_err(Error::io("start this program again"))?;
    drop(lifeline);
    signals.supervise(init.id())
}

fn enter_namespaces() -> Result<Ids, Error> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if geteuid().is_root() {
        match unshare(namespaces) {
            Ok(()) if outer_id(PROXY_UID).is_some() => return Ok(Ids::Root),
            // Root of a user namespace that has no id for sidecars.
            Ok(()) => return Ok(Ids::Single),
            // Root without capabilities, as in a container: a user namespace may still be allowed.
            Err(nix::Error::EPERM) => {}
            Err(errno) => {
                return Err(privilege(
                    "create mount, network and pid namespaces",
                    errno.into(),
                ));
            }
        }
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let mapper = subordinate_ids(user).map(Mapper::start).transpose()?;
    unshare(namespaces | CloneFlags::CLONE_NEWUSER).map_err(|errno| match errno {
        nix::Error::EINVAL => Error::Io {
            what: "create a user namespace: enter_node() must come before any thread".to_owned(),
            source: errno.into(),
        },
        _ => privilege("create a user namespace", errno.into()),
    })?;
    match mapper {
        Some(mapper) => mapper.map(user, group).map(|()| Ids::Mapped),
        None => map_one_id(user, group).map(|()| Ids::Single),
    }
}

fn map_one_id(user: u32, group: u32) -> Result<(), Error> {
    let write = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    write("setgroups", "deny".to_owned())
        .and_then(|()| write("uid_map", format!("0 {user} 1")))
        .and_then(|()| write("gid_map", format!("0 {group} 1")))
        .map_err(|error| privilege("map its user id", error))
}

fn privilege(what: &'static str, source: io::Error) -> Error {
    Error::Privilege {
        what,
        remedy: USER_NAMESPACE_REMEDY,
        source,
    }
}
