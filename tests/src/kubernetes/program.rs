//! This program under the name `tulle`, on the network of a cluster.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use tempfile::TempDir;
use tulle_cluster::Cluster;

use crate::arena::Ran;

/// A link to this program by the name that makes it `tulle`.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// Beside this executable, because a hard link cannot leave its file system.
    folder: TempDir,
}

impl Program {
    /// Makes the link.
    pub fn new() -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let folder = tempfile::tempdir_in(this.parent().context("it is in a directory")?)?;
        let path = folder.path().join("tulle");
        std::fs::hard_link(&this, &path)?;
        Ok(Self { path, folder })
    }

    /// Where it is, with nothing else.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How it is started where the API server can be reached, with everybody's rights.
    #[must_use]
    pub fn command(&self, cluster: &Cluster) -> Command {
        let mut command = cluster.control().on_network(&self.path);
        command.env("KUBECONFIG", cluster.kubeconfig());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.command(cluster);
        command.args(arguments).stdin(Stdio::null());
        Ok(command.output()?.into())
    }
}
