//! A cluster: started in order, awaited, and ended.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::component::Component;
use crate::control_plane::{ControlPlane, ETCD};
use crate::image::Image;
use crate::machine::{Machine, Place};
use crate::network::MOST_NODES;
use crate::node::{CONTAINERD, Node, PAUSE_IMAGE, snapshotter};
use crate::pki::{ADMIN, Authority};
use crate::progress::Progress;
use crate::sweep::{self, sweep};
use crate::{dns, network, programs};

/// How long one program may take until it serves, on a busy machine.
const UP: Duration = Duration::from_secs(90);
/// The name of its program and of its log.
const API_SERVER: &str = "kube-apiserver";
/// How many processes of a user may watch files.
const WATCHES: &str = "/proc/sys/fs/inotify/max_user_instances";
const MANY: u32 = 8192;
/// Between two looks at a program that has to come up.
const LOOK: Duration = Duration::from_millis(100);

/// A cluster that runs. It ends when dropped, or with this process.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    kubeconfig: PathBuf,
    images: AtomicUsize,
    snapshotter: &'static str,
    components: Vec<Component>,
    nodes: Vec<Machine>,
    /// Holds all others, so it goes last.
    control: Machine,
}

impl Cluster {
    /// Starts a cluster with so many nodes, `node0` and on, and waits until all are ready. Ends first what clusters of
    /// processes that were killed have left.
    pub fn start(nodes: usize) -> Result<Self> {
        ensure!(
            (1..=MOST_NODES).contains(&nodes),
            "a cluster of {nodes} nodes: it has 1 to {MOST_NODES}"
        );
        if let Some(missing) = programs::missing() {
            bail!("this machine cannot run a cluster: {missing}");
        }
        allow_watches();
        sweep()?;
        let tag = sweep::new_tag()?;
        let folder = sweep::folder(&tag);
        let place = Place { tag, folder };
        for part in ["control", "images", "log"] {
            let folder = place.folder.join(part);
            fs::create_dir_all(&folder).with_context(|| {
                let folder = folder.display();
                format!("create {folder}: TMPDIR says where clusters keep their files")
            })?;
        }
        let control = Machine::control(&place)?;
        let mut cluster = Self {
            kubeconfig: place.folder.join("admin.kubeconfig"),
            images: AtomicUsize::new(0),
            snapshotter: snapshotter(&place.folder)?,
            components: Vec::new(),
            nodes: Vec::new(),
            control,
            place,
        };
        cluster.bring_up(nodes)?;
        Ok(cluster)
    }

    fn bring_up(&mut self, count: usize) -> Result<()> {
        let authority = Authority::new()?;
        fs::write(&self.kubeconfig, authority.kubeconfig(ADMIN)?)?;
        let place = self.place.clone();
        let nodes: Vec<_> = (0..count)
            .map(|number| Node::new(&place, &authority, number))
            .collect();
        for node in &nodes {
            node.prepare()?;
            self.nodes.push(self.control.node(&node.name)?);
        }
        network::connect(&self.control, &self.nodes)?;
        self.start_component(|plane| plane.etcd(), &authority)?;
        self.start_component(|plane| plane.api_server(), &authority)?;
        for (node, machine) in nodes.iter().zip(&self.nodes) {
            self.components.push(node.containerd(machine)?);
        }
        for node in &nodes {
            let socket = format!("{}-containerd", node.name);
            self.wait(&socket, |cluster| cluster.containerd(&node.name))?;
        }
        let pause = Image::new(PAUSE_IMAGE, &["/pause"]);
        self.load(&pause.program_at(programs::built("pause"), "/pause"))?;
        self.wait(API_SERVER, |cluster| {
            cluster.ask(["get", "--raw", "/readyz"], "").map(drop)
        })?;
        self.start_component(|plane| plane.controllers(), &authority)?;
        for (node, machine) in nodes.iter().zip(&self.nodes) {
            self.components.push(node.kubelet(machine)?);
            self.components.push(node.kube_proxy(machine)?);
        }
        self.start_component(|plane| plane.scheduler(), &authority)?;
        let dns = dns::start(&self.place, &self.control, &self.kubeconfig)?;
        self.components.push(dns);
        let service = dns::service().to_string();
        self.wait("kube-apiserver", |cluster| {
            cluster.ask(["apply", "-f", "-"], &service).map(drop)
        })?;
        for node in &nodes {
            let kubelet = format!("{}-kubelet", node.name);
            self.wait(&kubelet, |cluster| cluster.ready(&node.name))?;
        }
        self.wait("kube-controller-manager", |cluster| {
            cluster
                .ask(["get", "serviceaccount", "default"], "")
                .map(drop)
        })?;
        self.wait("coredns", Self::serves_dns)
    }

    fn start_component(
        &mut self,
        start: impl FnOnce(ControlPlane<'_>) -> Result<Component>,
        authority: &Authority,
    ) -> Result<()> {
        let component = start(ControlPlane {
            place: &self.place,
            machine: &self.control,
            authority,
        })?;
        self.components.push(component);
        Ok(())
    }

    /// Tries until it succeeds; a program that ends, or the named one not being up in time, is an error.
    fn wait(&mut self, name: &str, mut attempt: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let mut progress = Progress::new(format!("waiting for {name}"));
        loop {
            for component in &mut self.components {
                component.check()?;
            }
            let Err(error) = attempt(self) else {
                return Ok(());
            };
            if progress.elapsed() >= UP {
                let component = self.components.iter().find(|it| it.name == name);
                let problem = format!("{name} is not up within {} s: {error:#}", UP.as_secs());
                return Err(match component {
                    Some(component) => component.trouble(&problem),
                    None => anyhow::Error::msg(problem),
                });
            }
            progress.tick();
            sleep(LOOK);
        }
    }

    fn containerd(&self, node: &str) -> Result<()> {
        let mut command = self.node(node)?.command("ctr");
        command.args(["--address", CONTAINERD, "version"]);
        finish(command, None).map(drop)
    }

    fn ready(&self, node: &str) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')]}";
        let said = self.ask(["get", "node", node, "-o", path], "")?;
        ensure!(said.contains(r#""status":"True""#), "{said}");
        Ok(())
    }

    fn serves_dns(&self) -> Result<()> {
        let said = fs::read_to_string(self.place.logs().join("coredns.log"))?;
        // Which it says when its plugins have what they need.
        ensure!(said.contains("CoreDNS-"), "it does not serve yet");
        Ok(())
    }

    /// Its files, and the logs of its programs in `log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }

    /// What a client of the API server needs to do everything; it works on the cluster's machines.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The machines of the nodes that were not lost.
    #[must_use]
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// The machine of the control plane.
    #[must_use]
    pub fn control(&self) -> &Machine {
        &self.control
    }

    /// The machine of a node.
    pub fn node(&self, name: &str) -> Result<&Machine> {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// `kubectl` with everybody's rights.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = self.control.on_network(programs::built("kubectl"));
        command
            .env_clear()
            .env("PATH", crate::machine::PATH)
            .env("HOME", self.place.folder.join("control"))
            .env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs `kubectl` and returns what it wrote.
    pub fn ask<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &str,
    ) -> Result<String> {
        let mut command = self.kubectl();
        command.args(arguments);
        let shown: Vec<_> = command
            .get_args()
            .skip(4)
            .map(|it| it.to_string_lossy())
            .collect();
        let shown = shown.join(" ");
        finish(command, Some(input)).with_context(|| format!("kubectl {shown}"))
    }

    /// Puts an image on every node.
    pub fn load(&self, image: &Image) -> Result<()> {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let work = self.place.folder.join("images").join(number.to_string());
        fs::create_dir(&work)?;
        let archive = image.pack(&work)?;
        for node in &self.nodes {
            let mut command = node.command("ctr");
            command
                .args(["--address", CONTAINERD, "--namespace", "k8s.io"])
                .args(["images", "import", "--snapshotter", self.snapshotter, "-"])
                .stdin(fs::File::open(&archive)?);
            finish(command, None).with_context(|| format!("load an image on {}", node.name()))?;
        }
        fs::remove_dir_all(work)?;
        Ok(())
    }

    /// Kills the API server; etcd keeps what it knew. Everything else runs on.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.control.signal(API_SERVER, Signal::SIGKILL)?;
        self.api_server()?.reap();
        Ok(())
    }

    /// Starts a killed API server again, and waits until it serves.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.api_server()?.restart()?;
        self.wait(API_SERVER, |cluster| {
            cluster.ask(["get", "--raw", "/readyz"], "").map(drop)
        })
    }

    /// Has the API server hang: it takes connections, and says nothing until [`resume_api_server`](Self::resume_api_server).
    pub fn hang_api_server(&self) -> Result<()> {
        self.control.signal(API_SERVER, Signal::SIGSTOP)
    }

    /// Lets an API server go on that hangs, and waits until it serves.
    pub fn resume_api_server(&mut self) -> Result<()> {
        self.control.signal(API_SERVER, Signal::SIGCONT)?;
        self.api_server()?.resume();
        self.wait(API_SERVER, |cluster| {
            cluster.ask(["get", "--raw", "/readyz"], "").map(drop)
        })
    }

    /// Has the store forget all but what is there now, as it does every few minutes: who wants to go on from an older version
    /// is told that this is gone (410), and lists anew.
    pub fn forget(&self) -> Result<()> {
        let ask = |call: &str, body: &str| {
            let mut command = self.control().on_network("curl");
            let url = format!("{ETCD}/v3/kv/{call}");
            command.args(["--silent", "--show-error", "--fail", "--data", body, &url]);
            finish(command, None).with_context(|| format!("ask etcd for {call}"))
        };
        // Any key: the answer says which revision is the newest.
        let newest: serde_json::Value = serde_json::from_str(&ask("range", r#"{"key":"Lw=="}"#)?)?;
        let revision = &newest["header"]["revision"];
        ask(
            "compaction",
            &format!(r#"{{"revision":{revision},"physical":true}}"#),
        )
        .map(drop)
    }

    fn api_server(&mut self) -> Result<&mut Component> {
        let mut components = self.components.iter_mut();
        let server = components.find(|it| it.name == API_SERVER);
        server.context("there is no API server")
    }

    /// Loses a node: everything on it is gone at once, without a word. Whatever ends closes its connections, so the wire goes first.
    pub fn lose(&mut self, name: &str) -> Result<()> {
        let index = self.nodes.iter().position(|node| node.name() == name);
        let index = index.with_context(|| format!("there is no node {name}"))?;
        network::cut(&self.control, name)?;
        drop(self.nodes.remove(index));
        let own = format!("{name}-");
        let lost = |component: &mut Component| component.name.starts_with(&own);
        for mut component in self.components.extract_if(.., lost) {
            component.reap();
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for component in &self.components {
            component.resume();
        }
        // With it go all others.
        self.control.end();
        for component in &mut self.components {
            component.reap();
        }
    }
}

/// Runs a program to its end, with that input or the one that it has; what it wrote.
/// Kubelets and container runtimes watch files. What kernels allow by default is enough for some six nodes, those of all clusters
/// on the machine together; the images of nodes elsewhere set this, too.
fn allow_watches() {
    let allowed = fs::read_to_string(WATCHES).unwrap_or_default();
    if allowed
        .trim()
        .parse()
        .is_ok_and(|allowed: u32| allowed < MANY)
    {
        // Where it cannot be set, fewer nodes run side by side, and the log of the kubelet that is one too many says so.
        let _ = fs::write(WATCHES, MANY.to_string());
    }
}

fn finish(mut command: Command, input: Option<&str>) -> Result<String> {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // One that does not read its input has a reason, which it says.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        error.trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
