//! A real Kubernetes cluster that the tests of a program share, and a namespace in it for each.

mod container;
mod forward;
mod images;
pub mod install;
mod program;

use std::future::Future;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Trial};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;
use tulle_cluster::Cluster;

use crate::arena::{Ran, eventually};
use crate::gate::{self, Missing};
use crate::harness::{Case, Once, THREADS, World};

pub use container::Container;
pub use forward::Forward;
pub use program::Program;

/// Nodes of the cluster.
const NODES: usize = 2;
/// How long pods may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// The cluster, `node0` and `node1`. Who loses one must have a cluster of its own.
#[derive(Debug)]
pub struct Kubernetes {
    /// The cluster itself.
    pub cluster: Cluster,
    program: Program,
    /// Another one, in which Tulle is installed.
    meshed: OnceCell<Box<Self>>,
    runtime: Runtime,
}

impl World for Kubernetes {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Kubernetes {
    fn start() -> anyhow::Result<Self> {
        Ok(Self {
            program: Program::new()?,
            cluster: Cluster::start(NODES)?,
            meshed: OnceCell::new(),
            runtime: Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
        })
    }

    /// A cluster like this one in which Tulle is installed, the same for all tests; who changes Tulle must run alone.
    pub async fn meshed(&self) -> anyhow::Result<&Self> {
        let make = async || {
            let other = Self::start()?;
            install::install(&other.cluster, &[]).await?;
            Ok::<_, anyhow::Error>(Box::new(other))
        };
        Ok(self.meshed.get_or_try_init(make).await?)
    }

    /// Runs `tulle` to its end, as somebody who may do everything in the cluster.
    pub fn tulle(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.program.run(&self.cluster, arguments)
    }

    /// Makes a namespace with what the manifests say, and waits until its pods are ready. It goes when dropped.
    pub async fn apply(&self, name: &str, manifests: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::apply(&self.cluster, name, "", manifests).await
    }

    /// As [`Kubernetes::apply`], with a sidecar in each pod; Tulle is installed.
    pub async fn apply_meshed(&self, name: &str, manifests: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::apply(&self.cluster, name, "tulle.dev/inject=enabled", manifests).await
    }
}

/// Runs tests over a cluster as `cargo test` expects.
#[must_use]
pub fn run(cases: Vec<Case<Kubernetes>>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(THREADS).min(THREADS));
    if arguments.list {
        let listed = cases
            .into_iter()
            .map(|case| Trial::test(case.name(), || Ok(())));
        return libtest_mimic::run(&arguments, listed.collect()).exit_code();
    }
    let stage = Arc::new(Once::<Kubernetes>::new());
    let turns = Arc::new(RwLock::new(()));
    let trials = cases.into_iter().map(|case| {
        let (stage, turns) = (stage.clone(), turns.clone());
        Trial::ignorable_test(case.name(), move || {
            let cluster = || {
                let started = stage.get_or_init(|| {
                    Kubernetes::start().map_err(|error| format!("no cluster: {error:#}"))
                });
                started.as_ref().map_err(Clone::clone)
            };
            match gate::require(gate::CLUSTER) {
                Ok(()) => case.play(cluster, &turns),
                Err(Missing::Skip(reason)) => Ok(libtest_mimic::Completion::ignored_with(reason)),
                Err(Missing::Fail(reason)) => Err(reason.into()),
            }
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A namespace of a test.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    /// As [`Kubernetes::apply`], in any cluster; with a label, unless that is empty.
    pub async fn apply(
        cluster: &'a Cluster,
        name: &str,
        label: &str,
        manifests: &str,
    ) -> anyhow::Result<Self> {
        cluster.ask(["create", "namespace", name], "")?;
        let namespace = Self {
            cluster,
            name: name.to_owned(),
        };
        if !label.is_empty() {
            cluster.ask(["label", "namespace", name, label], "")?;
        }
        // Pods are refused until their namespace has its account.
        eventually(READY, async || {
            namespace.ask(["get", "serviceaccount", "default"], "")
        })
        .await?;
        namespace.ask(["apply", "--server-side", "-f", "-"], manifests)?;
        let ready = eventually(READY, async || namespace.ready()).await;
        ready.with_context(|| namespace.describe())?;
        Ok(namespace)
    }

    /// Runs `kubectl` in it and returns what it wrote.
    pub fn ask<'b>(
        &'b self,
        arguments: impl IntoIterator<Item = &'b str>,
        input: &str,
    ) -> anyhow::Result<String> {
        let own = ["--namespace", &self.name];
        self.cluster.ask(own.into_iter().chain(arguments), input)
    }

    /// `kubectl` in it, with everybody's rights.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", &self.name]);
        command
    }

    /// Objects of a kind, or of several.
    pub fn get(&self, kinds: &str) -> anyhow::Result<Vec<Value>> {
        let mut list: Value = serde_json::from_str(&self.ask(["get", kinds, "-o", "json"], "")?)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => anyhow::bail!("no list of {kinds}: {other}"),
        }
    }

    /// Runs a program in a pod (`NAME`, `deployment/NAME` ...) to its end, with that input.
    pub fn exec(&self, pod: &str, argv: &[&str], input: &str) -> anyhow::Result<Ran> {
        let mut command = self.kubectl();
        command
            .args(["exec", "--stdin", pod, "--"])
            .args(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("it has an input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?.into())
    }

    /// Brings a port of a pod to this machine.
    pub fn forward(&self, pod: &str, port: u16) -> anyhow::Result<Forward<'_>> {
        Forward::new(self.cluster, &self.name, pod, port)
    }

    /// The names of the pods with that label `app`.
    pub fn pods_of(&self, app: &str) -> anyhow::Result<Vec<String>> {
        let pods = self.get("pods")?;
        let of = |pod: &&Value| pod["metadata"]["labels"]["app"] == app;
        let names = pods
            .iter()
            .filter(of)
            .filter_map(|pod| pod["metadata"]["name"].as_str());
        let names: Vec<_> = names.map(str::to_owned).collect();
        ensure!(!names.is_empty(), "{app} has no pod");
        Ok(names)
    }

    /// Fails unless there are pods, all are ready or done, and workloads have as many as they want.
    fn ready(&self) -> anyhow::Result<()> {
        let objects = self.get("pods,deployments,statefulsets")?;
        let pods = objects.iter().filter(|object| object["kind"] == "Pod");
        ensure!(pods.count() > 0, "there are no pods");
        for object in &objects {
            let status = &object["status"];
            let ready = if object["kind"] == "Pod" {
                let conditions = status["conditions"].as_array().into_iter().flatten();
                let mut met = conditions.filter(|it| it["status"] == "True");
                met.any(|it| it["type"] == "Ready") || status["phase"] == "Succeeded"
            } else {
                status["readyReplicas"] == object["spec"]["replicas"]
            };
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            ensure!(ready, "{kind} {name} is not ready");
        }
        Ok(())
    }

    /// What a person would look at.
    fn describe(&self) -> String {
        let pods = self.ask(["describe", "pods"], "");
        pods.unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // A cluster that does not answer any more is about to go as a whole.
        let _ = self
            .cluster
            .ask(["delete", "namespace", &self.name, "--wait=false"], "");
    }
}
