//! What must be reached, line by line: medians of the rounds, ratios in the same run.

use serde::Serialize;

use crate::clocks::{Memory, mib};
use crate::load::Kind;
use crate::measure::{Column, Measured, Sample};
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

/// A line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) bound: String,
    /// `None`: not measured.
    pub(crate) is: Option<Spread>,
    pub(crate) reached: Option<bool>,
    /// After the point: as many as the verdict needs.
    #[serde(skip)]
    digits: usize,
}

impl Target {
    fn at_least(what: String, bound: f64, ratio: Option<Spread>) -> Self {
        Self {
            what,
            bound: format!("at least {bound}"),
            is: ratio,
            reached: ratio.map(|ratio| ratio.median >= bound),
            digits: ratio.map_or(DIGITS, |ratio| digits(ratio.median, bound, f64::ge)),
        }
    }

    fn at_most(what: String, bound: f64, ratio: Option<Spread>) -> Self {
        Self {
            what,
            bound: format!("at most {bound}"),
            is: ratio,
            reached: ratio.map(|ratio| ratio.median <= bound),
            digits: ratio.map_or(DIGITS, |ratio| digits(ratio.median, bound, f64::le)),
        }
    }

    pub(crate) fn line(&self) -> String {
        let verdict = match self.reached {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let is = self
            .is
            .map_or_else(String::new, |ratio| ratio.show(self.digits));
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
    let mut targets = Vec::new();
    for (kind, envoy, bare) in COSTS {
        let Some(measured) = results.costs.iter().find(|one| one.kind == kind) else {
            continue;
        };
        for (other, bound) in [(System::Envoy, envoy), (System::Bare, bare)] {
            let what = format!("{}, per CPU-second, to {}", kind.name(), other.describe());
            let ratio = measured.ratio(other, Sample::per_cpu_second);
            targets.push(Target::at_least(what, bound, ratio));
        }
    }
    for measured in &results.latency {
        let rate = measured.rate.unwrap_or_default();
        let what = format!(
            "{} at {rate:.0} a second, p99 added, to Envoy",
            measured.kind.name()
        );
        targets.push(Target::at_most(what, ADDED_P99, added(measured)));
    }
    if !results.idle.is_empty() {
        let what = "memory of an idle sidecar (PSS), to Envoy".to_owned();
        targets.push(Target::at_most(what, IDLE, idle(&results.idle)));
    }
    if let Some(held) = &results.held {
        let (what, _) = Kind::Held.describe();
        let ratio = held.ratio(System::Envoy, |sample| sample.memory.pss as f64);
        let what = format!("{what}, memory of both sidecars (PSS), to Envoy");
        targets.push(Target::at_most(what, HELD, ratio));
    }
    if let Some((_, starts)) = results
        .starts
        .iter()
        .find(|(system, _)| *system == System::Tulle)
    {
        let times = Spread::of(starts.new.iter().copied());
        let what = "from exec to ready in a new pod, ms".to_owned();
        targets.push(Target::at_most(what, READY, Some(times)));
    }
    if let Some(demo) = &results.demo {
        let what = "memory of ours, idle in the demo among others (PSS), MiB".to_owned();
        targets.push(Target::at_most(
            what,
            DEMO,
            Some(one(mib(demo.among_others.pss))),
        ));
    }
    targets
}

fn one(value: f64) -> Spread {
    Spread {
        least: value,
        median: value,
        most: value,
    }
}

/// How the latencies that are added compare: that of the medians, because one alone may be nothing.
fn added(measured: &Measured) -> Option<Spread> {
    let plain = measured.column(System::Plain)?;
    let of = |system| Some(added_p99(measured.column(system)?, plain).median);
    let (ours, envoy) = (of(System::Tulle)?, of(System::Envoy)?);
    // Where the machine's own noise hides what Envoy adds there is nothing to compare with.
    (envoy > 0.0).then(|| one(ours.max(0.0) / envoy))
}

/// Milliseconds of p99 beyond those of the same round without a proxy.
pub(crate) fn added_p99(column: &Column, plain: &Column) -> Spread {
    let pairs = column.samples.iter().zip(&plain.samples);
    Spread::of(pairs.map(|(one, plain)| one.counted.p99_ms - plain.counted.p99_ms))
}

fn idle(idle: &[(System, Memory)]) -> Option<Spread> {
    let of = |wanted| {
        let found = idle.iter().find(|(system, _)| *system == wanted);
        found.map(|(_, memory)| memory.pss as f64)
    };
    let ratio = of(System::Tulle)? / of(System::Envoy)?;
    Some(one(ratio))
}
