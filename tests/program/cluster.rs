//! `cluster`, as a contributor runs it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::terminal::Terminal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cluster");
/// How long what a killed one left may take to be gone.
const GONE: Duration = Duration::from_secs(20);

pub(crate) fn says_how_it_is_used(terminal: &Terminal) -> anyhow::Result<()> {
    let help = terminal.program_at(PROGRAM, &["--help"])?.ok()?;
    for part in [
        "--nodes <N>",
        "KUBECONFIG",
        "./tests/run",
        "cluster -- kubectl get nodes",
    ] {
        ensure!(help.contains(part), "{part} is not in {help}");
    }
    let none = terminal.program_at(PROGRAM, &["--nodes", "0", "--", "true"])?;
    ensure!(
        none.status == 1 && none.stderr.contains("a cluster of 0 nodes: it has 1 to"),
        "{none}"
    );
    terminal.nothing_left()
}

pub(crate) fn runs_a_command_and_ends_with_it(terminal: &Terminal) -> anyhow::Result<()> {
    let script = "kubectl get nodes -o name; test -f \"$KUBECONFIG\" || exit 1; exit 7";
    let ran = terminal.program_at(PROGRAM, &["--", "sh", "-c", script])?;
    ensure!(ran.status == 7 && ran.stdout == "node/node0\n", "{ran}");
    terminal.nothing_left()
}

pub(crate) fn leaves_nothing_when_it_is_killed(terminal: &Terminal) -> anyhow::Result<()> {
    let script = "echo up; exec sleep 1000";
    let mut cluster = terminal.start_at(Path::new(PROGRAM), &["--", "sh", "-c", script])?;
    cluster.wait_for("up\n")?;
    drop(cluster);
    let end = Instant::now() + GONE;
    while let Err(left) = terminal.nothing_left() {
        ensure!(Instant::now() < end, "{left}");
        std::thread::sleep(Duration::from_millis(25));
    }
    Ok(())
}
