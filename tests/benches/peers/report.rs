//! Writes down what was measured: Markdown for people, JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::alone::Idle;
use crate::clocks::{Memory, Still, mib};
use crate::head::Head;
use crate::load::Kind;
use crate::measure::{Column, Measured, Sample};
use crate::plan::Wanted;
use crate::profile::Profile;
use crate::spread::Spread;
use crate::starts::Starts;
use crate::systems::System;
use crate::targets::{self, Load, Target, Verdict};

/// Where connections are measured with their handshakes.
const SHARED: &str =
    "\nztunnel: connections share tunnels that stay, and have no mutual TLS of their own.\n";

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    /// Whether everything that was to be measured was.
    pub(crate) complete: bool,
    /// What went wrong, if that ended it before.
    pub(crate) ended_by: Option<String>,
    pub(crate) head: Head,
    pub(crate) systems: Vec<System>,
    pub(crate) costs: Vec<Measured>,
    pub(crate) latency: Vec<Measured>,
    pub(crate) syscalls: Vec<Measured>,
    /// Of a sidecar, before anything was carried.
    pub(crate) idle: Vec<Still>,
    /// Of a sidecar, after everything was carried.
    pub(crate) rested: Vec<Still>,
    pub(crate) held: Option<Measured>,
    pub(crate) starts: Vec<(System, Starts)>,
    /// Ours in a mesh that has more to it.
    pub(crate) demo: Option<Idle>,
    /// What a reader must know beside the figures.
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    pub(crate) wanted: Wanted,
    pub(crate) targets: Vec<Target>,
    pub(crate) verdict: String,
    /// Of ours, under the loads whose target was missed.
    pub(crate) profiles: Vec<Profile>,
}

impl Results {
    /// Does the last sums.
    pub(crate) fn judge(&mut self) {
        let all = self.costs.iter_mut().chain(&mut self.latency);
        let all = all.chain(&mut self.syscalls).chain(&mut self.held);
        all.flat_map(|one| &mut one.columns)
            .for_each(Column::sum_up);
        self.targets = targets::all(self);
        self.verdict = Verdict::count(&self.targets);
    }

    /// What was not measured because something went wrong.
    pub(crate) fn refused(&self) -> usize {
        let all = self.costs.iter().chain(&self.latency).chain(&self.syscalls);
        let columns = all.chain(&self.held).flat_map(|one| &one.columns);
        columns.filter(|column| column.refused.is_some()).count()
    }

    /// The loads of which a target was missed, each once.
    pub(crate) fn missed(&self) -> Vec<Load> {
        let mut loads = Vec::new();
        for target in &self.targets {
            if target.verdict == Verdict::Missed
                && let Some(load) = target.load
                && !loads.contains(&load)
            {
                loads.push(load);
            }
        }
        loads
    }

    /// Whether every target that was to be measured was, and holds.
    pub(crate) fn holds(&self) -> bool {
        let mut verdicts = self.targets.iter().map(|target| target.verdict);
        verdicts.all(|verdict| matches!(verdict, Verdict::Reached | Verdict::LeftOut))
    }

    /// Writes down what there is so far. It costs nothing but what comes after it to lose it.
    pub(crate) fn keep(&mut self, place: &Path) {
        self.judge();
        if let Err(error) = self.save(place) {
            eprintln!("what was measured so far is not kept: {error:#}");
        }
    }

    /// Writes it as JSON.
    pub(crate) fn save(&self, place: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(place, serde_json::to_string_pretty(self)?)?)
    }

    pub(crate) fn render(&self) -> String {
        let mut text = self.head.render(&self.systems);
        if let Some(why) = &self.ended_by {
            text += &format!("- ENDED BEFORE ITS TIME: {why}\n");
        }
        for note in &self.notes {
            text += &format!("- {note}\n");
        }
        self.costs.iter().for_each(|one| text += &costs(one));
        self.latency.iter().for_each(|one| text += &latency(one));
        if !self.syscalls.is_empty() {
            text += &syscalls(&self.syscalls);
        }
        if !self.idle.is_empty() {
            text += &self.memory();
        }
        if !self.rested.is_empty() {
            text += &rested(&self.rested);
        }
        if let Some(held) = &self.held {
            text += &self.held(held);
        }
        if !self.starts.is_empty() {
            text += &starts(&self.starts);
        }
        if let Some(demo) = &self.demo {
            text += &alone(demo);
        }
        if !self.targets.is_empty() {
            text += "\n## Targets: median of the rounds, ratio in the same run\n\n";
            text += "| what | ratio must be | is | |\n|---|---|---|---|\n";
            for target in &self.targets {
                text += &(target.line() + "\n");
            }
            text += &format!("\nVerdict: {}.\n", self.verdict);
        }
        for profile in &self.profiles {
            text += &profile.render();
        }
        text
    }

    fn memory(&self) -> String {
        let mut table = Table::new(
            "Memory of a sidecar, MiB",
            &[
                "idle, nothing carried yet: PSS",
                "RSS",
                "most under load: PSS",
                "RSS",
            ],
        );
        for idle in &self.idle {
            let mut row = vec![
                idle.spread(|look| look.memory.pss).show(1),
                idle.spread(|look| look.memory.rss).show(1),
            ];
            let most = self.most(idle.system);
            if !most.is_empty() {
                for value in [|memory: &Memory| memory.pss, |memory: &Memory| memory.rss] {
                    // Of two sidecars together.
                    let rounds = most.iter().map(|most| mib(value(most)) / 2.0);
                    row.push(Spread::of(rounds).show(1));
                }
            }
            table.row(idle.system, &row);
        }
        table.text
            + "\nPSS: two of each system share its program text; the bare pair shares that of the benchmark. Idle: several \
               looks at the same processes; under load: the most in each round.\n"
    }

    /// The most that both sidecars had under any load, round by round.
    fn most(&self, system: System) -> Vec<Memory> {
        let columns = self.costs.iter().filter_map(|one| one.column(system));
        let mut rounds: Vec<Memory> = Vec::new();
        for column in columns {
            for (round, sample) in column.samples.iter().enumerate() {
                match rounds.get_mut(round) {
                    Some(most) => *most = most.most(sample.memory),
                    None => rounds.push(sample.memory),
                }
            }
        }
        rounds
    }

    fn held(&self, held: &Measured) -> String {
        let (what, _) = Kind::Held.describe();
        let mut table = Table::new(
            &format!("{what} through both sidecars, each with its own mutual TLS: memory of both"),
            &["PSS, MiB", "RSS, MiB", "PSS beyond idle for each, KiB"],
        );
        for column in &held.columns {
            if let Some(why) = &column.refused {
                table.refused(column.system, why);
                continue;
            }
            let idle = self.idle.iter().find(|one| one.system == column.system);
            let idle = idle.map_or(0.0, |idle| idle.spread(|look| look.memory.pss).median);
            let beyond = |sample: &Sample| {
                (mib(sample.memory.pss) - 2.0 * idle).max(0.0) * 1024.0 / sample.counted.units
            };
            let row = [
                column.spread(|sample| mib(sample.memory.pss)).show(1),
                column.spread(|sample| mib(sample.memory.rss)).show(1),
                column.spread(beyond).show(1),
            ];
            table.row(column.system, &row);
        }
        if held.column(System::Ztunnel).is_some() {
            table.text += SHARED;
        }
        table.text
    }
}

/// A Markdown table with a row for each system.
struct Table {
    text: String,
    width: usize,
}

impl Table {
    fn new(title: &str, columns: &[&str]) -> Self {
        let lines = "|---".repeat(columns.len() + 1);
        let text = format!("\n## {title}\n\n| | {} |\n{lines}|\n", columns.join(" | "));
        let width = columns.len();
        Self { text, width }
    }

    fn row(&mut self, system: System, values: &[String]) {
        self.text += &format!("| {} |", system.describe());
        for column in 0..self.width {
            let value = values.get(column).map_or("", String::as_str);
            self.text += &format!(" {value} |");
        }
        self.text.push('\n');
    }

    fn refused(&mut self, system: System, why: &str) {
        let why = why.replace('|', "/").replace('\n', " ");
        self.row(system, &[format!("REFUSED: {why}")]);
    }
}

fn costs(measured: &Measured) -> String {
    let (what, unit) = measured.kind.describe();
    let columns = [
        &format!("{unit} per CPU-second"),
        &format!("µs of CPU a {unit}"),
        "a second",
        "p50 / p99 ms",
        "core busy",
        &format!("context switches a {unit}"),
        "to the bare pair",
        "to Envoy",
    ];
    let mut table = Table::new(&what, &columns);
    for column in &measured.columns {
        if let Some(why) = &column.refused {
            table.refused(column.system, why);
            continue;
        }
        let median = |value: fn(&Sample) -> f64| column.spread(value).median;
        let latency = match measured.kind.has_latency() {
            true => format!(
                "{:.2} / {:.2}",
                median(|sample| sample.counted.p50_ms),
                median(|sample| sample.counted.p99_ms)
            ),
            false => String::new(),
        };
        let rate = format!("{:.0}", median(Sample::per_second));
        let mut row = vec![String::new(), String::new(), rate, latency];
        if column.system != System::Plain {
            row[0] = column.spread(Sample::per_cpu_second).show(0);
            row[1] = column
                .spread(|sample| 1e6 / sample.per_cpu_second())
                .show(1);
            let busy = median(|sample| sample.used.cpu / sample.counted.seconds);
            row.push(format!("{:.0} %", busy * 100.0));
            let switches = |sample: &Sample| sample.used.switches / sample.counted.units;
            row.push(column.spread(switches).show(2));
            for other in [System::Bare, System::Envoy] {
                let other = measured.column(other);
                let ratio = other.map(|other| column.ratio(other, Sample::per_cpu_second).show(2));
                row.push(ratio.unwrap_or_default());
            }
        }
        table.row(column.system, &row);
    }
    if measured.kind == Kind::Connect && measured.column(System::Ztunnel).is_some() {
        table.text += SHARED;
    }
    table.text
}

fn latency(measured: &Measured) -> String {
    let (what, unit) = measured.kind.describe();
    let rate = measured.rate.unwrap_or_default();
    let title = format!(
        "{what}: latency at {rate:.0} {unit}s a second, 30 % of what one core carries of the slower of ours and Envoy"
    );
    let columns = ["p50 ms", "p99 ms", "p99 added to no proxy, ms", "core busy"];
    let mut table = Table::new(&title, &columns);
    for column in &measured.columns {
        if let Some(why) = &column.refused {
            table.refused(column.system, why);
            continue;
        }
        let mut row = vec![
            column.spread(|sample| sample.counted.p50_ms).show(2),
            column.spread(|sample| sample.counted.p99_ms).show(2),
        ];
        if column.system != System::Plain {
            let plain = measured.column(System::Plain);
            let added = plain.map(|plain| targets::added_p99(column, plain).show(2));
            row.push(added.unwrap_or_default());
            let busy = column.spread(|sample| sample.used.cpu / sample.counted.seconds);
            row.push(format!("{:.0} %", busy.median * 100.0));
        }
        table.row(column.system, &row);
    }
    table.text
        + "\nPoisson arrivals, the same for all; counted from when a request was due, not from when it was sent.\n"
}

fn syscalls(traced: &[Measured]) -> String {
    let units: Vec<_> = traced
        .iter()
        .map(|one| format!("{}: each {}", one.kind.name(), one.kind.describe().1))
        .collect();
    let columns: Vec<_> = units.iter().map(String::as_str).collect();
    let mut table = Table::new("System calls of both sidecars, under full load", &columns);
    let systems = traced.first().into_iter().flat_map(|one| &one.columns);
    for system in systems.map(|column| column.system) {
        let each = |one: &Measured| {
            let column = one.column(system)?;
            let each = |sample: &Sample| sample.syscalls.map(|calls| calls / sample.per_second());
            Some(
                column
                    .spread(|sample| each(sample).unwrap_or(f64::NAN))
                    .show(2),
            )
        };
        let row: Vec<_> = traced
            .iter()
            .map(|one| each(one).unwrap_or_else(|| "REFUSED".to_owned()))
            .collect();
        table.row(system, &row);
    }
    table.text
}

fn starts(starts: &[(System, Starts)]) -> String {
    let columns = ["a new pod", "again, with its files in place"];
    let title = "From exec to `/ready` answering 200, ms";
    let mut table = Table::new(title, &columns);
    for (system, starts) in starts {
        let show = |times: &[f64]| match times {
            [] => String::new(),
            times => Spread::of(times.iter().copied()).show(1),
        };
        table.row(*system, &[show(&starts.new), show(&starts.again)]);
    }
    let measured = |wanted| starts.iter().any(|(system, _)| *system == wanted);
    let told = [
        (
            System::Tulle,
            "ours asks its CA (in a new pod) and its control plane",
        ),
        (System::Envoy, "Envoy reads everything from files"),
        (
            System::Linkerd,
            "linkerd2-proxy is ready once a stand-in in its pod has handed it its certificate; it keeps nothing, so each \
             start is that of a new pod",
        ),
        (
            System::Ztunnel,
            "ztunnel is ready once it has read a file, and asks for its certificate later; it keeps nothing, so each start \
             is that of a new pod",
        ),
    ];
    let told = told.iter().filter(|(system, _)| measured(*system));
    let told: Vec<_> = told.map(|(_, what)| *what).collect();
    table.text + &format!("\nWhat they wait for: {}.\n", told.join("; "))
}

fn rested(rested: &[Still]) -> String {
    let columns = ["PSS", "of which own data", "RSS", "PSS alone"];
    let title = "Memory of a sidecar, idle after all that was carried, MiB";
    let mut table = Table::new(title, &columns);
    for one in rested {
        let row = [
            one.spread(|look| look.memory.pss),
            one.spread(|look| look.memory.anonymous),
            one.spread(|look| look.memory.rss),
            one.spread(|look| look.alone),
        ];
        table.row(one.system, &row.map(|spread| spread.show(1)));
    }
    table.text
        + "\nAlone: with the whole of what it has of its program in memory, as if no other shared it.\n"
}

fn alone(demo: &Idle) -> String {
    let mut text =
        "\n## Memory of our sidecar, idle after it has talked to the demo's application, MiB\n\n"
            .to_owned();
    let mut line = |what: &str, [pss, own, rss]: [String; 3]| {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "- {what}: PSS {pss}, of which {own} are its own data; RSS {rss}"
        );
    };
    let number = demo.among_others.len();
    let others = format!("among {number} that share their program text");
    let values = [
        |memory: &Memory| memory.pss,
        |memory: &Memory| memory.anonymous,
        |memory: &Memory| memory.rss,
    ];
    line(&others, values.map(|value| demo.spread(value).show(2)));
    let one = values.map(|value| format!("{:.2}", mib(value(&demo.alone))));
    line("alone with its program text", one);
    text
}
