//! A control plane beside the one of the cluster, and questions to its operators' address.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::eventually;
use tulle_tests::kubernetes::Program;

use super::SOON;

/// The definition of what control planes store.
const SNAPSHOTS: &str =
    include_str!("../../../deploy/charts/tulle/crds/configsnapshots.tulle.dev.yaml");

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// `tulle control --kubernetes`; it ends when dropped.
pub(super) struct Control {
    child: Child,
    /// Whose network it is in.
    machine: u32,
    admin: SocketAddr,
    _program: Program,
}

impl Control {
    /// Starts one, and waits until it has read everything.
    pub(super) async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_as(cluster, None).await
    }

    /// The same, by another's credentials than those of who may do everything.
    pub(super) async fn start_as(
        cluster: &Cluster,
        kubeconfig: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let program = Program::new()?;
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: { name: tulle-system }";
        cluster.ask(["apply", "--server-side", "-f", "-"], namespace)?;
        super::define(cluster, SNAPSHOTS)?;
        let mut command = program.command(cluster);
        command.args(["control", "--kubernetes", "--xds-address=127.0.0.1:0"]);
        command.arg("--admin-address=127.0.0.1:0");
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().context("it has a log")?;
        let mut control = Self {
            child,
            machine: cluster.control().pid(),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            _program: program,
        };
        control.admin = admin(log)?;
        eventually(SOON, async || {
            ensure!(control.is_ready()?, "it has not read everything");
            Ok(())
        })
        .await?;
        Ok(control)
    }

    pub(super) fn is_ready(&self) -> anyhow::Result<bool> {
        Ok(self.get("/ready")?.starts_with("HTTP/1.1 200"))
    }

    /// A debug view.
    pub(super) fn debug(&self, view: &str) -> anyhow::Result<Value> {
        let answer = self.get(&format!("/debug/{view}"))?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body)?)
    }

    /// How many ready pods it knows behind a Service, if it knows that.
    pub(super) fn ready_pods(&self, service: &str) -> anyhow::Result<Option<u64>> {
        Ok(self.debug("world")?["ready_pods_by_service"][service].as_u64())
    }

    /// Waits until it knows that many.
    pub(super) async fn sees_ready(&self, service: &str, pods: Option<u64>) -> anyhow::Result<()> {
        eventually(SOON, async || {
            let seen = self.ready_pods(service)?;
            ensure!(seen == pods, "{seen:?} ready pods of {service}");
            Ok(())
        })
        .await
    }

    /// Waits until it knows that many objects.
    pub(super) async fn sees(&self, objects: &str, count: u64) -> anyhow::Result<()> {
        eventually(SOON, async || {
            let world = self.debug("world")?;
            ensure!(world[objects] == count, "{world}");
            Ok(())
        })
        .await
    }

    /// How many lists and watches of a kind failed, for a reason that begins like this.
    pub(super) fn failures(&self, kind: &str, reason: &str) -> anyhow::Result<u64> {
        let metrics = self.get("/metrics")?;
        let name = format!("tulle_source_watch_failures_total{{kind=\"{kind}\",reason=\"{reason}");
        let lines = metrics.lines().filter(|line| line.starts_with(&name));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }

    /// A port of its machine, at which nobody answers.
    pub(super) fn listen(cluster: &Cluster) -> anyhow::Result<TcpListener> {
        on_network(cluster.control().pid(), || {
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        })
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        on_network(self.machine, || {
            let mut stream = TcpStream::connect_timeout(&self.admin, ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does something on the network of a machine, in a thread of its own.
fn on_network<T: Send>(
    machine: u32,
    what: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let there = || {
        let network = fs::File::open(format!("/proc/{machine}/ns/net"))?;
        setns(network, CloneFlags::CLONE_NEWNET)?;
        what()
    };
    let done = thread::scope(|scope| scope.spawn(there).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The operators' address, as the log has it; the rest of the log is passed on.
fn admin(log: impl std::io::Read + Send + 'static) -> anyhow::Result<SocketAddr> {
    let mut lines = BufReader::new(log).lines();
    let mut seen = String::new();
    for line in &mut lines {
        let line = line?;
        let admin = line.split(' ').find_map(|word| word.strip_prefix("admin="));
        if let Some(admin) = admin {
            let admin = admin.parse()?;
            thread::spawn(move || {
                lines
                    .map_while(Result::ok)
                    .for_each(|line| eprintln!("{line}"))
            });
            return Ok(admin);
        }
        seen += &line;
        seen.push('\n');
    }
    bail!("it ended before it served:\n{seen}")
}
