//! Sends the loads by turns, and reads the clocks of the sidecars while they carry them.
//!
//! Every round gives every system one turn, and every round begins with another of them. A system that gets anything wrong
//! is refused for that load: there is no figure of it, only the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::{sleep, timeout};
use tulle_runtime::names::containers;
use tulle_tests::Mesh;

use crate::bare::PEER;
use crate::clocks::{Clocks, Memory, Rested, Still, Used, mib};
use crate::cores::{Cores, RealTime};
use crate::load::{self, Counted, Kind, Order, Sent};
use crate::logs::Log;
use crate::plan::Plan;
use crate::probe::Found;
use crate::profile::{Profile, Profiler};
use crate::spread::Spread;
use crate::syscalls::Counter;
use crate::systems::{CLIENT, Pods, System};
use crate::targets::Load;
use crate::wire::{Hello, Wire};
use crate::{linkerd, ztunnel};

/// How long the load generator may take for a word.
const WORD: Duration = Duration::from_secs(150);
/// How long sidecars are left alone before their memory is taken.
const IDLE: Duration = Duration::from_secs(3);
/// How often it is taken, and the time between two looks.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// The part of its capacity at which latency is measured.
const LOAD: f64 = 0.3;
/// Latency is measured in many short turns, this many a round: a pause of the machine itself, which is longer than most
/// of what is measured, then spoils a few of them and not the median.
pub(crate) const SHORT_TURNS: u32 = 4;
/// Time for whoever counts system calls to begin and to end.
const COUNTER_STARTS: Duration = Duration::from_millis(800);
/// How often connections are held, at most, and how long they are left alone before memory is taken.
const HELD_ROUNDS: u32 = 3;
/// How often system calls are counted, at most.
const COUNTED_ROUNDS: u32 = 3;
/// How long a profile is taken.
const PROFILE: Duration = Duration::from_secs(10);
const QUICK_PROFILE: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_secs(2);

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
    /// System calls a second of both sidecars, if they were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) syscalls: Option<f64>,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.counted.units / self.counted.seconds
    }

    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.counted.units / self.used.cpu
    }

    /// In a line of progress.
    fn show(&self, kind: Kind) -> String {
        let (rate, p99) = (self.per_second(), self.counted.p99_ms);
        match self.syscalls {
            _ if kind == Kind::Held => format!("{:.0} MiB", mib(self.memory.pss)),
            Some(syscalls) => format!("{:.2} system calls each", syscalls / rate),
            None => format!("{rate:.0} a second, p99 {p99:.2} ms"),
        }
    }
}

/// What was measured of a system under a load: a sample of each round, or nothing and why.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Column {
    pub(crate) system: System,
    pub(crate) refused: Option<String>,
    /// What the samples come to, once they are all there.
    pub(crate) summary: BTreeMap<&'static str, Spread>,
    pub(crate) samples: Vec<Sample>,
}

/// A load under which all were measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    /// Requests a second, if that was fixed.
    pub(crate) rate: Option<f64>,
    pub(crate) columns: Vec<Column>,
}

impl Measured {
    /// What was measured of a system, if it was not refused.
    pub(crate) fn column(&self, system: System) -> Option<&Column> {
        let mut columns = self.columns.iter();
        columns.find(|column| {
            column.system == system && column.refused.is_none() && !column.samples.is_empty()
        })
    }

    /// Ours to another's, round by round.
    pub(crate) fn ratio(&self, other: System, value: fn(&Sample) -> f64) -> Option<Spread> {
        let (ours, other) = (self.column(System::Tulle)?, self.column(other)?);
        Some(ours.ratio(other, value))
    }
}

impl Column {
    /// Does the sums that a program would otherwise have to do.
    pub(crate) fn sum_up(&mut self) {
        if self.samples.is_empty() {
            return;
        }
        let mut summary = BTreeMap::from([
            ("per_second", self.spread(Sample::per_second)),
            ("p50_ms", self.spread(|sample| sample.counted.p50_ms)),
            ("p99_ms", self.spread(|sample| sample.counted.p99_ms)),
        ]);
        if self.system != System::Plain {
            let switches = |sample: &Sample| sample.used.switches / sample.counted.units;
            summary.extend([
                ("per_cpu_second", self.spread(Sample::per_cpu_second)),
                (
                    "cpu_us",
                    self.spread(|sample| 1e6 / sample.per_cpu_second()),
                ),
                ("switches", self.spread(switches)),
                ("pss_bytes", self.spread(|sample| sample.memory.pss as f64)),
                ("rss_bytes", self.spread(|sample| sample.memory.rss as f64)),
            ]);
        }
        if self.samples.iter().all(|sample| sample.syscalls.is_some()) {
            let each = |sample: &Sample| sample.syscalls.unwrap_or_default() / sample.per_second();
            summary.insert("syscalls", self.spread(each));
        }
        self.summary = summary;
    }

    /// This one's to another's, round by round.
    pub(crate) fn ratio(&self, other: &Self, value: fn(&Sample) -> f64) -> Spread {
        let pairs = self.samples.iter().zip(&other.samples);
        Spread::of(pairs.map(|(one, other)| value(one) / value(other)))
    }

    /// Over the rounds.
    pub(crate) fn spread(&self, value: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(value))
    }
}

/// How a load is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner<'a> {
    pub(crate) window: Duration,
    /// Requests a second, if that is fixed.
    pub(crate) rate: Option<f64>,
    /// Which of the possible sequences of times.
    pub(crate) seed: u64,
    pub(crate) counter: Option<&'a Counter>,
}

/// The pods of all systems.
pub(crate) struct Arenas<'a> {
    mesh: &'a Mesh,
    all: Vec<Pods<'a>>,
    cores: Option<Cores>,
    /// Whose last sample was refused: its sidecars may still write lines of it.
    refused: BTreeSet<System>,
    /// The handshakes that have been seen, by whose they were and on which port.
    seen: BTreeMap<(System, u16), BTreeSet<Hello>>,
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
            mesh,
            all,
            cores,
            refused: BTreeSet::new(),
            seen: BTreeMap::new(),
        })
    }

    /// Has the servers' sidecars probed; what all of them offer.
    pub(crate) async fn probe(&self) -> anyhow::Result<Found> {
        let mut same = None;
        for pods in self.all.iter().filter(|pods| pods.system != System::Plain) {
            let found = pods.probe(self.mesh).await;
            if found.is_err() {
                eprintln!("{}", pods.arena.logs(PEER, Some(containers::PROXY))?);
            }
            let found =
                found.with_context(|| format!("{} is not probed", pods.system.describe()))?;
            found.check().with_context(|| pods.system.describe())?;
            same = Some(found);
        }
        same.context("there are no sidecars")
    }

    /// Takes the memory of sidecars that carry nothing, several times.
    pub(crate) async fn idle(&self) -> anyhow::Result<Vec<Still>> {
        sleep(IDLE).await;
        let proxies = self.all.iter().filter(|pods| pods.system != System::Plain);
        let mut idle: Vec<_> = proxies
            .map(|pods| {
                let (system, looks) = (pods.system, Vec::new());
                (pods, Still { system, looks })
            })
            .collect();
        for look in 0..LOOKS {
            if look > 0 {
                sleep(BETWEEN_LOOKS).await;
            }
            for (pods, idle) in &mut idle {
                idle.looks.push(Rested::of(&pods.sidecars)?);
            }
        }
        Ok(idle.into_iter().map(|(_, idle)| idle).collect())
    }

    /// Takes the memory of sidecars that have carried everything and carry nothing any more; a little of it is sent if
    /// nothing was.
    pub(crate) async fn rested(
        &mut self,
        plan: &Plan,
        carried: &[Kind],
    ) -> anyhow::Result<Vec<Still>> {
        if carried.is_empty() {
            let some = [Kind::Http1, Kind::Grpc, Kind::Echo];
            let mut measured = some.map(|kind| self.nothing(kind, None));
            self.rounds(&mut measured, 1, plan.window(), |_| {}).await;
            let refused = measured.iter().flat_map(|one| &one.columns);
            for column in refused {
                if let Some(why) = &column.refused {
                    bail!("{}: {why}", column.system.describe());
                }
            }
        }
        self.idle().await
    }

    /// Who has agreed on something else than it must, and on what.
    pub(crate) fn others(&self) -> Vec<(System, String)> {
        let mut others = BTreeSet::new();
        for ((system, _), seen) in &self.seen {
            let wrong = seen.iter().filter(|hello| hello.check().is_err());
            others.extend(wrong.map(|hello| (*system, hello.to_string())));
        }
        others.into_iter().collect()
    }

    /// Measures every kind of load in every round.
    pub(crate) async fn costs(
        &mut self,
        plan: &Plan,
        kinds: &[Kind],
        keep: impl FnMut(&[Measured]),
    ) {
        let mut measured: Vec<_> = kinds.iter().map(|kind| self.nothing(*kind, None)).collect();
        let window = plan.window();
        self.rounds(&mut measured, plan.rounds, window, keep).await;
    }

    /// Measures at fixed rates: a part of what one core can carry of the slower of ours and Envoy.
    pub(crate) async fn latency(
        &mut self,
        plan: &Plan,
        costs: &[Measured],
        keep: impl FnMut(&[Measured]),
    ) {
        let mut measured = Vec::new();
        for cost in costs.iter().filter(|cost| Kind::PACED.contains(&cost.kind)) {
            let capacities = [System::Tulle, System::Envoy].map(|system| {
                let column = cost.column(system)?;
                Some(column.spread(Sample::per_cpu_second).median)
            });
            let slower = capacities.into_iter().flatten().min_by(f64::total_cmp);
            if let Some(slower) = slower {
                measured.push(self.nothing(cost.kind, Some((slower * LOAD).round())));
            }
        }
        let rounds = plan.rounds.saturating_mul(SHORT_TURNS);
        let window = plan.window() / 2;
        self.rounds(&mut measured, rounds, window, keep).await;
    }

    /// Counts system calls.
    pub(crate) async fn traced(&mut self, plan: &Plan, kinds: &[Kind]) -> Vec<Measured> {
        let Some(counter) = Counter::find().await else {
            return Vec::new();
        };
        let mut measured: Vec<_> = kinds.iter().map(|kind| self.nothing(*kind, None)).collect();
        let manner = Manner {
            window: plan.window() + COUNTER_STARTS,
            counter: Some(&counter),
            ..Manner::default()
        };
        let rounds = plan.rounds.min(COUNTED_ROUNDS);
        for round in 0..rounds {
            for one in &mut measured {
                one.columns.retain(|column| column.system != System::Plain);
                self.round(one, round as usize, rounds, manner).await;
            }
        }
        measured
    }

    /// Takes profiles of ours under these loads, one after the other.
    pub(crate) async fn profiles(
        &self,
        plan: &Plan,
        loads: &[Load],
    ) -> anyhow::Result<Vec<Profile>> {
        let profiler = Profiler::find()?;
        let mut ours = self.all.iter();
        let ours = ours.find(|pods| pods.system == System::Tulle);
        let ours = ours.context("ours does not run")?;
        let time = if plan.quick { QUICK_PROFILE } else { PROFILE };
        let mut profiles = Vec::new();
        for load in loads {
            eprintln!("profile of {load} over {}", ours.system.describe());
            let manner = Manner {
                window: time + COUNTER_STARTS,
                rate: load.rate,
                ..Manner::default()
            };
            let mut running = Running::start(ours, load.kind, manner, self.cores.as_ref())?;
            running.word("begin").await?;
            profiler.record(&ours.sidecars, time).await?;
            running.word("end ").await?;
            running.stop().await?;
            profiles.push(profiler.profile(*load, time).await?);
        }
        Ok(profiles)
    }

    /// Measures memory while connections are held.
    pub(crate) async fn held(&mut self, plan: &Plan) -> Measured {
        let mut measured = [self.nothing(Kind::Held, None)];
        let rounds = plan.rounds.min(HELD_ROUNDS);
        self.rounds(&mut measured, rounds, SETTLE, |_| {}).await;
        let [measured] = measured;
        measured
    }

    fn nothing(&self, kind: Kind, rate: Option<f64>) -> Measured {
        let systems = self.all.iter().map(|pods| pods.system);
        let systems = systems.filter(|system| kind.has_plain() || *system != System::Plain);
        let column = |system| Column {
            system,
            refused: None,
            summary: BTreeMap::new(),
            samples: Vec::new(),
        };
        Measured {
            kind,
            rate,
            columns: systems.map(column).collect(),
        }
    }

    /// Lets each round's end be known.
    async fn rounds(
        &mut self,
        measured: &mut [Measured],
        rounds: u32,
        window: Duration,
        mut keep: impl FnMut(&[Measured]),
    ) {
        for round in 0..rounds {
            for one in &mut *measured {
                let manner = Manner {
                    window,
                    rate: one.rate,
                    seed: u64::from(round),
                    counter: None,
                };
                self.round(one, round as usize, rounds, manner).await;
            }
            keep(measured);
        }
    }

    /// Gives everyone a turn.
    async fn round(
        &mut self,
        measured: &mut Measured,
        round: usize,
        rounds: u32,
        manner: Manner<'_>,
    ) {
        let (number, kind) = (measured.columns.len(), measured.kind);
        for turn in 0..number {
            let column = &mut measured.columns[(turn + round) % number];
            if column.refused.is_some() {
                continue;
            }
            let at = manner
                .rate
                .map_or_else(String::new, |rate| format!(" at {rate:.0} a second"));
            let what = format!("{}{at} over {}", kind.name(), column.system.describe());
            match self.sample(column.system, kind, manner).await {
                Ok(sample) => {
                    eprintln!(
                        "round {} of {rounds}: {what}: {}",
                        round + 1,
                        sample.show(kind)
                    );
                    column.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("REFUSED {what}: {error:#}");
                    self.refused.insert(column.system);
                    column.samples.clear();
                    column.refused = Some(format!("{error:#}"));
                }
            }
        }
    }

    async fn sample(
        &mut self,
        system: System,
        kind: Kind,
        manner: Manner<'_>,
    ) -> anyhow::Result<Sample> {
        let pods = self.all.iter().find(|pods| pods.system == system);
        let pods = pods.context("it does not run")?;
        let wire = Wire::listen(pods.server_ip, system.handshakes(kind))?;
        let lines = match self.refused.remove(&system) {
            true => Log::at_rest(system).await?,
            false => Log::read(system)?,
        };
        let mut load = Running::start(pods, kind, manner, self.cores.as_ref())?;
        let all = [Some(pods.server), load.child.id()].into_iter().flatten();
        let first = self.cores.is_some() && manner.rate.is_some();
        let _first = first.then(|| RealTime::new(pods.sidecars.iter().copied().chain(all)));
        load.word("begin").await?;
        let before = Clocks::read(&pods.sidecars)?;
        let hellos = wire.seen()?;
        let syscalls = match manner.counter {
            Some(counter) => Some(
                counter
                    .count(&pods.sidecars, manner.window - COUNTER_STARTS)
                    .await?,
            ),
            None => None,
        };
        let end = load.word("end ").await?;
        let used = Clocks::read(&pods.sidecars)?.since(&before)?;
        let memory = Memory::sum(&pods.sidecars)?;
        let counted: Counted = serde_json::from_str(&end)?;
        if let Some(error) = counted.errors.first() {
            bail!("the load met an error: {error}");
        }
        ensure!(counted.units > 0.0, "nothing was carried");
        let sent = load.stop().await?;
        if let Some(lines) = lines {
            lines.check(kind, sent).await?;
        }
        self.check(system, kind, hellos)?;
        Ok(Sample {
            counted,
            used,
            memory,
            syscalls,
        })
    }

    /// Makes sure that the sidecars have agreed on what they must: now or, if connections stay, in an earlier turn.
    fn check(&mut self, system: System, kind: Kind, hellos: BTreeSet<Hello>) -> anyhow::Result<()> {
        let seen = (system, system.handshakes(kind));
        let seen = self.seen.entry(seen).or_default();
        seen.extend(hellos);
        for hello in &*seen {
            ensure!(system != System::Plain, "a handshake without a proxy");
            let advice = match system {
                System::Linkerd if hello.is_stronger() => linkerd::ADVICE,
                System::Ztunnel if hello.is_stronger() => ztunnel::ADVICE,
                _ => {
                    hello.check()?;
                    continue;
                }
            };
            if let Err(error) = hello.check() {
                bail!("{error}; {advice}");
            }
        }
        ensure!(
            system == System::Plain || !seen.is_empty(),
            "no handshake of the sidecars was seen"
        );
        Ok(())
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
        manner: Manner<'_>,
        cores: Option<&Cores>,
    ) -> anyhow::Result<Self> {
        let order = Order {
            kind,
            address: pods.address(kind),
            window: manner.window,
            rate: manner.rate.map(|rate| (rate, manner.seed)),
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

    /// Ends the load by the end of its input; what it has sent, with what it did not count.
    async fn stop(mut self) -> anyhow::Result<Sent> {
        drop(self.child.stdin.take());
        let sent = self.word("sent ").await?;
        timeout(WORD, self.child.wait()).await??;
        Ok(serde_json::from_str(&sent)?)
    }
}
