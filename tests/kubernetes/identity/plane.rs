//! Control planes on the nodes of a cluster, with the rights of their service account and no more.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Builder;
use tulle_cluster::Machine;
use tulle_tests::{Kubernetes, Metrics, eventually};

/// How long anything may take on a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(60);
/// The rights that a control plane needs to write and to review, as the chart gives them.
const RIGHTS: &str = concat!(include_str!("rights.yaml"), include_str!("source.yaml"));
/// What a mesh leaves behind, by kind.
const LEFT: [&str; 3] = ["secrets", "configmaps", "leases.coordination.k8s.io"];

/// A mesh without workloads: the namespace of its control planes, and what they write there.
pub(super) struct Mesh<'a> {
    pub(super) kubernetes: &'a Kubernetes,
    pub(super) dir: TempDir,
}

impl<'a> Mesh<'a> {
    /// An empty one.
    pub(super) async fn begin(kubernetes: &'a Kubernetes) -> anyhow::Result<Self> {
        let mesh = Self {
            kubernetes,
            dir: tempfile::tempdir()?,
        };
        mesh.ask(&["apply", "--server-side", "-f", "-"], RIGHTS)?;
        mesh.sweep()?;
        symlink(std::env::current_exe()?, mesh.dir.path().join("tulle"))?;
        let token = ["-n", "tulle-system", "create", "token", "tulle-control"];
        let token = eventually(SOON, async || mesh.ask(&token, "")).await?;
        let admin = fs::read_to_string(kubernetes.cluster.kubeconfig())?;
        let mut config: Value = serde_json::from_str(&admin)?;
        config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
        fs::write(mesh.config(), config.to_string())?;
        Ok(mesh)
    }

    fn config(&self) -> std::path::PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Runs `kubectl` with everybody's rights.
    pub(super) fn ask(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.kubernetes
            .cluster
            .ask(arguments.iter().copied(), input)
    }

    /// An object, as JSON.
    pub(super) fn get(&self, namespace: &str, what: &str) -> anyhow::Result<Value> {
        let said = self.ask(&["-n", namespace, "get", what, "-o", "json"], "")?;
        Ok(serde_json::from_str(&said)?)
    }

    /// The trust bundle in a namespace.
    pub(super) fn bundle(&self, namespace: &str) -> anyhow::Result<String> {
        let map = self.get(namespace, "configmap/tulle-ca-root")?;
        let text = map["data"]["root.pem"].as_str();
        text.map(str::to_owned).context("it has no bundle")
    }

    /// Who holds the lease.
    pub(super) fn holder(&self) -> anyhow::Result<String> {
        let lease = self.get("tulle-system", "lease/tulle-control")?;
        let holder = lease["spec"]["holderIdentity"].as_str();
        Ok(holder.unwrap_or_default().to_owned())
    }

    /// Starts a control plane on a node.
    pub(super) fn plane(&self, node: &str, more: &[&str]) -> anyhow::Result<Plane> {
        let machine = self.kubernetes.cluster.node(node)?;
        Plane::start(machine, self.dir.path(), &self.config(), more)
    }

    fn sweep(&self) -> anyhow::Result<()> {
        for kind in LEFT {
            let ours = "app.kubernetes.io/part-of=tulle";
            self.ask(&["delete", kind, "-A", "-l", ours, "--wait=true"], "")?;
        }
        Ok(())
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        // A cluster that does not answer any more is about to go as a whole.
        let _ = self.sweep();
    }
}

/// A control plane that runs. It is killed when dropped.
pub(super) struct Plane {
    child: Child,
    network: File,
    pub(super) xds: SocketAddr,
    pub(super) admin: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Plane {
    fn start(machine: &Machine, dir: &Path, config: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let mut command = machine.on_network(dir.join("tulle"));
        command
            .args(["control", "--kubernetes", "--xds-address=127.0.0.1:0"])
            .arg("--admin-address=0.0.0.0:0")
            .args(more)
            .env("KUBECONFIG", config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stderr.take().context("it has an output")?;
        let network = File::open(format!("/proc/{}/ns/net", machine.pid()))?;
        let said = Arc::new(Mutex::new(String::new()));
        let (heard, (sender, serves)) = (said.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let word = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
                if let (Some(xds), Some(admin)) = (word("xds="), word("admin=")) {
                    // Nobody waits for it a second time.
                    let _ = sender.send((xds.to_owned(), admin.to_owned()));
                }
                let mut said = heard.lock();
                said.push_str(&line);
                said.push('\n');
            }
        });
        let mut plane = Self {
            child,
            network,
            xds: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            said,
        };
        let Ok((xds, admin)) = serves.recv_timeout(SOON) else {
            let status = plane.child.try_wait();
            anyhow::bail!("it does not serve: {status:?}\n{}", plane.said());
        };
        plane.xds = xds.parse()?;
        plane.admin.set_port(admin.parse::<SocketAddr>()?.port());
        Ok(plane)
    }

    /// What it has logged.
    pub(super) fn said(&self) -> String {
        self.said.lock().clone()
    }

    /// Does something on its network.
    pub(super) fn there<T: Send>(
        &self,
        act: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Of this thread only, which ends soon.
                setns(&self.network, CloneFlags::CLONE_NEWNET)?;
                let runtime = Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(act())
            });
            thread
                .join()
                .unwrap_or_else(|_| anyhow::bail!("it panicked"))
        })
    }

    /// What its operators see.
    pub(super) fn admin(&self, method: &str, path: &str) -> anyhow::Result<String> {
        self.admin_at(self.admin, method, path)
    }

    /// The same by way of an address.
    pub(super) fn admin_at(
        &self,
        address: SocketAddr,
        method: &str,
        path: &str,
    ) -> anyhow::Result<String> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            address.ip()
        );
        self.there(async move || {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        })
    }

    /// Its state of the roots.
    pub(super) fn ca(&self) -> anyhow::Result<Value> {
        let answer = self.admin("GET", "/ca")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        serde_json::from_str(body).with_context(|| answer.clone())
    }

    /// Whether it is the one that writes.
    pub(super) fn leads(&self) -> anyhow::Result<bool> {
        let metrics = Metrics::new(self.admin("GET", "/metrics")?);
        Ok(metrics.sum("tulle_control_leader", &[]) > 0.0)
    }

    /// Ends it without a word.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits.
    pub(super) fn terminate(mut self) -> anyhow::Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGTERM,
        )?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}\n{}", self.said());
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An API server that stands still until this is dropped.
pub(super) struct Frozen(Pid);

impl Frozen {
    pub(super) fn api_server(kubernetes: &Kubernetes) -> anyhow::Result<Self> {
        let network = fs::read_link(format!(
            "/proc/{}/ns/pid",
            kubernetes.cluster.control().pid()
        ))?;
        let found = fs::read_dir("/proc")?.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let there = fs::read_link(entry.path().join("ns/pid")).ok()? == network;
            (there && name.trim() == "kube-apiserver").then_some(pid)
        });
        let pid = Pid::from_raw(found.context("there is no API server")?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It is there as long as its cluster is.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
