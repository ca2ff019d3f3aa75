//! The memory cgroup of this process, of either version: its limit, and what is used of it.

use std::fs;
use std::path::{Path, PathBuf};

/// A memory cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    V1(PathBuf),
    V2(PathBuf),
}

impl Cgroup {
    /// Finds it, from `/proc/self/cgroup` and the folder where cgroups are mounted.
    pub(super) fn find(own: &Path, mounted: &Path) -> Option<Self> {
        let text = fs::read_to_string(own).ok()?;
        let paths = text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?.trim_start_matches('/')))
        });
        // A container often sees its own cgroup as the root, whatever path it is told.
        let here = |mount: &Path, path: &str, file: &str| {
            let own = mount.join(path);
            [own, mount.to_owned()]
                .into_iter()
                .find(|at| at.join(file).is_file())
        };
        for (controllers, path) in paths {
            let found = if controllers.is_empty() {
                here(mounted, path, "memory.max").map(Self::V2)
            } else if controllers.split(',').any(|name| name == "memory") {
                here(&mounted.join("memory"), path, "memory.limit_in_bytes").map(Self::V1)
            } else {
                None
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Its limit, if it has one.
    pub(super) fn limit(&self) -> Option<u64> {
        /// What version 1 says where there is none is a page below this.
        const NONE: u64 = 1 << 62;
        let limit = match self {
            Self::V1(at) => number(&at.join("memory.limit_in_bytes")),
            // `max` is no number.
            Self::V2(at) => number(&at.join("memory.max")),
        };
        limit.filter(|limit| *limit < NONE)
    }

    /// What counts against the limit.
    pub(super) fn used(&self) -> Option<u64> {
        match self {
            Self::V1(at) => number(&at.join("memory.usage_in_bytes")),
            Self::V2(at) => number(&at.join("memory.current")),
        }
    }

    /// What of that the kernel gives up when it has to.
    pub(super) fn cached(&self) -> Option<u64> {
        let (at, cache) = match self {
            Self::V1(at) => (at, "total_inactive_file"),
            Self::V2(at) => (at, "inactive_file"),
        };
        let stat = fs::read_to_string(at.join("memory.stat")).ok()?;
        stat.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == cache).then(|| value.parse::<u64>().ok())?
        })
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: what a process is told of its cgroups, and the files where they are mounted.
    fn machine(own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Option<Cgroup>) {
        let folder = tempfile::tempdir().unwrap();
        let mounted = folder.path().join("cgroup");
        for (name, text) in files {
            let file = mounted.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let told = folder.path().join("self");
        fs::write(&told, own).unwrap();
        let found = Cgroup::find(&told, &mounted);
        (folder, found)
    }

    #[test]
    fn version_2_where_the_path_says_and_at_the_root_of_a_container() {
        for (own, at) in [
            ("0::/pod/c\n", "pod/c/"),
            ("0::/\n", ""),
            ("0::/host/pod/c\n", ""),
        ] {
            let file = |name: &str| format!("{at}{name}");
            let (_folder, found) = machine(
                own,
                &[
                    (&file("memory.max"), "67108864\n"),
                    (&file("memory.current"), "5000\n"),
                    (
                        &file("memory.stat"),
                        "anon 7\ninactive_file 3000\nactive_file 1\n",
                    ),
                ],
            );
            let found = found.expect(own);
            assert_eq!(found.limit(), Some(64 << 20), "{own}");
            assert_eq!(
                (found.used(), found.cached()),
                (Some(5000), Some(3000)),
                "{own}"
            );
        }
    }

    #[test]
    fn version_1_beside_an_empty_version_2() {
        let (_folder, found) = machine(
            "9:name=systemd:/\n4:cpu,memory:/pod/c\n0::/\n",
            &[
                ("memory/pod/c/memory.limit_in_bytes", "1048576\n"),
                ("memory/pod/c/memory.usage_in_bytes", "4096\n"),
                (
                    "memory/pod/c/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 96\n",
                ),
            ],
        );
        let found = found.unwrap();
        assert!(matches!(found, Cgroup::V1(_)));
        assert_eq!(found.limit(), Some(1 << 20));
        assert_eq!((found.used(), found.cached()), (Some(4096), Some(96)));
    }

    #[test]
    fn no_limit_and_no_cgroup_are_told_apart_from_a_limit() {
        let (_folder, found) = machine("0::/c\n", &[("c/memory.max", "max\n")]);
        assert_eq!(found.unwrap().limit(), None);
        let limit = ("memory/c/memory.limit_in_bytes", "9223372036854771712\n");
        let (_folder, found) = machine("4:memory:/c\n", &[limit]);
        assert_eq!(found.unwrap().limit(), None);
        let (_folder, found) = machine("4:memory:/c\n0::/c\n", &[]);
        assert_eq!(found, None);
        let (_folder, found) = machine("what is this", &[]);
        assert_eq!(found, None);
    }
}
