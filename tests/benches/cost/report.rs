//! Does the sums and prints them: medians of the rounds, with the least and the most beside them.

use std::fmt::Write as _;

use anyhow::ensure;

use crate::load::Kind;
use crate::measure::{Rounds, Sample, Variant};

/// The tables.
pub(crate) fn render(measured: &Rounds) -> anyhow::Result<String> {
    let mut text = String::new();
    for (kind, rounds) in &measured.0 {
        table(&mut text, *kind, rounds)?;
    }
    Ok(text)
}

fn table(
    text: &mut String,
    kind: Kind,
    rounds: &[[Sample; Variant::ALL.len()]],
) -> anyhow::Result<()> {
    let what = head(text, kind, rounds.len())?;
    for (column, variant) in Variant::ALL.into_iter().enumerate() {
        let each = |value: fn(&Sample) -> f64| {
            let samples = rounds.iter().map(|round| &round[column]);
            spread(samples.map(value).collect())
        };
        let rate = each(|sample| sample.counted.units / sample.counted.seconds);
        ensure!(
            rate.least > 0.0,
            "{what}: {} carried nothing",
            variant.describe()
        );
        let latency = if kind == Kind::Bulk {
            String::new()
        } else {
            let (p50, p99) = (
                each(|sample| sample.counted.p50_ms),
                each(|sample| sample.counted.p99_ms),
            );
            format!("{:.2} / {:.2}", p50.median, p99.median)
        };
        let (mut cost, mut efficiency, mut ratio) = Default::default();
        if variant != Variant::Plain {
            let costs = each(|sample| sample.cpu / sample.counted.units * 1e6);
            cost = costs.show(1);
            efficiency = format!("{:.0}", 1e6 / costs.median);
            let bare = Variant::Bare as usize;
            let pairs = rounds.iter().map(|round| {
                let of = |sample: &Sample| sample.counted.units / sample.cpu;
                of(&round[column]) / of(&round[bare])
            });
            ratio = spread(pairs.collect()).show(2);
        }
        writeln!(
            text,
            "{:28} {cost:>26} {efficiency:>14} {:>10.0} {latency:>15} {ratio:>24}",
            variant.describe(),
            rate.median
        )?;
    }
    Ok(())
}

/// Writes what the columns are; the name of what was measured.
fn head(text: &mut String, kind: Kind, rounds: usize) -> anyhow::Result<String> {
    let (what, unit) = kind.describe();
    writeln!(text, "\n{what}; medians of {rounds} rounds (least to most)")?;
    writeln!(
        text,
        "{:28} {:>26} {:>14} {:>10} {:>15} {:>24}",
        "",
        format!("µs of CPU a {unit}"),
        "per CPU-second",
        "a second",
        "p50 / p99 ms",
        "per CPU-second / bare"
    )?;
    Ok(what)
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn show(&self, digits: usize) -> String {
        let Self {
            least,
            median,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    Spread {
        least: at(0),
        median: at(values.len() / 2),
        most: at(values.len().saturating_sub(1)),
    }
}
