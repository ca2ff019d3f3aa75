//! The programs of a build of Tulle, `tulle` on the network of a cluster, and the images that hold them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tulle_cluster::{Cluster, Image};

use super::images;
use crate::arena::Ran;
use crate::gate::PREVIOUS;

/// The programs `tulle` and `tulle-proxy` of one build: of this one, which is what its name says, or of an earlier one.
#[derive(Debug)]
pub struct Program {
    folder: PathBuf,
    tag: &'static str,
    /// The folder of links to this executable: beside it, because a hard link cannot leave its file system.
    _links: Option<TempDir>,
}

impl Program {
    /// Those of this build: makes the links.
    pub fn new() -> anyhow::Result<Self> {
        let this = env::current_exe()?;
        let links = tempfile::tempdir_in(this.parent().context("it is in a directory")?)?;
        for name in ["tulle", "tulle-proxy"] {
            std::fs::hard_link(&this, links.path().join(name))?;
        }
        Ok(Self {
            folder: links.path().to_owned(),
            tag: images::TAG,
            _links: Some(links),
        })
    }

    /// Those of the build that tests/upgrade has made of an earlier commit.
    pub fn previous() -> anyhow::Result<Self> {
        let folder = env::var_os(PREVIOUS).with_context(|| format!("{PREVIOUS} is not set"))?;
        Ok(Self {
            folder: folder.into(),
            tag: images::PREVIOUS_TAG,
            _links: None,
        })
    }

    /// Where they are, with nothing else.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How `tulle` is started where the API server can be reached, with everybody's rights.
    #[must_use]
    pub fn command(&self, cluster: &Cluster) -> Command {
        let mut command = cluster.control().on_network(self.folder.join("tulle"));
        command.env("KUBECONFIG", cluster.kubeconfig());
        command
    }

    /// Runs `tulle` to its end.
    pub fn run(&self, cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.command(cluster);
        command.args(arguments).stdin(Stdio::null());
        Ok(command.output()?.into())
    }

    /// What `tulle install` prints, with the images of this build.
    pub fn manifests(&self, values: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.folder.join("tulle"));
        command.arg("install");
        let images = self.image_values();
        let images = images.iter().map(String::as_str);
        for value in images.chain(values.iter().copied()) {
            command.args(["--set", value]);
        }
        let output = command.output()?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tulle install: {problem}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The name of an image of this build.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", images::REGISTRY, self.tag)
    }

    /// The values that name the images of this build.
    #[must_use]
    pub fn image_values(&self) -> [String; 3] {
        [
            format!("image.registry={}", images::REGISTRY),
            format!("image.tag={:?}", self.tag),
            "image.pullPolicy=Never".to_owned(),
        ]
    }

    /// The images of this build.
    pub(super) fn images(&self) -> anyhow::Result<Vec<Image>> {
        images::all(&self.folder, self.tag)
    }
}
