//! What a sidecar costs beside its peers, in the same topology: no proxy, a bare pair of the same crates, Envoy, and ztunnel
//! where a binary of it is given.
//!
//! `cargo bench -p tulle-tests --bench peers [-- CELLS] [--systems ...] [--ztunnel PATH] [--rounds N] [--quick]`. A load generator and a
//! server, each in a pod, in a namespace for each system; the same kernel rules capture for all, all get their certificates
//! from the same CA and agree on the same cryptography, and they take turns. This file says who runs what; `systems` brings
//! the pods up, `load` and `serve` are the ends, `bare`, `envoy` and `ztunnel` are the peers, `measure` reads the clocks and refuses where
//! anything went wrong, `report` and `targets` do the sums; `alone` is about one sidecar by itself.

mod alone;
mod bare;
mod clocks;
mod cores;
mod envoy;
mod head;
mod load;
mod measure;
mod plan;
mod probe;
mod report;
mod serve;
mod spread;
mod starts;
mod syscalls;
mod systems;
mod targets;
mod who;
mod wire;
mod ztunnel;

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_tests::{Mesh, thin};

use cores::Cores;
use head::Head;
use measure::Arenas;
use plan::{Cell, Plan};
use report::Results;
use systems::System;

fn main() -> ExitCode {
    // Before any thread exists: this process may be one that prepares a container.
    tulle_sandbox::dispatch();
    let arguments: Vec<String> = std::env::args().collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    let result = if program.is_some_and(|name| name == "tulle") {
        match role(&arguments[1..]) {
            Some(result) => result,
            None => return tulle_cli::main(),
        }
    } else {
        bench()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What this program does in a pod; `None`: what `tulle` does.
fn role(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [serve::ROLE] => Some(serve::run()),
        [load::ROLE, ..] => Some(load::run(&arguments[1..])),
        [starts::ROLE, namespace] => Some(starts::run(namespace)),
        [probe::ROLE, server, namespace] => Some(probe::run(server, namespace)),
        [envoy::PASS] => Some(envoy::pass()),
        ["proxy", "run"] => Some(sidecar()),
        _ => None,
    }
}

/// Becomes what is to run in the place of the sidecar.
fn sidecar() -> anyhow::Result<()> {
    let env = Env::process();
    let namespace = env.text(variables::POD_NAMESPACE).unwrap_or_default();
    if namespace == System::Bare.namespace() {
        bare::run(env)
    } else if namespace == System::Envoy.namespace() {
        envoy::run(env)
    } else if namespace == System::Ztunnel.namespace() {
        ztunnel::run(env)
    } else if namespace == System::Quiet.namespace() {
        thin::exec_as(&thin::place().with_file_name(System::Quiet.namespace()))
    } else if let Some((system, _)) = starts::PLACES.iter().find(|(_, place)| *place == namespace) {
        if *system == System::Envoy {
            envoy::prepare(env)?;
        }
        // Its place is kept for the sidecars that are started there.
        loop {
            std::thread::park();
        }
    } else if env.text(variables::POD_NAME) == Some(alone::MEASURED) {
        alone::measured()
    } else {
        thin::exec()
    }
}

fn bench() -> anyhow::Result<()> {
    let plan = Plan::read();
    cores::want_descriptors();
    // Outside of the node, which has no way to fetch anything.
    let envoy = plan.measures(System::Envoy);
    let envoy = envoy.then(|| envoy::find(plan.envoy.as_deref()));
    let envoy = envoy.transpose()?;
    let ztunnel = plan.ztunnel.as_deref();
    let version = ztunnel.map(ztunnel::version).transpose()?;
    tulle_tests::with_mesh(async |mesh| {
        thin::install(plan.proxy.as_deref())?;
        if let Some(envoy) = &envoy {
            envoy::install(envoy)?;
        }
        if let Some(ztunnel) = ztunnel {
            ztunnel::install(ztunnel)?;
        }
        if plan.measures(System::Quiet) {
            thin::install_copy(System::Quiet.namespace())?;
        }
        let cores = (!plan.no_pin).then(Cores::divide).transpose()?;
        if let Some(cores) = &cores {
            cores::keep_self(&cores.others()?)?;
        }
        let mut results = Results {
            head: Head::of(&plan, cores.clone(), envoy.as_deref(), version),
            systems: plan.systems.clone(),
            ..Results::default()
        };
        measure(mesh, &plan, cores, &mut results).await?;
        results.judge();
        println!("{}", results.render());
        eprintln!("as JSON: {}", results.save(plan.json.as_deref())?.display());
        let (refused, missed) = (results.refused(), results.missed());
        ensure!(refused == 0, "{refused} measurements were refused");
        ensure!(missed == 0 || plan.quick, "{missed} targets were missed");
        Ok(())
    })
}

/// Measures everything that is wanted.
async fn measure(
    mesh: &Mesh,
    plan: &Plan,
    cores: Option<Cores>,
    results: &mut Results,
) -> anyhow::Result<()> {
    if plan.wants(Cell::Start) {
        results.starts = alone::start(mesh, plan).await?;
    }
    if plan.wants_pods() {
        let mut arenas = Arenas::bring_up(mesh, plan, cores).await?;
        results.head.tls = Some(arenas.probe().await?);
        results.idle = arenas.idle().await?;
        let kinds = plan.costs();
        results.costs = arenas.costs(plan, &kinds).await;
        if plan.wants(Cell::Latency) {
            results.latency = arenas.latency(plan, &results.costs).await;
        }
        if plan.wants(Cell::Syscalls) {
            results.syscalls = arenas.traced(plan, &kinds).await;
            if results.syscalls.is_empty() {
                let note =
                    "System calls were not counted: that takes `perf`, and the right to use it.";
                results.notes.push(note.to_owned());
            }
        }
        if plan.wants(Cell::Held) {
            results.held = Some(arenas.held(plan).await);
        }
        if !kinds.is_empty() {
            results.notes.extend(arenas.logs().await?);
        }
    }
    if plan.wants(Cell::Idle) {
        results.demo = Some(alone::idle(mesh).await?);
    }
    Ok(())
}
