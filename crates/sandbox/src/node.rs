//! The node: the namespaces in which the whole sandbox lives, so that nothing outlives it.
//!
//! Three processes of the same program, each a re-execution of the one before: the *launcher* (whoever the user started)
//! unshares user (unless root), mount, network and pid namespaces and waits; the *init* is pid 1 in there, mounts what the
//! node needs and reaps orphans; the *main* process is the program proper. If the launcher dies, the kernel kills init; if
//! init or main ends, every process of the node ends, and network and files go with the namespaces.
//!
//! Creating a user namespace needs a process with one thread: [`enter_node`] comes before any runtime.

mod idmap;
mod init;
mod launch;
mod signals;

use std::ffi::OsString;

use crate::Error;

/// Says which of the three processes this one is: `init:…` or `main:…`; absent in the launcher.
const STAGE: &str = "TULLE_SANDBOX_STAGE";

/// Where the node keeps everything; a tmpfs of its own mount namespace.
pub(crate) const ROOT: &str = "/run/tulle";

/// Which user ids the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Those of the machine: the sandbox runs as root.
    Root,
    /// A range of subordinate ids: rootless, with ids as in a cluster.
    Mapped,
    /// One, so every process has it: rootless, and sidecars mark their sockets instead of having an id of their own.
    Single,
}

impl Ids {
    fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Mapped => "mapped",
            Self::Single => "single",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Root, Self::Mapped, Self::Single]
            .into_iter()
            .find(|ids| ids.as_str() == text)
    }

    /// Whether sidecars mark their sockets because they cannot have a user id of their own.
    #[must_use]
    pub fn mark_sockets(self) -> bool {
        self == Self::Single
    }
}

/// Proof that this process is the main process of a node.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    ids: Ids,
    launcher: u32,
}

impl Node {
    /// Which user ids the node has.
    #[must_use]
    pub fn ids(&self) -> Ids {
        self.ids
    }

    /// Process id of the launcher, as the machine sees it.
    pub(crate) fn launcher(&self) -> u32 {
        self.launcher
    }
}

/// Takes over if this process was started by the sandbox to prepare a container or to be a node's init; otherwise returns.
/// Call it first in `main`, before arguments are parsed and before any thread exists.
pub fn dispatch() {
    let mut arguments = std::env::args_os();
    if arguments
        .next()
        .is_some_and(|name| name == crate::stage::ARG0)
    {
        crate::stage::run(arguments.next());
    }
    if let Some(Stage::Init {
        ids,
        launcher,
        lifeline,
    }) = Stage::current()
    {
        init::run(ids, launcher, lifeline);
    }
}

/// Moves the program into a node of its own.
///
/// In the process that the user started it does not return but waits for the program, which runs again from the start
/// with the same arguments, inside, and exits with its status. Inside it returns. Call it before any thread exists; it
/// does what [`dispatch`] does as well.
pub fn enter_node() -> Result<Node, Error> {
    dispatch();
    match Stage::current() {
        Some(Stage::Main { ids, launcher }) => {
            signals::unblock_all()?;
            Ok(Node { ids, launcher })
        }
        _ => launch::run().map(|status| std::process::exit(status)),
    }
}

/// What a user id of this process's user namespace is called outside of it; `None` if nobody has it.
pub(crate) fn outer_id(id: u32) -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    map.lines().find_map(|line| {
        let mut numbers = line
            .split_ascii_whitespace()
            .filter_map(|number| number.parse::<u32>().ok());
        let (inner, outer, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let offset = id.checked_sub(inner).filter(|offset| *offset < count)?;
        outer.checked_add(offset)
    })
}

/// What the environment says about this process.
enum Stage {
    Init {
        ids: Ids,
        launcher: u32,
        lifeline: u32,
    },
    Main {
        ids: Ids,
        launcher: u32,
    },
}

impl Stage {
    fn current() -> Option<Self> {
        Self::parse(std::env::var_os(STAGE)?.to_str()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let stage = parts.next()?;
        let ids = Ids::parse(parts.next()?)?;
        let launcher = parts.next()?.parse().ok()?;
        match stage {
            "init" => Some(Self::Init {
                ids,
                launcher,
                lifeline: parts.next()?.parse().ok()?,
            }),
            "main" => Some(Self::Main { ids, launcher }),
            _ => None,
        }
    }

    fn render(&self) -> String {
        match self {
            Self::Init {
                ids,
                launcher,
                lifeline,
            } => format!("init:{}:{launcher}:{lifeline}", ids.as_str()),
            Self::Main { ids, launcher } => format!("main:{}:{launcher}", ids.as_str()),
        }
    }
}

/// This program again, with the same arguments, as the given stage.
fn same_program(stage: &Stage) -> std::process::Command {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("tulle"));
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg0(name)
        .args(arguments)
        .env(STAGE, stage.render());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_survives_the_environment() {
        let init = Stage::Init {
            ids: Ids::Single,
            launcher: 7,
            lifeline: 3,
        };
        assert!(matches!(
            Stage::parse(&init.render()),
            Some(Stage::Init {
                ids: Ids::Single,
                launcher: 7,
                lifeline: 3
            })
        ));
        let main = Stage::Main {
            ids: Ids::Root,
            launcher: 9,
        };
        assert!(matches!(
            Stage::parse(&main.render()),
            Some(Stage::Main {
                ids: Ids::Root,
                launcher: 9
            })
        ));
    }

    #[test]
    fn anything_else_in_the_environment_is_no_stage() {
        for text in [
            "",
            "init",
            "init:root",
            "main:nobody:1",
            "init:root:x:1",
            "other:root:1",
        ] {
            assert!(Stage::parse(text).is_none(), "{text}");
        }
    }
}
