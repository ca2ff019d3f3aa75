//! On what, with what and how it was measured: what a figure means nothing without.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::cores::Cores;
use crate::plan::Plan;
use crate::probe::Found;
use crate::systems::System;
use crate::{linkerd, logs, ztunnel};

/// The head of a report.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Head {
    date: String,
    kernel: String,
    cpu: String,
    cores: usize,
    rustc: String,
    /// Who counts system calls and takes profiles, if anybody.
    perf: String,
    /// Of the load, the server, the bare pair and of how it was all measured.
    bench: String,
    /// Whether this program, with the bare pair and the load, is optimized.
    optimized: bool,
    tulle: String,
    /// Versions of the crates that the bare pair is made of, and ours with them.
    crates: Vec<String>,
    #[serde(flatten)]
    peers: Versions,
    rounds: u32,
    window_ms: u64,
    /// Whether it was only to be seen that everything runs.
    quick: bool,
    pinned: Option<Cores>,
    /// What all sidecars agreed on.
    pub(crate) tls: Option<Found>,
    /// Who agreed on something else with itself, and on what.
    pub(crate) others: Vec<(System, String)>,
}

/// What peers say of themselves.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Versions {
    pub(crate) envoy: Option<String>,
    pub(crate) linkerd: Option<String>,
    pub(crate) ztunnel: Option<String>,
}

impl Head {
    pub(crate) fn of(plan: &Plan, cores: Option<Cores>, peers: Versions) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split(": ").nth(1));
        let bench = said("git", &["describe", "--always", "--dirty"]);
        let tulle = match &plan.proxy {
            Some(given) => format!("given: {}", given.display()),
            None => bench.clone(),
        };
        Self {
            date: said("date", &["-u", "+%FT%TZ"]),
            kernel: said("uname", &["-sr"]),
            cpu: model.unwrap_or("unknown").to_owned(),
            // This process may keep to some of them.
            cores: cpuinfo.matches("processor\t").count(),
            rustc: said("rustc", &["--version"]),
            perf: said("perf", &["--version"]),
            bench,
            optimized: !cfg!(debug_assertions),
            tulle: format!("{} ({tulle})", env!("CARGO_PKG_VERSION")),
            crates: crates(),
            peers,
            rounds: plan.rounds,
            window_ms: plan.window,
            quick: plan.quick,
            pinned: cores,
            tls: None,
            others: Vec::new(),
        }
    }

    /// What the sidecars agreed on, and who did not.
    fn agreement(&self) -> String {
        let Some(tls) = &self.tls else {
            return String::new();
        };
        let who = if self.others.is_empty() {
            "All the same"
        } else {
            "All that were not refused for it the same"
        };
        let mut text = format!(
            "- {who}: mutual TLS, {}, {}, {}, {} leaf, full handshakes; read from the wire and probed.\n",
            tls.version, tls.cipher, tls.group, tls.leaf
        );
        for (system, what) in &self.others {
            text += &format!("- NOT THE SAME, refused: {}: {what}.\n", system.describe());
        }
        text
    }

    pub(crate) fn render(&self, systems: &[System]) -> String {
        let place = match &self.pinned {
            Some(cores) => format!(
                "both sidecars of a system on core {:?}, the load on {:?}, the server on {:?}, before others of the \
                 machine where that is allowed, for latency as processes of real time",
                cores.sidecars, cores.load, cores.server
            ),
            None => "processes run where the kernel puts them".to_owned(),
        };
        let (tls, peers) = (self.agreement(), self.peers.render());
        let unoptimized = if self.optimized {
            ""
        } else {
            "- NOT OPTIMIZED: the bare pair and the load are a debug build. No figure means anything.\n"
        };
        let quick = if self.quick {
            "- QUICK: one short round, to see that everything runs. No figure means anything.\n"
        } else {
            ""
        };
        let names: Vec<_> = systems.iter().map(|system| system.describe()).collect();
        format!(
            "# What sidecars cost\n\n\
             - {}; {}, {} cores, {}; {}; {}; benchmark {}\n\
             - Systems, by turns: {}. {} rounds of {} ms each; medians, with least and most.\n\
             - Load, client's sidecar, server's sidecar and server in two pods: network namespaces on a bridge, the same \
             kernel rules capture for all. {place}. CPU is that of the two sidecars' processes.\n\
             - Ours: tulle-proxy {}, one worker, configured by its control plane, JSON access log to a pipe, metrics on.\n\
             - Logs: pipes of one size, and one reader for all that counts the lines. Who has not written a line for each request \
             (connection, where they are opaque) is refused; linkerd2-proxy, who lets some go, who has written none.\n\
             - The bare pair: the same crates ({}), as they are: no config, policy, telemetry or retry, but no batching of frames either.\n\
             {peers}{tls}{unoptimized}{quick}",
            self.date,
            self.cpu,
            self.cores,
            self.kernel,
            self.rustc,
            if self.perf.is_empty() {
                "no perf"
            } else {
                &self.perf
            },
            self.bench,
            names.join(", "),
            self.rounds,
            self.window_ms,
            self.tulle,
            self.crates.join(", "),
        )
    }
}

impl Versions {
    fn render(&self) -> String {
        let mut text = String::new();
        if let Some(version) = &self.envoy {
            text += &format!(
                "- Envoy {version}: one worker; static clusters and the router as its only filter; JSON access log \
                 with our keys to a pipe, held back for {} ms at most as ours; metrics on; no retries; HTTP/1.1 between its sidecars where apps speak it, as ours \
                 (as HTTP/2 it would cost Envoy less).\n",
                logs::HELD_BACK_MS
            );
        }
        if let Some(version) = &self.linkerd {
            text += &format!(
                "- linkerd2-proxy {version}: one worker; P-256 certificates of a CA for it alone; JSON access log to a pipe; metrics \
                 on. {}\n",
                linkerd::CAVEAT
            );
        }
        if let Some(version) = &self.ztunnel {
            text += &format!(
                "- ztunnel {version}: dedicated to its pod, one worker; both pods from a file; certificates of the same CA; \
                 JSON access log to a pipe; metrics on. {}\n",
                ztunnel::CAVEAT
            );
        }
        text
    }
}

fn crates() -> Vec<String> {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap_or_default();
    let version = |name: &str| {
        let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        let (version, _) = rest.split_once('"')?;
        Some(format!("{name} {version}"))
    };
    let names = [
        "tokio",
        "hyper",
        "hyper-util",
        "h2",
        "http",
        "httparse",
        "bytes",
        "rustls",
        "tokio-rustls",
        "aws-lc-rs",
        "aws-lc-sys",
    ];
    names.into_iter().filter_map(version).collect()
}

/// What Envoy says of itself.
pub(crate) fn version(program: &Path) -> String {
    let text = said(&program.to_string_lossy(), &["--version"]);
    let version = text.split("version: ").nth(1).unwrap_or(&text);
    let mut parts = version.split('/');
    let commit = parts.next().unwrap_or_default();
    let rest: Vec<_> = parts.collect();
    format!("{} ({})", rest.join("/"), commit.get(..7).unwrap_or(commit))
}

/// What a program writes; nothing is better than no report.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    String::from_utf8_lossy(&text).trim().to_owned()
}
