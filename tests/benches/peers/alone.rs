//! One sidecar by itself: how soon it is ready, and what it takes while nothing happens.
//!
//! It is started again and again beside a control plane, from its start until `/ready` answers 200. Its memory
//! is taken twice after it has talked to the whole application: that of the demo's other sidecars, which share the text of
//! their program as on a node with several, decides; that of `shopper`, a file of its own so that its text is not shared,
//! stands beside it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::sleep;
use tulle_runtime::names::containers;
use tulle_sandbox::ObjectKey;
use tulle_tests::{Load, Mesh, thin};

use crate::clocks::{Memory, mib};
use crate::plan::Plan;
use crate::starts::{self, Starts};
use crate::systems::System;

/// Bars: memory of an idle sidecar, and the time until it is ready.
const MEMORY: u64 = 8 << 20;
const READY: Duration = Duration::from_millis(100);
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

/// Starts it and its peers, and says how long that took; whether ours is within the bar.
pub(crate) async fn start(mesh: &Mesh, plan: &Plan) -> anyhow::Result<bool> {
    let mut met = true;
    println!(
        "\n### from exec to `/ready`, milliseconds, median of {} starts (least to most)\n",
        starts::NUMBER
    );
    for (system, namespace) in starts::PLACES {
        if !plan.measures(system) {
            continue;
        }
        let measured = starts_of(mesh, namespace).await?;
        let name = system.describe();
        if system == System::Tulle {
            println!("- {name}, a new pod: {}", measured.new.show());
            let median = Duration::from_secs_f64(measured.new.median() / 1000.0);
            met = within(median <= READY, &format!("{READY:?}"));
        }
        println!("- {name}, its files in place: {}", measured.again.show());
    }
    Ok(met)
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

/// Lets it run idle, and says how much memory it takes, alone and among others; whether the latter is within the bar.
pub(crate) async fn idle(mesh: &Mesh) -> anyhow::Result<bool> {
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
    let typical = shared
        .get(shared.len() / 2)
        .context("no other sidecar runs")?;
    let bar = format!("{} MiB", MEMORY >> 20);
    println!(
        "memory of an idle sidecar, MiB:\n  \
         as on a node with several, which share their program text ({} of them, the median): {}",
        shared.len(),
        show(*typical)
    );
    let met = within(typical.pss <= MEMORY, &bar);
    let alone = alone.with_context(|| format!("the sidecar of {MEASURED} does not run"))?;
    println!(
        "  alone with its program text ({MEASURED}): {}",
        show(alone)
    );
    within(alone.pss <= MEMORY, &bar);
    Ok(met)
}

fn show(memory: Memory) -> String {
    format!(
        "PSS {:.2}, of which {:.2} are its own data; RSS {:.2}",
        mib(memory.pss),
        mib(memory.anonymous),
        mib(memory.rss)
    )
}

fn within(met: bool, bar: &str) -> bool {
    let side = if met { "within" } else { "OVER" };
    println!("  {side} the bar of {bar}");
    met
}
