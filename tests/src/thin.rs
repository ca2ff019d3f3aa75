//! The thin program `tulle-proxy`, built and put where pods can start it: what figures are taken from.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_runtime::env::Env;

/// Where pods find it. `/run` is the node's own memory, readable by every user of every pod.
const PLACE: &str = "/run/tulle-thin";

/// Builds it as it is released, unless one is given, and installs it. To be called in a node.
pub fn install(given: Option<&Path>) -> anyhow::Result<()> {
    let built = given.map_or_else(build, |given| Ok(given.to_owned()))?;
    install_file(&built, "tulle-proxy")?;
    Ok(())
}

/// Installs a second file of it: a process of this one shares no memory with those of the other.
pub fn install_copy(name: &str) -> anyhow::Result<PathBuf> {
    install_file(&place(), name)
}

/// Installs another program beside it.
pub fn install_file(program: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(PLACE).join(name);
    std::fs::create_dir_all(PLACE)?;
    copy(program, &path)?;
    Ok(path)
}

/// Where it is.
#[must_use]
pub fn place() -> PathBuf {
    Path::new(PLACE).join("tulle-proxy")
}

/// Becomes it, as the sidecar. Returns only if that fails.
pub fn exec() -> anyhow::Result<()> {
    exec_as(&place())
}

/// Becomes a copy of it.
pub fn exec_as(program: &Path) -> anyhow::Result<()> {
    let error = command(program).exec();
    Err(error).with_context(|| format!("{} cannot be started", program.display()))
}

/// How a copy of it is started, as the sidecar.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("run");
    command
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("{} cannot be written", to.display()))?;
    let everybody = std::fs::Permissions::from_mode(0o755);
    Ok(std::fs::set_permissions(to, everybody)?)
}

/// The folder in which cargo has built a program, by cargo's own mark. A relative `CARGO_TARGET_DIR` means another one here,
/// and everything would be built twice.
#[must_use]
pub fn target_dir(program: &Path) -> Option<PathBuf> {
    let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    program.ancestors().find(marked).map(Path::to_owned)
}

fn build() -> anyhow::Result<PathBuf> {
    let env = Env::process();
    let output = Command::new(env.text("CARGO").unwrap_or("cargo"))
        .args(["build", "--release", "--package", "tulle-proxy"])
        .args(["--bin", "tulle-proxy", "--message-format", "json"])
        .args(
            target_dir(&std::env::current_exe()?)
                .map(|dir| format!("--target-dir={}", dir.display())),
        )
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    ensure!(output.status.success(), "tulle-proxy cannot be built");
    let messages = String::from_utf8(output.stdout)?;
    let built = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == "tulle-proxy";
        message["executable"]
            .as_str()
            .filter(|_| ours)
            .map(PathBuf::from)
    });
    built.context("cargo did not say where tulle-proxy is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_built_where_this_program_was() {
        let work = tempfile::tempdir().expect("a directory");
        let target = work.path().join("target");
        std::fs::create_dir_all(target.join("debug/deps")).expect("writable");
        let program = target.join("debug/deps/sandbox-1");
        assert_eq!(target_dir(&program), None, "nobody says that it is cargo's");
        std::fs::write(target.join("CACHEDIR.TAG"), "").expect("writable");
        assert_eq!(target_dir(&program), Some(target));
    }
}
