//! One mesh for all tests of a program: a sandbox, a control plane, and the runtime that they live on.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tulle_cli::mesh;
use tulle_runtime::names::ports;
use tulle_sandbox::{HostProcess, Node, Options, Sandbox};

use crate::arena::{Arena, eventually};
use crate::harness::{Once, World};

/// How long the control plane may take to come up.
const BUILD_UP: Duration = Duration::from_secs(20);

/// Where the mesh will be: brought up by the first test that wants it.
#[derive(Debug)]
pub(crate) struct Stage {
    node: Node,
    mesh: Once<Mesh>,
}

impl Stage {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node,
            mesh: Once::new(),
        }
    }

    pub(crate) fn mesh(&self) -> Result<&Mesh, String> {
        let built = self
            .mesh
            .get_or_init(|| Mesh::build(self.node).map_err(|error| format!("no mesh: {error:#}")));
        built.as_ref().map_err(Clone::clone)
    }
}

/// The running mesh.
#[derive(Debug)]
pub struct Mesh {
    /// What runs the pods.
    pub sandbox: Sandbox,
    /// The control plane. Who stops it must run alone.
    pub control: HostProcess,
    runtime: Handle,
    taken: Mutex<Vec<String>>,
    /// Removed with the mount namespace at the latest.
    _manifests: tempfile::TempDir,
}

impl World for Mesh {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Mesh {
    pub(crate) fn build(node: Node) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        // It lives as long as the process.
        std::thread::Builder::new()
            .name("mesh".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        handle.clone().block_on(Self::start(node, handle))
    }

    async fn start(node: Node, runtime: Handle) -> anyhow::Result<Self> {
        let manifests = tempfile::tempdir()?;
        let injector = mesh::injector();
        let sandbox = Sandbox::start(node, Options { injector }, manifests.path()).await?;
        let control = mesh::start_control(&sandbox, None)?;
        let mesh = Self {
            sandbox,
            control,
            runtime,
            taken: Mutex::default(),
            _manifests: manifests,
        };
        eventually(BUILD_UP, async || mesh.control_admin("/ready").await)
            .await
            .with_context(|| String::from_utf8_lossy(&mesh.control.logs()).into_owned())?;
        Ok(mesh)
    }

    /// Brings up a namespace with what the manifests say, and waits until its pods are ready and the control plane
    /// knows. A namespace that they do not contain is made, and its pods get sidecars. It goes with the arena.
    pub async fn apply(
        &self,
        namespace: &str,
        manifests: impl AsRef<str>,
    ) -> anyhow::Result<Arena<'_>> {
        {
            let mut taken = self.taken.lock();
            ensure!(
                !taken.iter().any(|name| name == namespace),
                "namespace {namespace} is another test's: choose another name"
            );
            taken.push(namespace.to_owned());
        }
        Arena::build(self, namespace, manifests.as_ref()).await
    }

    /// Reads a path of the control plane's admin endpoint; what is not JSON comes as a string.
    pub async fn control_admin(&self, path: &str) -> anyhow::Result<Value> {
        self.ask_control("GET", path).await
    }

    /// Asks the control plane's admin endpoint to do something.
    pub async fn control_post(&self, path: &str) -> anyhow::Result<Value> {
        self.ask_control("POST", path).await
    }

    async fn ask_control(&self, method: &str, path: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", ports::CONTROL_ADMIN)).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("the answer has no end of its head")?;
        if !head.starts_with("HTTP/1.1 2") {
            bail!("control {path} answered {answer}");
        }
        Ok(serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
    }
}
