//! The programs that a cluster is made of: what ./tests/run builds, and what Debian brings.

use std::env;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// What ./tests/run builds.
const BUILT: [&str; 8] = [
    "coredns",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "pause",
];
/// What packages bring.
const INSTALLED: [&str; 10] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "etcd",
    "ip",
    "mount",
    "nft",
    "nsenter",
    "runc",
    "unshare",
];
/// Where Debian, and where everybody else, has the plugins that make a pod's network.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// What keeps a cluster from running on this machine, and what to do about it; none if nothing does.
#[must_use]
pub fn missing() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("it needs root: run it with sudo".to_owned());
    }
    if !Path::new("/proc/net/if_inet6").exists() {
        return Some("this kernel has no IPv6".to_owned());
    }
    let built = BUILT.iter().filter(|name| !built(name).is_file());
    let installed = INSTALLED.iter().filter(|name| find(name).is_none());
    let mut absent: Vec<&str> = built.chain(installed).copied().collect();
    if plugins().is_none() {
        absent.push("the CNI plugins ptp and host-local");
    }
    if absent.is_empty() {
        return None;
    }
    let absent = absent.join(", ");
    Some(format!(
        "{absent}: not there; ./tests/run builds and installs it"
    ))
}

/// Where a program is.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Where ./tests/run puts what it fetches and builds.
#[must_use]
pub fn cache() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("tulle")
}

/// The folder of the programs that ./tests/run builds.
pub(crate) fn folder() -> PathBuf {
    cache().join("bin")
}

/// Where a program is that ./tests/run builds.
pub(crate) fn built(program: &str) -> PathBuf {
    folder().join(program)
}

/// The folder of the CNI plugins.
pub(crate) fn plugins() -> Option<&'static Path> {
    let has = |folder: &&Path| {
        ["ptp", "host-local"]
            .iter()
            .all(|it| folder.join(it).is_file())
    };
    PLUGINS.iter().map(Path::new).find(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_on_path_is_found_and_another_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
