//! What must be reached, line by line: medians of the rounds, ratios in the same run.

use std::fmt;

use serde::Serialize;

use crate::clocks::Still;
use crate::load::Kind;
use crate::measure::{Column, Measured, SHORT_TURNS, Sample};
use crate::report::Results;
use crate::spread::Spread;
use crate::systems::System;

/// Ratios in requests (bytes, round trips) per CPU-second: at least these times that of Envoy and of the bare pair.
const COSTS: [(Kind, f64, f64); 5] = [
    (Kind::Http1, 1.8, 0.75),
    (Kind::Http2, 1.2, 0.8),
    (Kind::Grpc, 1.2, 0.8),
    (Kind::Bulk, 1.3, 0.9),
    (Kind::Echo, 1.3, 0.9),
];
/// At most these times Envoy's.
const ADDED_P99: f64 = 0.5;
const IDLE: f64 = 0.2;
const HELD: f64 = 0.5;
/// Bars of our own: MiB of an idle sidecar among others, and milliseconds until a new pod's is ready.
const DEMO: f64 = 8.0;
const READY: f64 = 100.0;

/// What is sent, and at what fixed rate, if it is one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) rate: Option<f64>,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match self.rate {
            Some(rate) => write!(f, " at {rate:.0} a second"),
            None => Ok(()),
        }
    }
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) bound: String,
    pub(crate) is: Option<Spread>,
    pub(crate) verdict: Verdict,
    /// The load that it is about, if its profile would say more.
    #[serde(skip)]
    pub(crate) load: Option<Load>,
    /// After the point: as many as the verdict needs.
    #[serde(skip)]
    digits: usize,
}

/// Whether a target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Reached,
    Missed,
    /// It was to be measured, and there is no figure.
    NotMeasured,
    /// Whom it is about was not to be measured.
    LeftOut,
}

impl Verdict {
    const ALL: [Self; 4] = [
        Self::Reached,
        Self::Missed,
        Self::NotMeasured,
        Self::LeftOut,
    ];

    fn show(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Missed => "MISSED",
            Self::NotMeasured => "NOT MEASURED",
            Self::LeftOut => "left out",
        }
    }

    /// How many of each there are.
    pub(crate) fn count(targets: &[Target]) -> String {
        let counts = Self::ALL.map(|verdict| {
            let number = targets.iter().filter(|one| one.verdict == verdict).count();
            (number > 0).then(|| format!("{number} {}", verdict.show()))
        });
        let counts: Vec<_> = counts.into_iter().flatten().collect();
        format!("of {} targets {}", targets.len(), counts.join(", "))
    }
}

impl Target {
    fn at_least(what: String, bound: f64, ratio: Option<Spread>) -> Self {
        Self::new(what, format!("at least {bound}"), ratio, bound, f64::ge)
    }

    fn at_most(what: String, bound: f64, ratio: Option<Spread>) -> Self {
        Self::new(what, format!("at most {bound}"), ratio, bound, f64::le)
    }

    fn new(
        what: String,
        words: String,
        is: Option<Spread>,
        bound: f64,
        holds: fn(&f64, &f64) -> bool,
    ) -> Self {
        // What is no number is no figure.
        let is = is.filter(|is| !is.median.is_nan());
        let verdict = match is {
            None => Verdict::NotMeasured,
            Some(is) if holds(&is.median, &bound) => Verdict::Reached,
            Some(_) => Verdict::Missed,
        };
        Self {
            what,
            bound: words,
            is,
            verdict,
            load: None,
            digits: is.map_or(DIGITS, |is| digits(is.median, bound, holds)),
        }
    }

    /// That of a load.
    fn of(mut self, load: Load) -> Self {
        self.load = Some(load);
        self
    }

    /// About these systems, which may not be to be measured.
    fn about(mut self, systems: &[System], results: &Results) -> Self {
        let measured = |system| results.systems.contains(system);
        if self.verdict == Verdict::NotMeasured && !systems.iter().all(measured) {
            self.verdict = Verdict::LeftOut;
        }
        self
    }

    pub(crate) fn line(&self) -> String {
        let is = self
            .is
            .map_or_else(String::new, |ratio| ratio.show(self.digits));
        let verdict = self.verdict.show();
        format!("| {} | {} | {is} | {verdict} |", self.what, self.bound)
    }
}

/// Digits after the point, unless more are needed.
const DIGITS: usize = 2;
/// More say nothing.
const MOST_DIGITS: usize = 6;

/// How many are needed for what is shown not to contradict the verdict.
fn digits(value: f64, bound: f64, reached: fn(&f64, &f64) -> bool) -> usize {
    let shown = |digits: &usize| format!("{value:.digits$}").parse().unwrap_or(value);
    let agrees = |digits: &usize| reached(&shown(digits), &bound) == reached(&value, &bound);
    (DIGITS..MOST_DIGITS).find(agrees).unwrap_or(MOST_DIGITS)
}

/// All lines of what was to be measured.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let mut targets = costs(results);
    targets.extend(latencies(results));
    let wanted = &results.wanted;
    let two = [System::Tulle, System::Envoy];
    if wanted.memory {
        let what = "memory of an idle sidecar (PSS), to Envoy".to_owned();
        let target = Target::at_most(what, IDLE, idle(&results.idle));
        targets.push(target.about(&two, results));
    }
    if wanted.held {
        let (what, _) = Kind::Held.describe();
        let held = results.held.as_ref();
        let ratio =
            held.and_then(|held| held.ratio(System::Envoy, |sample| sample.memory.pss as f64));
        let what = format!("{what}, memory of both sidecars (PSS), to Envoy");
        targets.push(Target::at_most(what, HELD, ratio).about(&two, results));
    }
    let ours = [System::Tulle];
    if wanted.start {
        let mut all = results.starts.iter();
        let starts = all.find(|(system, _)| *system == System::Tulle);
        let times = starts.map(|(_, starts)| Spread::of(starts.new.iter().copied()));
        let what = "from exec to ready in a new pod, ms".to_owned();
        targets.push(Target::at_most(what, READY, times).about(&ours, results));
    }
    if wanted.idle {
        let what = "memory of ours, idle in the demo among others (PSS), MiB".to_owned();
        let demo = results.demo.as_ref().map(|demo| demo.pss());
        targets.push(Target::at_most(what, DEMO, demo).about(&ours, results));
    }
    targets
}

fn costs(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for (kind, envoy, bare) in COSTS {
        if !results.wanted.costs.contains(&kind) {
            continue;
        }
        let measured = results.costs.iter().find(|one| one.kind == kind);
        for (other, bound) in [(System::Envoy, envoy), (System::Bare, bare)] {
            let what = format!("{}, per CPU-second, to {}", kind.name(), other.describe());
            let ratio = measured.and_then(|one| one.ratio(other, Sample::per_cpu_second));
            let target = Target::at_least(what, bound, ratio).of(Load { kind, rate: None });
            targets.push(target.about(&[System::Tulle, other], results));
        }
    }
    targets
}

fn latencies(results: &Results) -> Vec<Target> {
    let all = results.wanted.latency.iter().map(|kind| {
        let measured = results.latency.iter().find(|one| one.kind == *kind);
        let load = Load {
            kind: *kind,
            rate: measured.and_then(|one| one.rate),
        };
        let what = format!("{load}, p99 added, to Envoy");
        let three = [System::Plain, System::Tulle, System::Envoy];
        let target = Target::at_most(what, ADDED_P99, measured.and_then(added)).of(load);
        target.about(&three, results)
    });
    all.collect()
}

/// How the latencies that are added compare: that of the medians of all turns, because one turn's may be nothing; and of
/// those of each round's turns, the least and the most.
fn added(measured: &Measured) -> Option<Spread> {
    let plain = measured.column(System::Plain)?;
    let of = |system| Some(added_to(measured.column(system)?, plain));
    let (ours, envoy) = (of(System::Tulle)?, of(System::Envoy)?);
    let median = |turns: &[f64]| Spread::of(turns.iter().copied()).median;
    let ratio = |ours: &[f64], envoy: &[f64]| median(ours).max(0.0) / median(envoy);
    // Where the machine's own noise hides what Envoy adds there is nothing to compare with.
    if median(&envoy) <= 0.0 {
        return None;
    }
    let turns = SHORT_TURNS as usize;
    let rounds = ours.chunks(turns).zip(envoy.chunks(turns));
    let rounds = rounds.map(|(ours, envoy)| match median(envoy) > 0.0 {
        true => ratio(ours, envoy),
        false => f64::INFINITY,
    });
    Some(Spread {
        median: ratio(&ours, &envoy),
        ..Spread::of(rounds)
    })
}

/// Milliseconds of p99 beyond those of the same turn without a proxy.
fn added_to(column: &Column, plain: &Column) -> Vec<f64> {
    let pairs = column.samples.iter().zip(&plain.samples);
    let added = pairs.map(|(one, plain)| one.counted.p99_ms - plain.counted.p99_ms);
    added.collect()
}

/// Over all turns.
pub(crate) fn added_p99(column: &Column, plain: &Column) -> Spread {
    Spread::of(added_to(column, plain).into_iter())
}

/// Look by look.
fn idle(idle: &[Still]) -> Option<Spread> {
    let of = |wanted| {
        let found = idle.iter().find(|one| one.system == wanted)?;
        Some(found.looks.iter().map(|look| look.memory.pss as f64))
    };
    let pairs = of(System::Tulle)?.zip(of(System::Envoy)?);
    Some(Spread::of(pairs.map(|(ours, envoy)| ours / envoy)))
}
