//! Does the sums and prints them: medians of the rounds, with the least and the most beside them.

use std::fmt::Write as _;

use crate::measure::{Column, Measured, Sample};
use crate::systems::System;

/// The tables.
pub(crate) fn render(measured: &[Measured]) -> anyhow::Result<String> {
    let mut text = String::new();
    for one in measured {
        table(&mut text, one)?;
    }
    Ok(text)
}

fn table(text: &mut String, measured: &Measured) -> anyhow::Result<()> {
    let (what, unit) = measured.kind.describe();
    writeln!(text, "\n### {what}\n")?;
    writeln!(
        text,
        "| | {unit} per CPU-second | CPU a {unit}, µs | a second | p50 / p99 ms | core busy | switches a {unit} | to bare | to Envoy |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
    for column in &measured.columns {
        if let Some(why) = &column.refused {
            writeln!(
                text,
                "| {} | REFUSED: {why} | | | | | | | |",
                column.system.describe()
            )?;
            continue;
        }
        let each = |value: fn(&Sample) -> f64| Spread::of(column.samples.iter().map(value));
        let latency = if measured.kind.has_latency() {
            let p50 = each(|sample| sample.counted.p50_ms).median;
            let p99 = each(|sample| sample.counted.p99_ms).median;
            format!("{p50:.2} / {p99:.2}")
        } else {
            String::new()
        };
        let rate = each(Sample::per_second).median;
        if column.system == System::Plain {
            writeln!(
                text,
                "| {} | | | {rate:.0} | {latency} | | | | |",
                column.system.describe()
            )?;
            continue;
        }
        writeln!(
            text,
            "| {} | {} | {} | {rate:.0} | {latency} | {:.0} % | {} | {} | {} |",
            column.system.describe(),
            each(Sample::per_cpu_second).show(0),
            each(|sample| 1e6 / sample.per_cpu_second()).show(1),
            each(|sample| sample.used.cpu / sample.counted.seconds).median * 100.0,
            each(|sample| sample.used.switches / sample.counted.units).show(2),
            ratio(column, measured.column(System::Bare)),
            ratio(column, measured.column(System::Envoy)),
        )?;
    }
    Ok(())
}

/// How much more for each CPU-second than the other, round by round.
fn ratio(column: &Column, other: Option<&Column>) -> String {
    let Some(other) = other else {
        return String::new();
    };
    let pairs = column.samples.iter().zip(&other.samples);
    let ratios = pairs.map(|(one, other)| one.per_cpu_second() / other.per_cpu_second());
    Spread::of(ratios).show(2)
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }

    fn show(&self, digits: usize) -> String {
        let Self {
            least,
            median,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}
