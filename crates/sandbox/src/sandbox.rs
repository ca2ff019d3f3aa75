//! The sandbox as its users hold it: the demo, the tests and the command line.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use parking_lot::RwLock;
use tokio::process::Child;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;
use tulle_injector::InjectorConfig;
use tulle_runtime::tasks::Tasks;

use crate::cluster::{Cluster, Memory, Pods, View};
use crate::dns::Dns;
use crate::host::HostProcess;
use crate::kubelet::{Kubelet, Update, bundle_directory};
use crate::manifests::{Manifests, Objects};
use crate::network::{GATEWAY_V4, GATEWAY_V6, Network, PacketCapture};
use crate::node::{Node, ROOT};
use crate::pod::life::Pod;
use crate::pod::plan::Turn;
use crate::pod::volumes::make_directory;
use crate::state::{StateDir, write_atomically};
use crate::tokens::Tokens;
use crate::view::{Event, PodView};
use crate::{Error, ObjectKey};

const TEARDOWN: Duration = Duration::from_secs(10);
const EVENTS: usize = 4096;

/// How to set up a sandbox.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Settings of the sidecars; probes and socket marks are the sandbox's own business.
    pub injector: InjectorConfig,
}

/// What a program in a pod wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A running sandbox. What it runs ends with the node, that is with this process.
#[derive(Debug, Clone)]
pub struct Sandbox {
    kubelet: Arc<Kubelet>,
    pods: Pods,
    view: watch::Receiver<View>,
    sources: Vec<PathBuf>,
    /// Held so that directories stay watched.
    _watcher: Arc<notify::RecommendedWatcher>,
}

impl Sandbox {
    /// Sets up the node and starts to run what the manifests in `directory` say, now and whenever they change.
    pub async fn start(node: Node, options: Options, directory: &Path) -> Result<Self, Error> {
        let what = || format!("find {}", directory.display());
        let directory = directory.canonicalize().map_err(Error::io(what()))?;
        let root = PathBuf::from(ROOT);
        let (applied, state) = (root.join("applied"), StateDir::create(root.join("state"))?);
        for directory in [
            &applied,
            &bundle_directory(),
            &root.join("pods"),
            &root.join("host"),
        ] {
            make_directory(directory, 0o755)?;
        }
        let tasks = Tasks::new();
        let network = Network::create(&tasks).await?;
        let gateways =
            std::iter::once(GATEWAY_V4.into()).chain(network.ipv6().then(|| GATEWAY_V6.into()));
        let dns = Dns::serve(&tasks, gateways.collect()).await?;
        let tokens = Tokens::new()?;
        write_atomically(&root.join("jwks.json"), tokens.jwks()?.as_bytes())?;
        let (updates, received) = mpsc::unbounded_channel();
        let kubelet = Arc::new(Kubelet {
            node,
            network,
            tokens,
            tasks: tasks.clone(),
            objects: RwLock::new(Arc::new(Objects::default())),
            updates,
            refresh: watch::Sender::new(()),
            events: broadcast::Sender::new(EVENTS),
            base_environment: base_environment(),
        });
        let sources = vec![directory, applied];
        let watcher = watch_directories(&kubelet, &sources)?;
        let (view, shown) = watch::channel(View::default());
        let pods = Pods::default();
        let cluster = Cluster {
            kubelet: kubelet.clone(),
            manifests: Manifests::new(sources.clone()),
            state,
            dns,
            injector: InjectorConfig {
                mark_sockets: node.ids().mark_sockets(),
                rewrite_probes: false,
                start_hook: false,
                ..options.injector
            },
            pods: pods.clone(),
            view,
            memory: Memory::default(),
        };
        tasks.spawn("cluster", cluster.run(received));
        Ok(Self {
            kubelet,
            pods,
            view: shown,
            sources,
            _watcher: Arc::new(watcher),
        })
    }

    /// The node that it runs in.
    #[must_use]
    pub fn node(&self) -> Node {
        self.kubelet.node
    }

    /// Directories for the control plane to watch, in this order: the user's, what was applied, and what the sandbox adds.
    #[must_use]
    pub fn sources(&self) -> Vec<PathBuf> {
        let state = PathBuf::from(ROOT).join("state");
        self.sources.iter().cloned().chain([state]).collect()
    }

    /// JWKS file that verifies the service account tokens of [`crate::ISSUER`].
    #[must_use]
    pub fn jwks(&self) -> PathBuf {
        PathBuf::from(ROOT).join("jwks.json")
    }

    /// Directory in which the control plane keeps trust bundles: `NAMESPACE/root.pem`, or `root.pem` for all.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        bundle_directory()
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.kubelet.events.subscribe()
    }

    /// Tells all who listen of something that happened outside of the sandbox's own view.
    pub fn announce(&self, event: Event) {
        self.kubelet.announce(event);
    }

    /// Process id by which [`crate::Client::connect`] finds it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.node().launcher()
    }

    /// Runs a program on the node, in sight of the pods at the gateway's address, and again when it ends. The program
    /// `tulle` is this one.
    pub fn spawn_host(
        &self,
        name: &str,
        argv: impl IntoIterator<Item = impl Into<String>>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<HostProcess, Error> {
        let log = PathBuf::from(ROOT).join("host").join(format!("{name}.log"));
        let argv = argv.into_iter().map(Into::into).collect();
        HostProcess::start(
            name,
            argv,
            environment.into_iter().collect(),
            log,
            self.kubelet.clone(),
        )
    }

    /// Waits until every workload has all its pods ready, by the manifests and wishes as they are at the time of the call.
    /// What cannot become ready is an error at once.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<(), Error> {
        let settled = |view: &View| view.waiting.is_empty() || !view.problems.is_empty();
        let met = timeout(deadline, self.wait_for(settled)).await;
        let waiting: Vec<_> = match met {
            Ok(Some(view)) if view.problems.is_empty() => return Ok(()),
            Ok(Some(view)) => view.problems.into_iter().chain(view.waiting).collect(),
            _ => self.view.borrow().waiting.clone(),
        };
        Err(Error::NotReady {
            waiting: waiting.join("; "),
        })
    }

    /// Waits until the pods are as `wanted` says; what it is shown is not older than the call.
    pub async fn wait_until(
        &self,
        deadline: Duration,
        wanted: impl Fn(&[PodView]) -> bool,
    ) -> Result<(), Error> {
        let met = self.wait_for(|view| wanted(&view.pods));
        if let Ok(Some(_)) = timeout(deadline, met).await {
            return Ok(());
        }
        let blockers: Vec<_> = self.pods().iter().filter_map(PodView::blocker).collect();
        Err(Error::NotReady {
            waiting: blockers.join("; "),
        })
    }

    /// Waits for a view that knows of everything asked for so far and is as `wanted`; none if the sandbox ended.
    async fn wait_for(&self, wanted: impl Fn(&View) -> bool) -> Option<View> {
        let (seen, answer) = oneshot::channel();
        self.kubelet.update(Update::Look(seen));
        answer.await.ok()?;
        let mut view = self.view.clone();
        let met = view.wait_for(|view| wanted(view)).await.ok()?;
        Some(met.clone())
    }

    /// The pods as they are now.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        self.view.borrow().pods.clone()
    }

    /// What is wrong with manifests and pods, and will not become right by waiting.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.view.borrow().problems.clone()
    }

    /// Runs a program in a container (the first of the app unless one is named) to its end.
    pub async fn exec(
        &self,
        pod: &ObjectKey,
        container: Option<&str>,
        argv: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Output, Error> {
        let mut command = self.command(pod, container, argv)?;
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command
            .output()
            .await
            .map_err(Error::io(format!("run a program in pod {pod}")))?;
        Ok(Output {
            status: status_code(output.status),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }

    /// Starts a program in a pod, with pipes for its input and output. It is killed when the handle is dropped.
    pub fn spawn_in(
        &self,
        pod: &ObjectKey,
        container: Option<&str>,
        argv: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Child, Error> {
        let mut command = self.command(pod, container, argv)?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
            .spawn()
            .map_err(Error::io(format!("run a program in pod {pod}")))
    }

    pub(crate) fn command(
        &self,
        pod: &ObjectKey,
        container: Option<&str>,
        argv: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<tokio::process::Command, Error> {
        let pod = self.find(pod)?;
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        pod.containers[container_index(&pod, container)?].join(&pod, &argv)
    }

    /// What a container wrote, as far as it is kept.
    pub fn logs(&self, pod: &ObjectKey, container: Option<&str>) -> Result<Vec<u8>, Error> {
        let pod = self.find(pod)?;
        Ok(pod.containers[container_index(&pod, container)?].log.read())
    }

    /// Ends a pod as Kubernetes would, within the time or its own grace period. Its workload may start another.
    pub fn delete_pod(&self, pod: &ObjectKey, grace: Option<Duration>) -> Result<(), Error> {
        self.find(pod)?;
        self.kubelet.update(Update::Delete(pod.clone(), grace));
        Ok(())
    }

    /// SIGKILL to every process of a pod at once. Nobody is told before; the containers start again by their policy.
    pub fn kill_pod(&self, pod: &ObjectKey) -> Result<(), Error> {
        self.find(pod)?.kill()
    }

    /// Gives a Deployment or StatefulSet another number of pods than its manifest does.
    pub fn scale(&self, workload: &ObjectKey, replicas: usize) -> Result<(), Error> {
        let objects = self.kubelet.objects.read().clone();
        let found = ["Deployment", "StatefulSet"]
            .into_iter()
            .map(|kind| (kind, workload.clone()));
        let owner = found
            .into_iter()
            .find(|owner| objects.workloads.contains_key(owner));
        let owner = owner.ok_or_else(|| Error::Missing {
            kind: "Deployment or StatefulSet",
            name: workload.to_string(),
        })?;
        self.kubelet.update(Update::Scale(owner, replicas));
        Ok(())
    }

    /// Adds or replaces manifests beside the user's, under a file name to remove them by. The control plane sees them too.
    pub fn apply(&self, file: &str, manifests: &str) -> Result<(), Error> {
        write_atomically(&self.applied(file), manifests.as_bytes())
    }

    /// Removes what was applied under that file name.
    pub fn remove(&self, file: &str) -> Result<(), Error> {
        let path = self.applied(file);
        std::fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    fn applied(&self, file: &str) -> PathBuf {
        let bare = Path::new(file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        PathBuf::from(ROOT)
            .join("applied")
            .join(format!("{bare}.yaml"))
    }

    /// Keeps what goes over the bridge from now on.
    pub fn capture(&self) -> Result<PacketCapture, Error> {
        PacketCapture::start(self.kubelet.network.bridge())
    }

    /// Ends all pods in order and then everything else. Without it, the end of the process does the same, less politely.
    pub async fn shutdown(self, grace: Duration) {
        self.kubelet.update(Update::Shutdown(grace));
        // Those that do not end in time end with the process.
        let gone = self.wait_for(|view| view.pods.is_empty());
        let _ = timeout(grace + TEARDOWN, gone).await;
        self.kubelet.tasks.cancel();
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.kubelet.tasks
    }

    fn find(&self, pod: &ObjectKey) -> Result<Arc<Pod>, Error> {
        self.pods
            .lock()
            .get(pod)
            .cloned()
            .ok_or_else(|| Error::Missing {
                kind: "pod",
                name: pod.to_string(),
            })
    }
}

fn container_index(pod: &Pod, name: Option<&str>) -> Result<usize, Error> {
    let position = pod.containers.iter().position(|container| match name {
        Some(name) => container.plan.name == name,
        None => container.plan.turn == Turn::App,
    });
    position.ok_or_else(|| Error::Missing {
        kind: "container",
        name: format!(
            "{} in pod {}, which has {}",
            name.unwrap_or("of the app"),
            pod.key,
            pod.containers
                .iter()
                .map(|container| container.plan.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    })
}

pub(crate) fn status_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What containers inherit of the environment: enough to find programs.
fn base_environment() -> Vec<(String, String)> {
    let inherited = |name: &str, otherwise: &str| {
        let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
        (
            name.to_owned(),
            value.unwrap_or_else(|| otherwise.to_owned()),
        )
    };
    vec![
        inherited(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        inherited("HOME", "/"),
    ]
}

fn watch_directories(
    kubelet: &Arc<Kubelet>,
    sources: &[PathBuf],
) -> Result<notify::RecommendedWatcher, Error> {
    let failed = |error: notify::Error| Error::Io {
        what: "watch a directory".to_owned(),
        source: std::io::Error::other(error),
    };
    let (updates, refresh) = (kubelet.updates.clone(), kubelet.refresh.clone());
    let bundles = bundle_directory();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if event.kind.is_access() {
            return;
        }
        if event.paths.iter().any(|path| path.starts_with(&bundles)) {
            refresh.send_replace(());
        } else {
            // Fails only when the sandbox ends.
            let _ = updates.send(Update::Manifests);
        }
    })
    .map_err(failed)?;
    for source in sources {
        watcher
            .watch(source, RecursiveMode::NonRecursive)
            .map_err(failed)?;
    }
    watcher
        .watch(&bundle_directory(), RecursiveMode::Recursive)
        .map_err(failed)?;
    Ok(watcher)
}
