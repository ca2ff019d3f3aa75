//! What the demo says: steps, each with a promise, the evidence measured for it, and whether it held.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::CliError;
use crate::output;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// One measured fact of a step.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    what: String,
    value: String,
    /// Whether it is as promised; `None` for what is only told.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<bool>,
}

/// One step of the demo.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    name: &'static str,
    promise: &'static str,
    seconds: f64,
    held: bool,
    evidence: Vec<Fact>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Gathers the evidence of the step that runs.
#[derive(Debug, Default)]
pub(super) struct Evidence(Vec<Fact>);

impl Evidence {
    /// Tells a measurement that promises nothing.
    pub(super) fn tell(&mut self, what: impl Into<String>, value: impl Display) {
        self.0.push(Fact {
            what: what.into(),
            value: value.to_string(),
            held: None,
        });
    }

    /// Holds a measurement against what was promised.
    pub(super) fn hold(&mut self, what: impl Into<String>, value: impl Display, held: bool) {
        self.0.push(Fact {
            what: what.into(),
            value: value.to_string(),
            held: Some(held),
        });
    }

    fn held(&self) -> bool {
        self.0.iter().all(|fact| fact.held != Some(false))
    }
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    held: bool,
    seconds: f64,
    steps: Vec<Step>,
    #[serde(skip)]
    started: Instant,
    #[serde(skip)]
    human: bool,
}

impl Report {
    /// An empty one; `human` prints each step as it ends.
    pub(super) fn new(human: bool) -> Self {
        Self {
            held: true,
            seconds: 0.0,
            steps: Vec::new(),
            started: Instant::now(),
            human,
        }
    }

    /// A line of news for people.
    pub(super) fn say(&self, text: impl Display) -> Result<(), CliError> {
        if self.human {
            output::styled(&format!("{DIM}{text}{DIM:#}"))?;
        }
        Ok(())
    }

    /// Announces a step before it runs.
    pub(super) fn announce(&self, name: &str, promise: &str) -> Result<(), CliError> {
        if self.human {
            output::styled(&format!(
                "\n{BOLD}{}. {name}{BOLD:#}  {DIM}{promise}{DIM:#}",
                self.steps.len() + 1
            ))?;
        }
        Ok(())
    }

    /// Records a step that ended.
    pub(super) fn record(
        &mut self,
        (name, promise): (&'static str, &'static str),
        took: Duration,
        evidence: Evidence,
        error: Option<&anyhow::Error>,
    ) -> Result<(), CliError> {
        let step = Step {
            name,
            promise,
            seconds: took.as_secs_f64(),
            held: error.is_none() && evidence.held(),
            evidence: evidence.0,
            error: error.map(|error| format!("{error:#}")),
        };
        if self.human {
            print_step(&step)?;
        }
        self.held &= step.held;
        self.steps.push(step);
        Ok(())
    }

    /// Ends the report: prints the verdict, or everything as JSON. Whether every step held.
    pub(super) fn finish(mut self) -> anyhow::Result<bool> {
        self.seconds = self.started.elapsed().as_secs_f64();
        if self.human {
            let failed = self.steps.iter().filter(|step| !step.held).count();
            let (style, verdict) = match (failed, self.steps.len()) {
                (0, 1) => (GOOD, "The step held".to_owned()),
                (0, steps) => (GOOD, format!("All {steps} steps held")),
                (_, 1) => (BAD, "The step did not hold".to_owned()),
                (failed, steps) => (BAD, format!("{failed} of {steps} steps did not hold")),
            };
            output::styled(&format!(
                "\n{style}{verdict}{style:#} in {:.1} s.",
                self.seconds
            ))?;
        } else {
            output::line(&serde_json::to_string_pretty(&self)?)?;
        }
        Ok(self.held)
    }
}

fn print_step(step: &Step) -> Result<(), CliError> {
    let width = step
        .evidence
        .iter()
        .map(|fact| fact.what.chars().count())
        .max()
        .unwrap_or(0);
    for fact in &step.evidence {
        let (style, mark) = match fact.held {
            Some(true) => (GOOD, "✓"),
            Some(false) => (BAD, "✗"),
            None => (DIM, "·"),
        };
        output::styled(&format!(
            "   {style}{mark}{style:#} {:width$}  {}",
            fact.what, fact.value
        ))?;
    }
    if let Some(error) = &step.error {
        output::styled(&format!("   {BAD}✗ {error}{BAD:#}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_holds_only_if_every_promise_does() {
        let mut evidence = Evidence::default();
        evidence.tell("requests", 300);
        evidence.hold("failed", 0, true);
        assert!(evidence.held());
        evidence.hold("failed", 1, false);
        assert!(!evidence.held());
    }

    #[test]
    fn an_error_in_one_step_fails_the_report() {
        let mut report = Report::new(false);
        let error = anyhow::anyhow!("no such pod");
        report
            .record(
                ("a", "b"),
                Duration::ZERO,
                Evidence::default(),
                Some(&error),
            )
            .expect("nothing is printed");
        assert!(!report.finish().expect("serialises"));
    }
}
