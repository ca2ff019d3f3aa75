//! `tulle demo` from its first step to its last: the proof, as one program, of what a mesh promises.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::terminal::Terminal;

/// It takes half a minute on a machine with little else to do.
const LIMIT: Duration = Duration::from_secs(240);
/// What must have been shown: a story without steps holds too.
const SHOWN: [&str; 11] = [
    "identities",
    "mutual TLS",
    "protocols",
    "balancing",
    "canary",
    "retries",
    "exactly once",
    "SIGTERM",
    "SIGKILL",
    "outage",
    "rotation",
];

pub(crate) fn every_step_holds(terminal: &Terminal) -> anyhow::Result<()> {
    let ran = terminal.tulle_within(LIMIT, &["demo", "--output", "json"])?;
    let report: Value =
        serde_json::from_str(&ran.stdout).with_context(|| format!("no report: {ran}"))?;
    let steps = report["steps"].as_array().context("a report has steps")?;
    let names: Vec<_> = steps
        .iter()
        .filter_map(|step| step["name"].as_str())
        .collect();
    ensure!(names == SHOWN, "the steps were {names:?}");
    let broken: Vec<_> = steps.iter().filter(|step| step["held"] != true).collect();
    ensure!(
        broken.is_empty() && report["held"] == true && ran.status == 0,
        "status {}, and this did not hold: {broken:#?}",
        ran.status
    );
    terminal.nothing_left()
}
