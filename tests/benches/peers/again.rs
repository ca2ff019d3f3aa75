//! How a peer that is configured by its environment is started: written down once, so that it can be started again.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tulle_runtime::names::files;

use crate::logs;
use crate::systems::System;

#[derive(Serialize, Deserialize)]
struct Written {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

fn file() -> PathBuf {
    Path::new(files::STATE_DIR).join("again.json")
}

/// Writes it down. The environment comes on top of the one that this process has.
pub(crate) fn write(
    program: &Path,
    arguments: &[&str],
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<()> {
    let written = Written {
        program: program.to_owned(),
        arguments: arguments.iter().map(|&one| one.to_owned()).collect(),
        environment: environment.collect(),
    };
    let new = file().with_extension("new");
    std::fs::write(&new, serde_json::to_string(&written)?)?;
    Ok(std::fs::rename(new, file())?)
}

/// Whether it is written down.
pub(crate) fn is_written() -> bool {
    file().exists()
}

/// How to start it.
pub(crate) fn command() -> anyhow::Result<Command> {
    let text = std::fs::read(file()).context("it is not said how to start it")?;
    let written: Written = serde_json::from_slice(&text)?;
    let mut command = Command::new(written.program);
    command.args(written.arguments).envs(written.environment);
    Ok(command)
}

/// Becomes it, as the sidecar of this system. Returns only if that fails.
pub(crate) fn exec(system: System) -> anyhow::Result<()> {
    let mut command = command()?;
    if let Some(into) = logs::read_by_another(system)? {
        match system {
            // Its access log goes where its errors go.
            System::Linkerd => command.stderr(into),
            _ => command.stdout(into),
        };
    }
    let error = command.exec();
    bail!(
        "{} cannot be started: {error}",
        command.get_program().display()
    )
}
