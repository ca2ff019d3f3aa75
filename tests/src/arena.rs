//! A test's own Kubernetes namespace in the shared mesh, and what a test does in it. Dropping it removes everything.

mod documents;

use std::fmt;
use std::future::Future;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};
use tulle_cli::mesh::{Load, Summary};
use tulle_runtime::names::{containers, ports};
use tulle_sandbox::{ObjectKey, Output, PodView};

use crate::mesh::Mesh;
use crate::metrics::Metrics;
use documents::Documents;

/// How long pods may take to be ready.
const READY: Duration = Duration::from_secs(40);
/// How long a program in a pod may run.
const PROGRAM: Duration = Duration::from_secs(30);
/// Between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(25);

/// Tries until it succeeds or the deadline passes, and then fails as the last attempt did. For what other processes do.
pub async fn eventually<T, F: Future<Output = anyhow::Result<T>>>(
    deadline: Duration,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("not within {deadline:?}")));
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// How a program ended and what it wrote.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status.
    pub status: i32,
    /// Standard output; what is no UTF-8 is replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The output of a program that succeeded.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.status == 0, "it failed: {self}");
        Ok(self.stdout)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl From<std::process::Output> for Ran {
    fn from(output: std::process::Output) -> Self {
        Self {
            // As shells say it of what a signal ended.
            status: output.status.code().unwrap_or_else(|| {
                let signal = output.status.signal().unwrap_or_default();
                128 + signal
            }),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "status {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// A namespace of a test.
#[derive(Debug)]
pub struct Arena<'a> {
    mesh: &'a Mesh,
    namespace: String,
    text: Mutex<String>,
}

impl<'a> Arena<'a> {
    pub(crate) async fn build(mesh: &'a Mesh, namespace: &str, text: &str) -> anyhow::Result<Self> {
        let arena = Self {
            mesh,
            namespace: namespace.to_owned(),
            text: Mutex::new(text.to_owned()),
        };
        arena.write()?;
        arena.wait_ready().await?;
        Ok(arena)
    }

    /// The mesh that it is part of.
    #[must_use]
    pub fn mesh(&self) -> &'a Mesh {
        self.mesh
    }

    /// Its name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its pods, without those on their way out.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        let pods = self.mesh.sandbox.pods().into_iter();
        pods.filter(|pod| pod.key.namespace == self.namespace && !pod.terminating)
            .collect()
    }

    /// The ready pods of an app.
    #[must_use]
    pub fn pods_of(&self, app: &str) -> Vec<PodView> {
        let mut pods = self.pods();
        pods.retain(|pod| {
            let of_app = pod.key.name.strip_prefix(app);
            pod.ready && of_app.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        pods
    }

    /// A pod by its name, or a ready one of the app of that name.
    pub fn pod(&self, name: &str) -> anyhow::Result<PodView> {
        let exact = self.pods().into_iter().find(|pod| pod.key.name == name);
        exact
            .or_else(|| self.pods_of(name).into_iter().next())
            .with_context(|| format!("there is no pod {name} in {}", self.namespace))
    }

    /// Runs a program in the app's container to its end.
    pub async fn exec<T: Into<String>>(
        &self,
        pod_or_app: &str,
        argv: impl IntoIterator<Item = T>,
    ) -> anyhow::Result<Ran> {
        let pod = self.pod(pod_or_app)?.key;
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        let ran = timeout(PROGRAM, self.mesh.sandbox.exec(&pod, None, argv.clone())).await;
        let output =
            ran.with_context(|| format!("{argv:?} in {pod} did not end within {PROGRAM:?}"))??;
        Ok(output.into())
    }

    /// Starts a program in the app's container, with pipes for its input and output. It is killed when dropped.
    pub fn spawn<T: Into<String>>(
        &self,
        pod_or_app: &str,
        argv: impl IntoIterator<Item = T>,
    ) -> anyhow::Result<Child> {
        let pod = self.pod(pod_or_app)?.key;
        Ok(self.mesh.sandbox.spawn_in(&pod, None, argv)?)
    }

    /// `tulle app call --json`: the answer, or why there is none (a string), and an error only if it cannot run.
    pub async fn app_call(&self, from: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let argv = ["tulle", "app", "call", "--json"].iter().chain(arguments);
        let ran = self.exec(from, argv.copied()).await?;
        let text = if ran.stdout.is_empty() {
            &ran.stderr
        } else {
            &ran.stdout
        };
        Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.trim().to_owned())))
    }

    /// `tulle app load` to its end.
    pub async fn load(
        &self,
        from: &str,
        url: &str,
        rate: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Summary> {
        self.start_load(from, url, rate, seconds, more)?
            .summary()
            .await
    }

    /// Starts `tulle app load`; [`Load::summary`] waits for its end.
    pub fn start_load(
        &self,
        from: &str,
        url: &str,
        rate: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Load> {
        let pod = self.pod(from)?.key;
        Load::start(&self.mesh.sandbox, &pod, url, rate, seconds, more)
    }

    /// Reads a path of a sidecar's admin endpoint; what is not JSON comes as a string.
    pub async fn admin(&self, pod_or_app: &str, path: &str) -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:{}{path}", ports::ADMIN);
        let answer = self.app_call(pod_or_app, &[&url]).await?;
        let body = answer.get("body").cloned();
        body.with_context(|| format!("{path} of {pod_or_app} answered {answer}"))
    }

    /// What a sidecar measures.
    pub async fn metrics(&self, pod_or_app: &str) -> anyhow::Result<Metrics> {
        match self.admin(pod_or_app, "/stats").await? {
            Value::String(text) => Ok(Metrics::new(text)),
            other => bail!("/stats of {pod_or_app} answered {other}"),
        }
    }

    /// Lines of a sidecar's access log, newest last.
    pub fn access_log(&self, pod_or_app: &str) -> anyhow::Result<Vec<Value>> {
        let log = self.logs(pod_or_app, Some(containers::PROXY))?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        Ok(lines
            .filter(|line: &Value| line.get("response_flags").is_some())
            .collect())
    }

    /// What a container wrote; that of the app unless named.
    pub fn logs(&self, pod_or_app: &str, container: Option<&str>) -> anyhow::Result<String> {
        let log = self
            .mesh
            .sandbox
            .logs(&self.pod(pod_or_app)?.key, container)?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Changes the manifests, as a person would with an editor. What follows from it takes its time.
    pub fn edit(&self, change: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
        {
            let mut text = self.text.lock();
            let changed = change(&text);
            ensure!(
                *text != changed,
                "the edit changes nothing in {}",
                self.namespace
            );
            *text = changed;
        }
        self.write()
    }

    /// Adds manifests.
    pub fn add(&self, manifests: impl AsRef<str>) -> anyhow::Result<()> {
        self.edit(|text| format!("{text}\n---\n{}", manifests.as_ref()))
    }

    /// Waits until the pods are all ready and the control plane knows that.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let documents = self.documents()?;
        let wanted = documents.pods();
        let ready = |pods: &[PodView]| {
            let own = pods
                .iter()
                .filter(|pod| pod.key.namespace == self.namespace && !pod.terminating);
            own.filter(|pod| pod.ready || pod.phase == "Succeeded")
                .count()
                >= wanted
        };
        if let Err(error) = self.mesh.sandbox.wait_until(READY, ready).await {
            let problems = self.mesh.sandbox.problems().join("; ");
            bail!("{error:#}; {problems}\n{}", self.tell_unready());
        }
        let services = documents.services();
        eventually(READY, async || {
            let world = self.mesh.control_admin("/debug/world").await?;
            for (service, expected) in &services {
                let known = world["ready_pods_by_service"][service].as_u64();
                ensure!(
                    known >= Some(*expected as u64),
                    "control knows {known:?} of {expected} ready pods of {service}"
                );
            }
            Ok(())
        })
        .await
    }

    fn tell_unready(&self) -> String {
        let unready = self.pods().into_iter().filter(|pod| !pod.ready);
        unready
            .flat_map(|pod| {
                let names = pod
                    .containers
                    .iter()
                    .map(|container| container.name.clone());
                let key = pod.key.clone();
                names
                    .map(move |name| (key.clone(), name))
                    .collect::<Vec<_>>()
            })
            .map(|(key, name)| {
                let log = self
                    .mesh
                    .sandbox
                    .logs(&key, Some(&name))
                    .unwrap_or_default();
                format!("--- {key} {name}\n{}\n", String::from_utf8_lossy(&log))
            })
            .collect()
    }

    /// The key of an object in it.
    #[must_use]
    pub fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(self.namespace.clone(), name)
    }

    fn documents(&self) -> anyhow::Result<Documents> {
        Documents::parse(&self.namespace, &self.text.lock())
    }

    fn file(&self) -> String {
        format!("{}.yaml", self.namespace)
    }

    fn write(&self) -> anyhow::Result<()> {
        let text = self.documents()?.render();
        Ok(self.mesh.sandbox.apply(&self.file(), &text)?)
    }
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        // The test's own verdict counts; what stays ends with the process.
        let _ = self.mesh.sandbox.remove(&self.file());
    }
}
