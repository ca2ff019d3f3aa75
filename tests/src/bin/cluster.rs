//! A real Kubernetes cluster on this machine, to play with.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::Parser;
use tokio::runtime::Builder;
use tulle_cluster::{Cluster, cache};
use tulle_tests::kubernetes::{Program, install};

/// Starts a real Kubernetes cluster on this machine and gives you a shell on its network, or runs a command there.
#[derive(Debug, Parser)]
#[command(name = "cluster", after_help = AFTER)]
struct Options {
    /// How many nodes: node0, node1 ...
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Install the mesh of this checkout in it.
    #[arg(long)]
    mesh: bool,
    /// What to run; a shell if there is nothing. The cluster ends with it.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

const AFTER: &str = "\
It needs root, and what `./tests/run` builds and installs: run that once, or `./tests/run --no-run` for just this. \
Nothing of the cluster reaches the network outside, or can be reached from there; several run side by side, and nothing \
is left when the shell or command has ended, or when this was killed.

In the shell, and for CMD:
  KUBECONFIG    is set, and kubectl is on PATH
  addresses     of pods, Services and nodes (10.90.0.10 is node0, fd90::a too) can be called, names by 10.96.0.10
  files         are your own
  tulle         of this checkout is on PATH, and its images tulle.test/tulle:1 (`app serve` and the like) and
                tulle.test/tulle-proxy:1 are on the nodes; with an empty cluster install it by
                tulle install --set image.registry=tulle.test --set image.tag='\"1\"' --set image.pullPolicy=Never

Examples (`cluster` is `cargo run -p tulle-tests --bin cluster --`):
  cluster --nodes 2 --mesh
  cluster -- kubectl get nodes -o wide
  cluster -- sh -c 'kubectl apply --server-side -f deploy/ && kubectl get pods -A'
";

fn main() -> ExitCode {
    if let Some(status) = tulle_tests::as_tulle() {
        return status;
    }
    match run(&Options::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::start(options.nodes)?;
    let tulle = Program::new()?;
    install::load(&tulle, &cluster)?;
    if options.mesh {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(install::apply(&tulle, &cluster, &[]))?;
    }
    let mut argv = options.command.clone();
    if argv.is_empty() {
        welcome(&cluster);
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        argv.push(shell.to_string_lossy().into_owned());
    }
    let [program, arguments @ ..] = argv.as_slice() else {
        bail!("there is nothing to run");
    };
    let node = cluster.nodes().first().context("it has a node")?;
    let mut command = node.on_network(program);
    command.args(arguments);
    surround(&mut command, &cluster, &tulle)?;
    let status = command
        .status()
        .with_context(|| format!("start {program}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What a command finds in its environment.
fn surround(command: &mut Command, cluster: &Cluster, program: &Program) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own: PathBuf = cache().join("bin");
    let first = [own, program.folder().to_owned()].into_iter();
    let path = std::env::join_paths(first.chain(std::env::split_paths(&path)))?;
    command
        .env("PATH", path)
        .env("KUBECONFIG", cluster.kubeconfig());
    // Proxies are in the world outside.
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    Ok(())
}

fn welcome(cluster: &Cluster) {
    eprintln!("The cluster is ready; it ends with this shell. Try: kubectl get pods -A");
    for node in cluster.nodes() {
        let (name, pid) = (node.name(), node.pid());
        eprintln!("  nsenter --all --target {pid}   is a shell on {name}, with ctr and nft");
    }
    let logs = cluster.folder().join("log");
    eprintln!("  {}   has the logs", logs.display());
}
