//! Counts system calls of processes with whatever the machine has for it: `perf`, or else `strace`, or nobody.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::process::Command;
use tulle_tests::gate;

const EVENT: &str = "raw_syscalls:sys_enter";

/// Who counts.
#[derive(Debug)]
pub(crate) enum Counter {
    Perf(PathBuf),
    Strace(PathBuf),
}

impl Counter {
    /// The first that works here; if there is none, it says so.
    pub(crate) async fn find() -> Option<Self> {
        let own = [std::process::id()];
        let candidates = [
            gate::find("perf").map(Self::Perf),
            gate::find("strace").map(Self::Strace),
        ];
        for candidate in candidates.into_iter().flatten() {
            // Nobody can attach to itself: the one to try it on is the counter's own child.
            match candidate.count(&own, Duration::from_millis(50)).await {
                Ok(_) => return Some(candidate),
                Err(error) => {
                    eprintln!("{} cannot count system calls: {error:#}", candidate.name())
                }
            }
        }
        eprintln!("SKIP system calls: neither perf (as root) nor strace can count them here");
        None
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Perf(_) => "perf",
            Self::Strace(_) => "strace",
        }
    }

    /// System calls a second of all these processes together, during that time.
    pub(crate) async fn count(&self, pids: &[u32], time: Duration) -> anyhow::Result<f64> {
        let seconds = format!("{:.3}", time.as_secs_f64());
        let list: Vec<_> = pids.iter().map(u32::to_string).collect();
        let list = list.join(",");
        let mut command = match self {
            Self::Perf(perf) => {
                let mut command = Command::new(perf);
                command.args(["stat", "-e", EVENT, "-p", &list, "--", "sleep", &seconds]);
                command
            }
            Self::Strace(strace) => {
                let mut command = Command::new("timeout");
                command.args(["-s", "INT", &seconds]).arg(strace);
                command.args(["-c", "-f", "-p", &list]);
                command
            }
        };
        let began = Instant::now();
        let output = command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .await?;
        let took = began.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stderr);
        let why = || text.trim().to_owned();
        let (count, seconds) = match self {
            Self::Perf(_) => (
                column(&text, EVENT, 0).with_context(why)?,
                column(&text, "seconds time elapsed", 0).with_context(why)?,
            ),
            // The sum of its fourth column, over about the time that it ran.
            Self::Strace(_) => (column(&text, "total", 3).with_context(why)?, took),
        };
        ensure!(seconds > 0.0, "no time passed");
        Ok(count / seconds)
    }
}

/// A number of the line that has these words at its end.
fn column(text: &str, words: &str, number: usize) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_end().ends_with(words))?;
    let number = line.split_ascii_whitespace().nth(number)?;
    number.replace(',', "").parse().ok()
}
