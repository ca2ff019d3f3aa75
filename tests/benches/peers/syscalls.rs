//! Counts system calls of processes with `perf`, where that is there and may. What it counts, it hardly slows down.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;
use tulle_tests::gate;

const EVENT: &str = "raw_syscalls:sys_enter";

/// Who counts.
#[derive(Debug)]
pub(crate) struct Counter(PathBuf);

impl Counter {
    /// Finds out whether it works here, and says so if it does not.
    pub(crate) async fn find() -> Option<Self> {
        let Some(perf) = gate::find("perf") else {
            eprintln!("SKIP system calls: there is no perf to count them");
            return None;
        };
        let counter = Self(perf);
        let own = [std::process::id()];
        let tried = counter.count(&own, Duration::from_millis(50)).await;
        tried
            .inspect_err(|error| eprintln!("SKIP system calls: perf cannot count them: {error:#}"))
            .is_ok()
            .then_some(counter)
    }

    /// System calls a second of all these processes together, during that time.
    pub(crate) async fn count(&self, pids: &[u32], time: Duration) -> anyhow::Result<f64> {
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let output = Command::new(&self.0)
            .args(["stat", "-e", EVENT, "-p", &pids.join(",")])
            .args(["--", "sleep", &format!("{:.3}", time.as_secs_f64())])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stderr);
        let number = |words| number(&text, words).with_context(|| text.trim().to_owned());
        let (count, seconds) = (number(EVENT)?, number("seconds time elapsed")?);
        ensure!(seconds > 0.0, "no time passed");
        Ok(count / seconds)
    }
}

/// The number on the line that has these words at its end. What was not counted, because no process ran, is nothing.
fn number(text: &str, words: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_end().ends_with(words))?;
    if line.trim_start().starts_with("<not counted>") {
        return Some(0.0);
    }
    let number = line.split_ascii_whitespace().next()?;
    number.replace(',', "").parse().ok()
}
