//! What a sidecar costs beside its peers, in the same topology: no proxy, a bare pair of the same crates, Envoy, and
//! linkerd2-proxy and ztunnel where a binary is given.
//!
//! `cargo bench -p tulle-tests --bench peers [-- CELLS] [--systems ...] [--linkerd PATH] [--ztunnel PATH] [--rounds N]
//! [--quick]`. A load generator and a server, each in a pod, in a namespace for each system; the same kernel rules capture
//! for all, all get certificates of one kind and agree on the same cryptography, and they take turns. This file says who
//! runs what; `systems` brings the pods up, `load` and `serve` are the ends, `bare`, `envoy`, `linkerd` and `ztunnel` are
//! the peers, `measure` reads the clocks and refuses where anything went wrong, `report` and `targets` do the sums; `alone`
//! is about one sidecar by itself.

mod again;
mod alone;
mod bare;
mod clocks;
mod cores;
mod envoy;
mod head;
mod linkerd;
mod load;
mod logs;
mod measure;
mod plan;
mod probe;
mod profile;
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

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_tests::{Mesh, thin};

use cores::Cores;
use head::{Head, Versions};
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
        [logs::ROLE, mark, must, file] => Some(logs::run(mark, must, file)),
        [linkerd::ROLE] => Some(linkerd::stand_in()),
        ["proxy", "run"] => Some(sidecar()),
        _ => None,
    }
}

/// Becomes what is to run in the place of the sidecar.
fn sidecar() -> anyhow::Result<()> {
    let env = Env::process();
    let namespace = env.text(variables::POD_NAMESPACE).unwrap_or_default();
    if namespace == System::Tulle.namespace() {
        let mut sidecar = thin::command(&thin::place());
        if let Some(into) = logs::read_by_another(System::Tulle)? {
            sidecar.stdout(into);
        }
        let error = sidecar.exec();
        bail!("the sidecar cannot be started: {error}")
    } else if namespace == System::Bare.namespace() {
        bare::run(env)
    } else if namespace == System::Envoy.namespace() {
        envoy::run(env)
    } else if namespace == System::Linkerd.namespace() {
        linkerd::run(env)
    } else if namespace == System::Ztunnel.namespace() {
        ztunnel::run(env)
    } else if namespace == System::Quiet.namespace() {
        thin::exec_as(&thin::place().with_file_name(System::Quiet.namespace()))
    } else if let Some((system, _)) = starts::PLACES.iter().find(|(_, place)| *place == namespace) {
        match system {
            System::Envoy => envoy::prepare(env)?,
            System::Linkerd => linkerd::prepare(env)?,
            System::Ztunnel => ztunnel::prepare(env)?,
            _ => {}
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
    let place = plan.place()?;
    cores::want_descriptors();
    // Outside of the node, which has no way to fetch anything.
    let envoy = plan.measures(System::Envoy);
    let envoy = envoy.then(|| envoy::find(plan.envoy.as_deref()));
    let envoy = envoy.transpose()?;
    let versions = Versions {
        envoy: envoy.as_deref().map(head::version),
        linkerd: plan.linkerd.as_deref().map(linkerd::version).transpose()?,
        ztunnel: plan.ztunnel.as_deref().map(ztunnel::version).transpose()?,
    };
    tulle_tests::with_mesh(async |mesh| {
        install(&plan, envoy.as_deref())?;
        let cores = (!plan.no_pin).then(Cores::divide).transpose()?;
        if let Some(cores) = &cores {
            cores::keep_self(&cores.others()?)?;
        }
        let mut results = Results {
            head: Head::of(&plan, cores.clone(), versions),
            systems: plan.systems.clone(),
            wanted: plan.wanted(),
            ..Results::default()
        };
        // What was measured before something went wrong is not lost.
        let measured = measure(mesh, &plan, &place, cores, &mut results).await;
        results.ended_by = measured.as_ref().err().map(|error| format!("{error:#}"));
        results.complete = measured.is_ok();
        results.judge();
        println!("{}", results.render());
        results.save(&place)?;
        eprintln!("as JSON: {}", place.display());
        measured?;
        let refused = results.refused();
        ensure!(refused == 0, "{refused} measurements were refused");
        ensure!(results.holds() || plan.quick, "{}", results.verdict);
        Ok(())
    })
}

/// Puts everything that is measured where pods find it.
fn install(plan: &Plan, envoy: Option<&Path>) -> anyhow::Result<()> {
    thin::install(plan.proxy.as_deref())?;
    if let Some(envoy) = envoy {
        envoy::install(envoy)?;
    }
    if let Some(linkerd) = &plan.linkerd {
        linkerd::install(linkerd)?;
    }
    if let Some(ztunnel) = &plan.ztunnel {
        ztunnel::install(ztunnel)?;
    }
    for system in &plan.systems {
        logs::install(*system)?;
    }
    if plan.measures(System::Quiet) {
        thin::install_copy(System::Quiet.namespace())?;
    }
    Ok(())
}

/// Measures everything that is wanted, and writes down what there is after each part.
async fn measure(
    mesh: &Mesh,
    plan: &Plan,
    place: &Path,
    cores: Option<Cores>,
    results: &mut Results,
) -> anyhow::Result<()> {
    if plan.wants(Cell::Start) {
        results.starts = alone::start(mesh, plan).await?;
        results.keep(place);
    }
    if plan.wants_pods() {
        let mut arenas = Arenas::bring_up(mesh, plan, cores).await?;
        let measured = between_pods(&mut arenas, plan, place, results).await;
        results.head.others = arenas.others();
        measured?;
        results.keep(place);
    }
    if plan.wants(Cell::Idle) && plan.measures(System::Tulle) {
        results.demo = Some(alone::idle(mesh).await?);
    }
    Ok(())
}

async fn between_pods(
    arenas: &mut Arenas<'_>,
    plan: &Plan,
    place: &Path,
    results: &mut Results,
) -> anyhow::Result<()> {
    results.head.tls = Some(arenas.probe().await?);
    results.idle = arenas.idle().await?;
    let kinds = plan.costs();
    arenas
        .costs(plan, &kinds, |costs| {
            results.costs = costs.to_vec();
            results.keep(place);
        })
        .await;
    if plan.wants(Cell::Latency) {
        let costs = results.costs.clone();
        arenas
            .latency(plan, &costs, |latency| {
                results.latency = latency.to_vec();
                results.keep(place);
            })
            .await;
    }
    if plan.wants(Cell::Syscalls) {
        results.syscalls = arenas.traced(plan, &kinds).await;
        if results.syscalls.is_empty() {
            let note = "System calls were not counted: that takes `perf`, and the right to use it.";
            results.notes.push(note.to_owned());
        }
        results.keep(place);
    }
    if plan.wants(Cell::Idle) {
        results.rested = arenas.rested(plan, &kinds).await?;
        results.keep(place);
    }
    if plan.wants(Cell::Held) {
        results.held = Some(arenas.held(plan).await);
        results.keep(place);
    }
    results.judge();
    let missed = results.missed();
    if !missed.is_empty() {
        match arenas.profiles(plan, &missed).await {
            Ok(profiles) => results.profiles = profiles,
            Err(error) => results.notes.push(format!(
                "No profile is kept beside what was missed: {error:#}."
            )),
        }
    }
    Ok(())
}
