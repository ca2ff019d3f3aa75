//! What a sidecar costs: CPU a request, beside a bare pair of the same crates; memory while idle; time until it is ready.
//!
//! `cargo bench -p tulle-tests --bench cost [-- start] [idle] [http1] [http2] [echo] [bulk] [--rounds N]`. A load generator and a server, each in a pod, in
//! four namespaces that take turns: without sidecars, with a bare pair ([`bare`]), with `tulle-proxy` as it is injected,
//! and with its access log off. The same kernel rules capture for all of them. This file says who runs what; `measure`
//! reads the clocks and refuses where anything went wrong; `report` does the sums; `alone` is about memory and time.

mod alone;
mod bare;
mod load;
mod measure;
mod report;
mod serve;
mod starts;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_tests::thin;

use load::Kind;
use measure::{Rounds, Variant};

/// Rounds unless `--rounds` says otherwise.
const ROUNDS: usize = 5;

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
        bench(&arguments[1..])
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
        [starts::ROLE] => Some(starts::run()),
        ["proxy", "run"] => Some(sidecar()),
        _ => None,
    }
}

/// Becomes what is to run in the place of the sidecar.
fn sidecar() -> anyhow::Result<()> {
    let env = Env::process();
    let namespace = env.text(variables::POD_NAMESPACE);
    if namespace == Some(Variant::Bare.namespace()) {
        bare::run(env)
    } else if namespace == Some(starts::NAMESPACE) {
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

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let Plan {
        start,
        idle,
        kinds,
        rounds,
    } = Plan::parse(arguments)?;
    tulle_tests::with_mesh(async |mesh| {
        thin::install()?;
        let mut met = true;
        if start {
            met &= alone::start(mesh).await?;
        }
        if !kinds.is_empty() {
            let measured = Rounds::run(mesh, &kinds, rounds).await?;
            print!("{}", report::render(&measured)?);
        }
        if idle {
            met &= alone::idle(mesh).await?;
        }
        ensure!(met, "not within every bar");
        Ok(())
    })
}

/// What to measure.
struct Plan {
    start: bool,
    idle: bool,
    kinds: Vec<Kind>,
    rounds: usize,
}

impl Plan {
    /// Everything unless some of it is named; `--bench` comes from cargo.
    fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let (mut start, mut idle, mut kinds, mut rounds) = (false, false, Vec::new(), ROUNDS);
        let mut words = arguments.iter().filter(|word| *word != "--bench");
        while let Some(word) = words.next() {
            match word.as_str() {
                "--rounds" => {
                    let number = words.next().context("--rounds takes a number")?;
                    rounds = number.parse().context("--rounds takes a number")?;
                }
                "start" => start = true,
                "idle" => idle = true,
                word => {
                    let known = Kind::ALL.into_iter().find(|kind| kind.name() == word);
                    let names = Kind::ALL.map(Kind::name).join(", ");
                    kinds.push(known.with_context(|| {
                        format!("{word} cannot be measured, only start, idle, {names}")
                    })?);
                }
            }
        }
        if !start && !idle && kinds.is_empty() {
            (start, idle) = (true, true);
            kinds.extend(Kind::ALL);
        }
        Ok(Self {
            start,
            idle,
            kinds,
            rounds: rounds.max(1),
        })
    }
}
