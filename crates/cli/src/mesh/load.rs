//! `tulle app load` in a pod of the sandbox, and what it reports.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tulle_sandbox::{ObjectKey, Sandbox};

/// What `tulle app load` reports at its end.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    /// Requests sent.
    pub sent: u64,
    /// Those that succeeded.
    pub ok: u64,
    /// Those that did not.
    pub failed: u64,
    /// Why not, and how often.
    pub failures: BTreeMap<String, u64>,
    /// How long successes took.
    pub latency_ms: Latency,
    /// Answers by version of the app.
    pub versions: BTreeMap<String, u64>,
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
}

/// Quantiles of latency, in milliseconds from when each request was due.
#[derive(Debug, Clone, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 99 of 100 were quicker.
    pub p99: f64,
}

/// A running load generator. It is killed when dropped.
#[derive(Debug)]
pub struct Load(Child);

impl Load {
    /// Starts it in the app's container of a pod, with `rate` requests a second; `more` are further options of
    /// `tulle app load`.
    ///
    /// # Errors
    /// If there is no such pod, or it does not run.
    pub fn start(
        sandbox: &Sandbox,
        from: &ObjectKey,
        url: &str,
        rate: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let (rate, duration) = (rate.to_string(), format!("{}ms", (seconds * 1000.0) as u64));
        let argv = [
            "tulle",
            "app",
            "load",
            "--url",
            url,
            "--rate",
            &rate,
            "--duration",
            &duration,
            // A line a second fills a pipe that nobody reads within minutes, and then nothing moves any more.
            "--summary-only",
        ];
        let mut child = sandbox.spawn_in(from, None, argv.iter().chain(more).copied())?;
        child.stdin.take();
        Ok(Self(child))
    }

    /// Ends it early: it sends nothing more, and waits for what is in flight.
    ///
    /// # Errors
    /// As [`Load::summary`].
    pub async fn stop(self) -> anyhow::Result<Summary> {
        if let Some(pid) = self.0.id() {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)
                .context("cannot stop the load generator")?;
        }
        self.summary().await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it failed, or said something else than a summary.
    pub async fn summary(mut self) -> anyhow::Result<Summary> {
        let (mut output, mut errors) = (String::new(), String::new());
        let mut stdout = self
            .0
            .stdout
            .take()
            .context("the load generator has no output")?;
        let mut stderr = self
            .0
            .stderr
            .take()
            .context("the load generator has no errors")?;
        let (read, _, status) = tokio::join!(
            stdout.read_to_string(&mut output),
            stderr.read_to_string(&mut errors),
            self.0.wait()
        );
        read?;
        ensure!(
            status?.success(),
            "the load generator failed: {}",
            errors.trim()
        );
        let last = output
            .lines()
            .last()
            .context("the load generator said nothing")?;
        serde_json::from_str(last).with_context(|| format!("the load generator said {last}"))
    }
}

impl Summary {
    /// One line: how many, how fast, and why some failed.
    #[must_use]
    pub fn line(&self) -> String {
        let reasons: Vec<_> = self
            .failures
            .iter()
            .map(|(reason, count)| format!("{count} × {reason}"))
            .collect();
        let reasons = if reasons.is_empty() {
            String::new()
        } else {
            format!(" ({})", reasons.join(", "))
        };
        format!(
            "{} of {} failed{reasons}; p50 {:.1} ms, p99 {:.1} ms",
            self.failed, self.sent, self.latency_ms.p50, self.latency_ms.p99
        )
    }
}
