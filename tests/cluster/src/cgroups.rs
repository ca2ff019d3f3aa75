//! The cgroups in which nodes put their pods: `TAG/NODE` in each hierarchy of the machine, of version 1, 2 or both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// What kubelets want of a hierarchy of version 2.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];

/// Makes a node's cgroups.
pub(crate) fn create(tag: &str, node: &str) -> Result<()> {
    for root in hierarchies()? {
        let own = root.join(tag);
        let nodes = own.join(node);
        fs::create_dir_all(&nodes).with_context(|| {
            let path = nodes.display();
            format!("create {path}: cgroups must be writable, as they are for root outside of containers")
        })?;
        enable(&root);
        enable(&own);
        inherit(&root, &own)?;
        inherit(&own, &nodes)?;
        weigh(&own);
    }
    Ok(())
}

/// Lets what was frozen when its runtime was killed run again: of version 1, it could not even die.
pub(crate) fn thaw(tag: &str) {
    let mut folders = vec![Path::new(ROOT).join("freezer").join(tag)];
    while let Some(folder) = folders.pop() {
        // What vanishes meanwhile is not frozen.
        let _ = fs::write(folder.join("freezer.state"), "THAWED");
        folders.extend(entries(&folder).filter(|entry| entry.is_dir()));
    }
}

/// Tags that have cgroups.
pub(crate) fn tags(prefix: &str) -> Vec<String> {
    let roots = hierarchies().unwrap_or_default();
    let names = roots
        .iter()
        .flat_map(|root| entries(root))
        .filter_map(|entry| {
            let name = entry.file_name()?.to_str()?;
            name.starts_with(prefix).then(|| name.to_owned())
        });
    names.collect()
}

/// Where trees of cgroups begin.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let roots: Vec<_> = entries(root)
        .filter(|entry| entry.is_dir() && !entry.is_symlink())
        .collect();
    if roots.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound))
            .with_context(|| format!("there are no cgroups in {ROOT}: mount them"));
    }
    Ok(roots)
}

/// Version 2 gives a cgroup only those controllers that its parent passes on. One that the machine does not have, or
/// keeps for itself, is the kubelet's to complain about.
fn enable(parent: &Path) {
    let file = parent.join("cgroup.subtree_control");
    if file.exists() {
        for controller in CONTROLLERS {
            let _ = fs::write(&file, format!("+{controller}"));
        }
    }
}

/// Version 1 has cpusets begin empty, and then nothing can run in them.
fn inherit(parent: &Path, child: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), child.join(name));
        if from.exists() && child.join("cgroup.clone_children").exists() {
            fs::copy(&from, &to).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}

/// To the kernel all pods of a cluster together are as much as one busy process beside them: on a machine that builds, or runs
/// several clusters, they would starve, and show nothing but that. They count as eight.
fn weigh(own: &Path) {
    for (name, weight) in [("cpu.shares", "8192"), ("cpu.weight", "800")] {
        let file = own.join(name);
        if file.exists() {
            // Where it cannot be had, pods are slower.
            let _ = fs::write(file, weight);
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
