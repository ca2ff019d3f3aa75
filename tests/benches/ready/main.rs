//! How much later a pod is ready with a sidecar: beside the same pod with containers in the sidecar's places that do nothing,
//! and beside the bare pod. On a real cluster of one node, by turns.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use tokio::runtime::Builder;
use tulle_cluster::{Cluster, Image, find};
use tulle_tests::kubernetes::{Namespace, install};

/// By how much a pod may be ready later than with containers that do nothing.
const TARGET: Duration = Duration::from_millis(300);
/// The image of programs that do nothing.
const NOTHING: &str = "tulle.test/nothing:1";

/// Measures how much later a pod is ready with a sidecar, on a real cluster; fails where it is more than 300 ms (median) later than
/// with a no-op init container and a no-op native sidecar in the same places. As root, after ./tests/run has built the cluster.
#[derive(Debug, Parser)]
struct Options {
    /// Pods of each sort
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// A sort of pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Bare,
    Nothing,
    Meshed,
}

impl Sort {
    const ALL: [Self; 3] = [Self::Bare, Self::Nothing, Self::Meshed];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Nothing => "no-op",
            Self::Meshed => "meshed",
        }
    }

    /// What stands before its container.
    fn init(self) -> &'static str {
        match self {
            Self::Bare | Self::Meshed => "",
            Self::Nothing => {
                "  initContainers:\n  \
                 - { name: capture, image: \"tulle.test/nothing:1\", command: [\"true\"] }\n  \
                 - { name: sidecar, image: \"tulle.test/nothing:1\", command: [sleep, \"3600\"], restartPolicy: Always }\n"
            }
        }
    }

    fn manifest(self, name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  terminationGracePeriodSeconds: 0\n{}  \
             containers:\n  - {{ name: app, image: \"{NOTHING}\", command: [sleep, \"3600\"] }}\n",
            self.init()
        )
    }
}

fn main() -> ExitCode {
    if let Some(status) = tulle_tests::as_tulle() {
        return status;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let mut image = Image::new(NOTHING, &["sleep", "3600"]);
    for program in ["sleep", "true"] {
        image = image.program(find(program).with_context(|| format!("there is no {program}"))?);
    }
    cluster.load(&image)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let small = ["control.replicas=1", "injector.replicas=1"];
    runtime.block_on(install::install(&cluster, &small))?;
    let first = Sort::Bare.manifest("first");
    let meshed = Namespace::apply(&cluster, "meshed", "tulle.dev/inject=enabled", &first);
    let meshed = runtime.block_on(meshed)?;
    let plain = runtime.block_on(Namespace::apply(&cluster, "plain", "", &first))?;
    let mut times = Sort::ALL.map(|_| Vec::new());
    for round in 0..options.rounds {
        for (sort, times) in Sort::ALL.into_iter().zip(&mut times) {
            let namespace = if sort == Sort::Meshed {
                &meshed
            } else {
                &plain
            };
            let name = format!("{}-{round}", sort.name());
            times.push(until_ready(namespace, &sort.manifest(&name), &name)?);
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    let [bare, nothing, meshed] = times.map(median);
    println!(
        "median of {}: bare {bare:?}, no-op {nothing:?}, meshed {meshed:?}",
        options.rounds
    );
    println!(
        "meshed is {:?} later than bare",
        meshed.saturating_sub(bare)
    );
    let later = meshed.saturating_sub(nothing);
    println!("meshed is {later:?} later than no-op; target {TARGET:?}");
    ensure!(later <= TARGET, "the target is missed");
    Ok(())
}

/// Makes a pod, and waits until it is ready; how long that took, kubectl included.
fn until_ready(namespace: &Namespace<'_>, manifest: &str, name: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    namespace.ask(["create", "-f", "-"], manifest)?;
    let pod = format!("pod/{name}");
    namespace.ask(["wait", "--for=condition=Ready", &pod, "--timeout=60s"], "")?;
    let took = begun.elapsed();
    namespace.ask(["delete", &pod, "--now", "--wait=true"], "")?;
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
