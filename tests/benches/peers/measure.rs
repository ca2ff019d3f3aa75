//! Sends the loads by turns, and reads the clocks of the sidecars while they carry them.
//!
//! Every round gives every system one turn, and every round begins with another of them. A system that gets anything wrong
//! is refused for that load: there is no figure of it, only the reason.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;
use tulle_tests::Mesh;

use crate::clocks::{Clocks, Memory, Used};
use crate::cores::Cores;
use crate::load::{self, Counted, Kind, Order};
use crate::plan::Plan;
use crate::systems::{CLIENT, Pods, System};
use crate::wire::Wire;

/// How long the load generator may take for a word.
const WORD: Duration = Duration::from_secs(150);

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    #[serde(flatten)]
    pub(crate) counted: Counted,
    /// What both sidecars used.
    #[serde(flatten)]
    pub(crate) used: Used,
    /// What both sidecars had at the end.
    pub(crate) memory: Memory,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.counted.units / self.counted.seconds
    }

    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.counted.units / self.used.cpu
    }
}

/// What was measured of a system under a load: a sample of each round, or nothing and why.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) system: System,
    pub(crate) refused: Option<String>,
    pub(crate) samples: Vec<Sample>,
}

/// A load under which all were measured.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    /// Requests a second, if that was fixed.
    pub(crate) rate: Option<f64>,
    pub(crate) columns: Vec<Column>,
}

impl Measured {
    pub(crate) fn column(&self, system: System) -> Option<&Column> {
        let mut columns = self.columns.iter();
        columns.find(|column| column.system == system && column.refused.is_none())
    }
}

/// The pods of all systems.
pub(crate) struct Arenas<'a> {
    pub(crate) all: Vec<Pods<'a>>,
    cores: Option<Cores>,
    /// Whose handshakes on which ports have been seen.
    seen: BTreeSet<(System, u16)>,
}

impl<'a> Arenas<'a> {
    pub(crate) async fn bring_up(
        mesh: &'a Mesh,
        plan: &Plan,
        cores: Option<Cores>,
    ) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for system in &plan.systems {
            let pods = Pods::bring_up(mesh, *system, cores.as_ref()).await;
            all.push(pods.with_context(|| format!("{} does not run", system.describe()))?);
        }
        Ok(Self {
            all,
            cores,
            seen: BTreeSet::new(),
        })
    }

    /// Measures every kind of load in every round.
    pub(crate) async fn costs(&mut self, plan: &Plan, kinds: &[Kind]) -> Vec<Measured> {
        let mut measured: Vec<_> = kinds.iter().map(|kind| self.nothing(*kind, None)).collect();
        for round in 0..plan.rounds as usize {
            for one in &mut measured {
                self.round(one, round, plan).await;
            }
        }
        measured
    }

    fn nothing(&self, kind: Kind, rate: Option<f64>) -> Measured {
        // Nobody shakes hands where there are no sidecars.
        let systems = self.all.iter().map(|pods| pods.system);
        let systems = systems.filter(|system| kind != Kind::Connect || *system != System::Plain);
        let column = |system| Column {
            system,
            refused: None,
            samples: Vec::new(),
        };
        Measured {
            kind,
            rate,
            columns: systems.map(column).collect(),
        }
    }

    /// Gives everyone a turn.
    async fn round(&mut self, measured: &mut Measured, round: usize, plan: &Plan) {
        let number = measured.columns.len();
        for turn in 0..number {
            let (kind, rate) = (measured.kind, measured.rate);
            let column = &mut measured.columns[(turn + round) % number];
            if column.refused.is_some() {
                continue;
            }
            let what = format!("{} over {}", kind.name(), column.system.describe());
            let rate = rate.map(|rate| (rate, round as u64));
            match self.sample(column.system, kind, plan.window(), rate).await {
                Ok(sample) => {
                    let (round, rounds) = (round + 1, plan.rounds);
                    let rate = sample.per_second();
                    eprintln!("round {round} of {rounds}: {what}: {rate:.0} a second");
                    column.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("REFUSED {what}: {error:#}");
                    column.samples.clear();
                    column.refused = Some(format!("{error:#}"));
                }
            }
        }
    }

    pub(crate) async fn sample(
        &mut self,
        system: System,
        kind: Kind,
        window: Duration,
        rate: Option<(f64, u64)>,
    ) -> anyhow::Result<Sample> {
        let pods = self.all.iter().find(|pods| pods.system == system);
        let pods = pods.context("it does not run")?;
        let wire = Wire::listen(pods.server_ip, kind.port())?;
        let mut load = Running::start(pods, kind, window, rate, self.cores.as_ref())?;
        load.word("begin").await?;
        let before = Clocks::read(&pods.sidecars)?;
        let hellos = wire.seen()?;
        let end = load.word("end ").await?;
        let used = Clocks::read(&pods.sidecars)?.since(&before)?;
        let memory = Memory::sum(&pods.sidecars)?;
        load.stop().await?;
        let counted: Counted = serde_json::from_str(&end)?;
        if let Some(error) = counted.errors.first() {
            bail!("the load met an error: {error}");
        }
        ensure!(counted.units > 0.0, "nothing was carried");
        for hello in &hellos {
            ensure!(system != System::Plain, "a handshake without a proxy");
            hello.check()?;
        }
        let key = (system, kind.port());
        if !hellos.is_empty() {
            self.seen.insert(key);
        }
        ensure!(
            system == System::Plain || self.seen.contains(&key),
            "no handshake of the sidecars was seen"
        );
        Ok(Sample {
            counted,
            used,
            memory,
        })
    }
}

/// A load generator that runs.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(
        pods: &Pods<'_>,
        kind: Kind,
        window: Duration,
        rate: Option<(f64, u64)>,
        cores: Option<&Cores>,
    ) -> anyhow::Result<Self> {
        let order = Order {
            kind,
            address: pods.address(kind),
            window,
            rate,
            cores: cores.map(|cores| cores.load.clone()),
        };
        let order = serde_json::to_string(&order)?;
        let mut child = pods.arena.spawn(CLIENT, ["tulle", load::ROLE, &order])?;
        let output = child.stdout.take().context("the load has no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(output).lines(),
        })
    }

    /// The rest of the line that begins with `begin`.
    async fn word(&mut self, begin: &str) -> anyhow::Result<String> {
        let line = timeout(WORD, self.lines.next_line()).await??;
        let Some(line) = line else {
            let mut why = String::new();
            if let Some(mut stderr) = self.child.stderr.take() {
                stderr.read_to_string(&mut why).await?;
            }
            bail!("the load ended: {}", why.trim());
        };
        let rest = line.strip_prefix(begin);
        Ok(rest
            .with_context(|| format!("the load said {line}"))?
            .to_owned())
    }

    /// Ends the load by the end of its input.
    async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        timeout(WORD, self.child.wait()).await??;
        Ok(())
    }
}
