//! One sidecar by itself: how soon it is ready, and what it takes while nothing happens.
//!
//! It is started again and again beside a control plane, from its start until `/ready` answers 200. Its memory
//! is taken twice after it has talked to the whole application: that of the demo's other sidecars, which share the text of
//! their program as on a node with several, decides; that of `shopper`, a file of its own so that its text is not shared,
//! stands beside it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tokio::time::sleep;
use tulle_runtime::names::containers;
use tulle_sandbox::ObjectKey;
use tulle_tests::{Load, Mesh, thin};

use crate::clocks::{Memory, mib};
use crate::plan::Plan;
use crate::spread::Spread;
use crate::starts::{self, Starts};
use crate::systems::System;

/// How long pods may take to come up.
const BUILD_UP: Duration = Duration::from_secs(40);
/// How long the sidecar is left alone before it is looked at.
const IDLE: Duration = Duration::from_secs(3);
/// The pod whose memory is measured.
pub(crate) const MEASURED: &str = "shopper";

/// What the sidecar of [`MEASURED`] becomes.
pub(crate) fn measured() -> anyhow::Result<()> {
    thin::exec_as(&thin::place().with_file_name(MEASURED))
}

/// Starts it and its peers again and again.
pub(crate) async fn start(mesh: &Mesh, plan: &Plan) -> anyhow::Result<Vec<(System, Starts)>> {
    let mut measured = Vec::new();
    for (system, namespace) in starts::PLACES {
        if plan.measures(system) {
            eprintln!("starting {}", system.describe());
            measured.push((system, starts_of(mesh, namespace).await?));
        }
    }
    Ok(measured)
}

async fn starts_of(mesh: &Mesh, namespace: &str) -> anyhow::Result<Starts> {
    mesh.sandbox
        .apply(namespace, &starts::manifests(namespace))?;
    let running = |pod: &tulle_sandbox::PodView| {
        let ours = pod.key.namespace == namespace;
        let sidecar = pod.container(containers::PROXY);
        ours && sidecar.is_some_and(|sidecar| sidecar.pid.is_some())
    };
    mesh.sandbox
        .wait_until(BUILD_UP, |pods| pods.iter().any(running))
        .await?;
    let pod = mesh.sandbox.pods().into_iter().find(running);
    let pod = pod.context("the pod is gone")?.key;
    let output = mesh
        .sandbox
        .exec(
            &pod,
            Some(containers::PROXY),
            ["tulle", starts::ROLE, namespace],
        )
        .await?;
    ensure!(
        output.status == 0,
        "no start in {namespace}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    mesh.sandbox.remove(namespace)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Lets it run idle, and takes its memory, alone and among others.
pub(crate) async fn idle(mesh: &Mesh) -> anyhow::Result<Idle> {
    eprintln!("bringing up the demo's application");
    thin::install_copy(MEASURED)?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let mut files: Vec<_> = std::fs::read_dir(&demo)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "yaml"))
    {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        mesh.sandbox.apply(&name, &std::fs::read_to_string(file)?)?;
    }
    mesh.sandbox.wait_ready(BUILD_UP).await?;
    let shopper = ObjectKey::new("shop", MEASURED);
    for (url, more) in [
        ("http://web/", &[][..]),
        ("http://reviews/", &[]),
        ("grpc://ledger:9000", &[]),
        ("tcp://greeter:2525", &["--server-first"]),
    ] {
        let load = Load::start(&mesh.sandbox, &shopper, url, 200, 2.0, more)?;
        let summary = load.summary().await?;
        ensure!(summary.failed == 0, "{url}: {}", summary.line());
    }
    sleep(IDLE).await;
    let (mut alone, mut shared) = (None, Vec::new());
    for pod in mesh.sandbox.pods() {
        let Some(sidecar) = pod.container(containers::PROXY) else {
            continue;
        };
        let pid = sidecar.pid.context("a sidecar does not run")?;
        let memory = Memory::of(pid)?;
        if pod.key == shopper {
            alone = Some(memory);
        } else if pod.key.namespace == shopper.namespace {
            shared.push(memory);
        }
    }
    shared.sort_by_key(|memory| memory.pss);
    ensure!(!shared.is_empty(), "no other sidecar runs");
    Ok(Idle {
        among_others: shared,
        alone: alone.with_context(|| format!("the sidecar of {MEASURED} does not run"))?,
    })
}

/// Memory of an idle sidecar that has talked to a whole application.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    /// Those that share their program text, by what they have.
    pub(crate) among_others: Vec<Memory>,
    /// One by itself.
    pub(crate) alone: Memory,
}

impl Idle {
    /// MiB of those among others.
    pub(crate) fn pss(&self) -> Spread {
        self.spread(|memory| memory.pss)
    }

    pub(crate) fn spread(&self, value: fn(&Memory) -> u64) -> Spread {
        Spread::of(self.among_others.iter().map(|memory| mib(value(memory))))
    }
}
