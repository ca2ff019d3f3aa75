//! Subordinate ids: found in /etc/subuid and /etc/subgid, mapped by `newuidmap` and `newgidmap`.
//!
//! The two programs must run outside the new user namespace, so a shell is started before it exists and waits for a line.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::process::{Child, Command, Stdio};

use nix::unistd::{Uid, User};
use tulle_runtime::names::PROXY_UID;

use crate::Error;

/// Ranges of ids of this machine that may stand for the ids from 1 on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subordinate {
    users: Range<u32>,
    groups: Range<u32>,
}

/// The user's ranges, if there are any that hold the sidecar's id and the programs that map them are installed.
pub(super) fn subordinate_ids(user: u32) -> Option<Subordinate> {
    let name = User::from_uid(Uid::from_raw(user))
        .ok()
        .flatten()
        .map(|user| user.name);
    let range = |file| find(&fs::read_to_string(file).ok()?, user, name.as_deref());
    let (users, groups) = (range("/etc/subuid")?, range("/etc/subgid")?);
    let installed = ["newuidmap", "newgidmap"].into_iter().all(on_path);
    installed.then_some(Subordinate { users, groups })
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Lines are `user:first:count`, the user by name or number.
fn find(text: &str, user: u32, name: Option<&str>) -> Option<Range<u32>> {
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let owner = parts.next()?;
        let first: u32 = parts.next()?.trim().parse().ok()?;
        let count: u32 = parts.next()?.trim().parse().ok()?;
        let ours = Some(owner) == name || owner.parse() == Ok(user);
        (ours && count >= PROXY_UID).then(|| first..first.saturating_add(count))
    })
}

/// Waits outside the user namespace that is to be mapped.
pub(super) struct Mapper {
    shell: Child,
    ids: Subordinate,
}

impl Mapper {
    pub(super) fn start(ids: Subordinate) -> Result<Self, Error> {
        let shell = Command::new("/bin/sh")
            .args([
                "-c",
                r#"read -r users && read -r groups && newuidmap $users && newgidmap $groups"#,
            ])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(Error::io("start /bin/sh for newuidmap"))?;
        Ok(Self { shell, ids })
    }

    /// Maps the user to 0 and the subordinate ids to those from 1 on, in the namespace this process is in now.
    pub(super) fn map(mut self, user: u32, group: u32) -> Result<(), Error> {
        let pid = std::process::id();
        let line = |own, range: &Range<u32>| {
            format!("{pid} 0 {own} 1 1 {} {}\n", range.start, range.len())
        };
        let lines = line(user, &self.ids.users) + &line(group, &self.ids.groups);
        let written = self
            .shell
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(lines.as_bytes()));
        let status = self.shell.wait().map_err(Error::io("wait for newuidmap"))?;
        if status.success() && matches!(written, Some(Ok(()))) {
            return Ok(());
        }
        Err(Error::Privilege {
            what: "map subordinate user ids",
            remedy: "repair newuidmap (it must be setuid or have file capabilities), or remove the user's lines \
                from /etc/subuid and /etc/subgid to run with a single id",
            source: std::io::Error::other(format!("newuidmap or newgidmap ended with {status}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number_and_must_hold_the_sidecars_id() {
        let text = "other:1:70000\nsmall:100000:1000\nwe:100000:65536\n1001:300000:65536\nbroken\n";
        let table = [
            ("by name", 1000, Some("we"), Some(100_000..165_536)),
            ("by number", 1001, None, Some(300_000..365_536)),
            ("too small", 1002, Some("small"), None),
            ("nobody's", 1003, Some("nobody"), None),
        ];
        for (case, user, name, expected) in table {
            assert_eq!(find(text, user, name), expected, "{case}");
        }
    }
}
