//! What to measure, from the command line.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use tulle_tests::thin;

use crate::load::Kind;
use crate::systems::System;

/// Measures the sidecar beside what a user would pick instead, in the same topology.
#[derive(Debug, Parser)]
#[command(name = "peers")]
pub(crate) struct Plan {
    /// What to measure; everything unless some of it is named.
    #[arg(value_enum)]
    pub(crate) cells: Vec<Cell>,
    /// Whom to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = System::USUAL)]
    pub(crate) systems: Vec<System>,
    /// How often each takes its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// How long one measurement counts, in milliseconds.
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u64).range(100..))]
    pub(crate) window: u64,
    /// One short round, to see whether everything runs. No figure of it means anything.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Leave it to the kernel where processes run, instead of giving the sidecars one core and the load others.
    #[arg(long)]
    pub(crate) no_pin: bool,
    /// Where to write the report as JSON; beside this program unless named.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// An Envoy to measure instead of the one that is fetched.
    #[arg(long)]
    pub(crate) envoy: Option<PathBuf>,
    /// A ztunnel to measure as well. It must prefer AES-128-GCM as all others do, which a released one does not. It knows
    /// layer 4 alone and tunnels connections through HTTP/2 CONNECT: a column to read with that in mind, and no target.
    #[arg(long)]
    pub(crate) ztunnel: Option<PathBuf>,
    /// A linkerd2-proxy to measure as well: a column beside the others, and no target.
    #[arg(long)]
    pub(crate) linkerd: Option<PathBuf>,
    /// A `tulle-proxy` to measure instead of the one that is built.
    #[arg(long)]
    pub(crate) proxy: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cell {
    /// HTTP/1.1 on connections that stay, for each CPU-second.
    Http1,
    /// HTTP/2, for each CPU-second.
    Http2,
    /// Unary gRPC, for each CPU-second.
    Grpc,
    /// Opaque TCP there and back, for each CPU-second.
    Echo,
    /// Opaque TCP in bulk, for each CPU-second.
    Bulk,
    /// Connections with their handshakes, for each CPU-second.
    Connect,
    /// Latency at a fixed rate, of the loads that are measured and have one.
    Latency,
    /// System calls, of the loads that are measured.
    Syscalls,
    /// Memory before anything was carried.
    Memory,
    /// Memory while thousands of connections are held.
    Held,
    /// Time until a sidecar is ready.
    Start,
    /// Memory once everything was carried, and of ours in a mesh that has more to it.
    Idle,
}

/// What a run is to measure, of what there are targets for.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) costs: Vec<Kind>,
    pub(crate) latency: Vec<Kind>,
    pub(crate) memory: bool,
    pub(crate) held: bool,
    pub(crate) start: bool,
    pub(crate) idle: bool,
}

impl Cell {
    fn kind(self) -> Option<Kind> {
        Some(match self {
            Self::Http1 => Kind::Http1,
            Self::Http2 => Kind::Http2,
            Self::Grpc => Kind::Grpc,
            Self::Echo => Kind::Echo,
            Self::Bulk => Kind::Bulk,
            Self::Connect => Kind::Connect,
            Self::Latency
            | Self::Syscalls
            | Self::Memory
            | Self::Held
            | Self::Start
            | Self::Idle => return None,
        })
    }
}

impl Plan {
    pub(crate) fn read() -> Self {
        let mut plan = Self::parse();
        if plan.quick {
            (plan.rounds, plan.window) = (1, 300);
        }
        for (system, given, option) in [
            (System::Linkerd, plan.linkerd.is_some(), "--linkerd"),
            (System::Ztunnel, plan.ztunnel.is_some(), "--ztunnel"),
        ] {
            if given {
                plan.systems.push(system);
            } else if plan.measures(system) {
                let name = system.namespace();
                let what = format!("{name} is measured where {option} names a binary of it");
                Self::command()
                    .error(ErrorKind::MissingRequiredArgument, what)
                    .exit();
            }
        }
        plan.systems.sort();
        plan.systems.dedup();
        plan
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_millis(self.window)
    }

    pub(crate) fn measures(&self, system: System) -> bool {
        self.systems.contains(&system)
    }

    /// Whether this is wanted.
    pub(crate) fn wants(&self, cell: Cell) -> bool {
        self.cells.is_empty() || self.cells.contains(&cell)
    }

    /// The loads whose costs are wanted.
    pub(crate) fn costs(&self) -> Vec<Kind> {
        let named: Vec<_> = self.cells.iter().filter_map(|cell| cell.kind()).collect();
        if !named.is_empty() {
            return named;
        }
        let needs_some = [Cell::Latency, Cell::Syscalls];
        if self.cells.is_empty() || self.cells.iter().any(|cell| needs_some.contains(cell)) {
            return Kind::COSTS.to_vec();
        }
        Vec::new()
    }

    /// Where the report goes as JSON: a place that there is before anything is measured.
    pub(crate) fn place(&self) -> anyhow::Result<PathBuf> {
        let place = match &self.json {
            Some(place) => place.clone(),
            None => {
                let program = std::env::current_exe()?;
                let target = thin::target_dir(&program).with_context(|| {
                    format!(
                        "{} lies in no target directory of cargo, so there is no place for the report: run it as `cargo bench -p \
                         tulle-tests --bench peers`, or name a file with --json",
                        program.display()
                    )
                })?;
                target.join("peers.json")
            }
        };
        let file = File::options().create(true).append(true).open(&place);
        file.with_context(|| format!("{} cannot be written", place.display()))?;
        Ok(place)
    }

    /// What is to be judged.
    pub(crate) fn wanted(&self) -> Wanted {
        let costs = self.costs();
        let paced = |kind: &&Kind| self.wants(Cell::Latency) && Kind::PACED.contains(kind);
        Wanted {
            latency: costs.iter().filter(paced).copied().collect(),
            costs,
            memory: self.wants_pods(),
            held: self.wants(Cell::Held),
            start: self.wants(Cell::Start),
            idle: self.wants(Cell::Idle),
        }
    }

    /// Whether anything between two pods is wanted.
    pub(crate) fn wants_pods(&self) -> bool {
        let pods = [Cell::Memory, Cell::Held, Cell::Idle];
        !self.costs().is_empty() || pods.into_iter().any(|cell| self.wants(cell))
    }
}
