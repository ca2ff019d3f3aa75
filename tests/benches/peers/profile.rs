//! Where the CPU time of our two sidecars goes under a load whose target was missed, as fast as it goes or at its rate: by `perf`, where that is there and may.
//!
//! A flat profile: what ran, by the symbol, and by what it belongs to. Names of symbols are enough for that; what the
//! compiler has put into a caller counts as the caller.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tokio::process::Command;
use tulle_tests::gate;

use crate::targets::Load;

/// Samples a second.
const FREQUENCY: &str = "1999";
/// Symbols that are told.
const SYMBOLS: usize = 25;

/// What a symbol belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Group {
    Kernel,
    Crypto,
    Tls,
    Copies,
    Allocator,
    Http,
    Tokio,
    Ours,
    Other,
}

impl Group {
    const ALL: [Self; 9] = [
        Self::Kernel,
        Self::Crypto,
        Self::Tls,
        Self::Copies,
        Self::Allocator,
        Self::Http,
        Self::Tokio,
        Self::Ours,
        Self::Other,
    ];

    fn describe(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Crypto => "cryptography (aws-lc)",
            Self::Tls => "TLS (rustls)",
            Self::Copies => "memmove and its like",
            Self::Allocator => "allocator",
            Self::Http => "hyper, h2, http",
            Self::Tokio => "tokio, mio",
            Self::Ours => "ours",
            Self::Other => "other",
        }
    }

    /// By the name; of a generic one, by the first crate in it.
    fn of(symbol: &str, kernel: bool) -> Self {
        const NAMES: [(&str, Group); 21] = [
            ("aws_lc_", Group::Crypto),
            ("memmove", Group::Copies),
            ("memcpy", Group::Copies),
            ("memset", Group::Copies),
            ("malloc", Group::Allocator),
            ("calloc", Group::Allocator),
            ("cfree", Group::Allocator),
            ("_int_free", Group::Allocator),
            ("mi_", Group::Allocator),
            ("rustls::", Group::Tls),
            ("tokio_rustls::", Group::Tls),
            ("hyper::", Group::Http),
            ("hyper_util::", Group::Http),
            ("h2::", Group::Http),
            ("http::", Group::Http),
            ("http_body", Group::Http),
            ("httparse::", Group::Http),
            ("tokio::", Group::Tokio),
            ("tokio_util::", Group::Tokio),
            ("mio::", Group::Tokio),
            ("tulle_", Group::Ours),
        ];
        if kernel {
            return Self::Kernel;
        }
        let begins = |at: usize| {
            let before = symbol[..at].chars().next_back();
            before.is_none_or(|before| !before.is_ascii_alphanumeric())
        };
        let first = |(name, group): (&str, Self)| {
            let mut found = symbol.match_indices(name);
            let (at, _) = found.find(|(at, _)| begins(*at))?;
            // Of two at one place the longer: `tokio_rustls` is not `rustls`.
            Some((at, usize::MAX - name.len(), group))
        };
        let found = NAMES.into_iter().filter_map(first).min();
        found.map_or(Self::Other, |(_, _, group)| group)
    }
}

/// Of a load.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Profile {
    load: Load,
    seconds: f64,
    samples: u64,
    /// Parts of all samples in percent.
    groups: Vec<(Group, f64)>,
    symbols: Vec<(Group, String, f64)>,
}

/// Who takes it.
#[derive(Debug)]
pub(crate) struct Profiler {
    perf: PathBuf,
    data: tempfile::TempDir,
}

impl Profiler {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let perf = gate::find("perf").context("there is no perf to take it")?;
        let data = tempfile::tempdir()?;
        Ok(Self { perf, data })
    }

    /// Records what all these processes together do during that time.
    pub(crate) async fn record(&self, pids: &[u32], time: Duration) -> anyhow::Result<()> {
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let seconds = format!("{:.3}", time.as_secs_f64());
        let mut record = self.perf(&["record", "-q", "-F", FREQUENCY, "-o"]);
        record.args(["-p", &pids.join(","), "--", "sleep", &seconds]);
        said(record).await?;
        Ok(())
    }

    /// What was recorded last.
    pub(crate) async fn profile(&self, load: Load, time: Duration) -> anyhow::Result<Profile> {
        let mut report = self.perf(&["report", "-i"]);
        report.args(["--no-children", "--stdio", "--show-nr-samples", "-t", "\t"]);
        report.args(["--sort", "symbol"]);
        let text = said(report).await?;
        let profile = Profile::read(load, time, &text);
        ensure!(profile.samples > 0, "perf has taken no samples: {text}");
        Ok(profile)
    }

    fn perf(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.perf);
        let data = self.data.path().join("perf.data");
        command.args(arguments).arg(data).env("LC_ALL", "C");
        command
    }
}

async fn said(mut command: Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().await?;
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "perf: {}", errors.trim());
    Ok(text.into_owned())
}

impl Profile {
    /// From lines of `PERCENT TAB SAMPLES TAB [k] SYMBOL`.
    fn read(load: Load, time: Duration, text: &str) -> Self {
        let mut all: Vec<(Group, String, u64)> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t').map(str::trim);
            let (Some(_), Some(samples), Some(symbol)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (Ok(samples), Some((level, name))) = (samples.parse(), symbol.split_once(' '))
            else {
                continue;
            };
            let name = name.trim();
            let group = Group::of(name, level == "[k]");
            all.push((group, name.to_owned(), samples));
        }
        all.sort_by_key(|(_, _, samples)| std::cmp::Reverse(*samples));
        let total: u64 = all.iter().map(|(_, _, samples)| samples).sum();
        let percent = |samples: u64| 100.0 * samples as f64 / (total.max(1)) as f64;
        let groups = Group::ALL.map(|group| {
            let own = all.iter().filter(|(of, _, _)| *of == group);
            (group, percent(own.map(|(_, _, samples)| samples).sum()))
        });
        let symbols = all.iter().take(SYMBOLS);
        let symbols =
            symbols.map(|(group, name, samples)| (*group, name.clone(), percent(*samples)));
        Self {
            load,
            seconds: time.as_secs_f64(),
            samples: total,
            groups: groups.into(),
            symbols: symbols.collect(),
        }
    }

    pub(crate) fn render(&self) -> String {
        let rate = self.load.rate;
        let rate = rate.map_or_else(String::new, |rate| format!(" at {rate:.0} a second"));
        let mut text = format!(
            "\n## Profile beside what was missed: {}{}, both sidecars of ours, {} samples in {:.0} s\n\n",
            self.load.kind.describe().0,
            rate,
            self.samples,
            self.seconds
        );
        let groups = self.groups.iter().filter(|(_, percent)| *percent > 0.0);
        let groups: Vec<_> = groups
            .map(|(group, percent)| format!("{} {percent:.1} %", group.describe()))
            .collect();
        text += &groups.join(", ");
        text += ".\n\n| % | belongs to | symbol |\n|---|---|---|\n";
        for (group, name, percent) in &self.symbols {
            let name = name.replace('|', "\\|");
            text += &format!("| {percent:.1} | {} | `{name}` |\n", group.describe());
        }
        text
    }
}
