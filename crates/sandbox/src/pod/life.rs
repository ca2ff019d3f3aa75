//! The life of a pod, in Kubernetes' order: network, volumes, init containers and sidecars one after the other, the app;
//! and back: the app first, then sidecars from the last to the first, then whatever is left.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod as Manifest;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tulle_runtime::causes::chain;
use tulle_runtime::names::DEFAULT_CLUSTER_DOMAIN;

use super::container::{Container, Exit};
use super::plan::{PodPlan, Turn};
use super::process;
use super::volumes::{Volumes, make_directory};
use crate::kubelet::{Kubelet, Update};
use crate::network::{GATEWAY_V4, Netns, PodIps};
use crate::state::write_atomically;
use crate::view::What;
use crate::workload::Owner;
use crate::{Error, ObjectKey};

/// How often files that pods mount are looked at even if nobody told of a change.
const REFRESH: Duration = Duration::from_secs(10);
/// What sidecars get at least after the app took all the time there was, as in Kubernetes.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// A pod and everything that is known about it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) number: u16,
    pub(crate) ips: PodIps,
    pub(crate) owner: Owner,
    pub(crate) hash: String,
    pub(crate) service_account: String,
    pub(crate) created: Timestamp,
    /// Raw JSON, injected, without status.
    pub(crate) document: Value,
    pub(crate) manifest: Manifest,
    pub(crate) plan: PodPlan,
    pub(crate) containers: Vec<Container>,
    pub(crate) kubelet: Arc<Kubelet>,
    netns: OnceLock<Netns>,
    stage: Mutex<Stage>,
    waiting: Mutex<Option<String>>,
    /// When it must be gone, from the moment somebody asked for that.
    deletion: watch::Sender<Option<Instant>>,
    changes: watch::Sender<()>,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Running,
    /// Its app ended and does not start again.
    Done {
        success: bool,
    },
    Terminating,
}

/// What a pod is made of.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) number: u16,
    pub(crate) ips: PodIps,
    pub(crate) owner: Owner,
    pub(crate) hash: String,
    pub(crate) document: Value,
    pub(crate) manifest: Manifest,
    pub(crate) plan: PodPlan,
}

/// Containers that were started, each with the way to stop it.
#[derive(Default)]
struct Started {
    tasks: JoinSet<(usize, Option<Exit>)>,
    stops: Vec<(usize, watch::Sender<Option<Instant>>)>,
}

impl Pod {
    pub(crate) fn new(birth: Birth, kubelet: Arc<Kubelet>) -> Self {
        let directory = directory(&birth.uid);
        let container = |plan: &super::plan::ContainerPlan| {
            Container::new(plan.clone(), directory.join(format!("{}.log", plan.name)))
        };
        let spec = birth.manifest.spec.as_ref();
        Self {
            service_account: spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_else(|| "default".to_owned()),
            containers: birth.plan.containers.iter().map(container).collect(),
            key: birth.key,
            uid: birth.uid,
            number: birth.number,
            ips: birth.ips,
            owner: birth.owner,
            hash: birth.hash,
            created: Timestamp::now(),
            document: birth.document,
            manifest: birth.manifest,
            plan: birth.plan,
            kubelet,
            netns: OnceLock::new(),
            stage: Mutex::new(Stage::Starting),
            waiting: Mutex::new(None),
            deletion: watch::Sender::new(None),
            changes: watch::Sender::new(()),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage.lock().clone()
    }

    pub(crate) fn waiting(&self) -> Option<String> {
        self.waiting.lock().clone()
    }

    pub(crate) fn netns(&self) -> Result<&Netns, Error> {
        self.netns.get().ok_or_else(|| Error::Missing {
            kind: "network of pod",
            name: self.key.to_string(),
        })
    }

    pub(crate) fn tell(&self, what: What, detail: impl Into<String>) {
        self.kubelet.tell(format!("pod {}", self.key), what, detail);
    }

    /// Tells everybody who shows the pod's state.
    pub(crate) fn changed(&self) {
        self.changes.send_replace(());
        self.kubelet.update(Update::Changed);
    }

    /// Ends it within the time; without one, within its own grace period. Whoever calls has told the world already.
    pub(crate) fn terminate(&self, grace: Option<Duration>) {
        *self.stage.lock() = Stage::Terminating;
        let deadline = Instant::now() + grace.unwrap_or(self.plan.grace);
        self.deletion.send_if_modified(|current| {
            let sooner = current.is_none_or(|current| deadline < current);
            if sooner {
                *current = Some(deadline);
            }
            sooner
        });
    }

    /// SIGKILL to every process at once, as if the kernel had run out of memory; the pod itself stays.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        process::kill_now("net", &self.netns()?.name()?);
        Ok(())
    }

    /// From the network to the last process; returns when the pod has been deleted and nothing of it is left.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut started = Started::default();
        let mut deletion = self.deletion.subscribe();
        let life = async {
            if let Err(error) = self.run(&mut started).await {
                let problem = chain(&error);
                self.tell(What::Refused, problem.clone());
                *self.waiting.lock() = Some(problem);
                self.changed();
            }
            std::future::pending::<()>().await;
        };
        let deadline = tokio::select! {
            () = life => Instant::now(),
            deadline = deletion.wait_for(Option::is_some) => match deadline {
                Ok(deadline) => deadline.unwrap_or_else(Instant::now),
                Err(_) => Instant::now(),
            },
        };
        self.stop(started, deadline).await;
        self.tear_down().await;
        self.kubelet.update(Update::Gone(self.key.clone()));
    }

    async fn run(self: &Arc<Self>, started: &mut Started) -> Result<(), Error> {
        let netns = self.kubelet.network.add_pod(self.number, self.ips).await?;
        // The only writer is this line, once in the life of the pod.
        let _ = self.netns.set(netns);
        self.tell(What::Created, self.ips.v4.to_string());
        let mut volumes = self.prepare_volumes().await?;
        let follow = async {
            let mut refresh = self.kubelet.refresh.subscribe();
            loop {
                tokio::select! {
                    changed = refresh.changed() => if changed.is_err() { return Ok(()) },
                    () = sleep(REFRESH) => {}
                }
                if let Err(missing) = volumes.refresh(&**self)? {
                    tracing::debug!(pod = %self.key, %missing, "a mounted file stays as it was");
                }
            }
        };
        let containers = async {
            if !self.initialize(started).await {
                return;
            }
            for index in self.indices(Turn::App) {
                self.start(started, index);
            }
            self.enter(Stage::Running);
            self.until_apps_end(started).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = follow => ended,
            () = containers => Ok(()),
        }
    }

    fn enter(&self, stage: Stage) {
        let mut current = self.stage.lock();
        if *current != Stage::Terminating {
            *current = stage;
        }
        drop(current);
        self.changed();
    }

    fn indices(&self, turn: Turn) -> Vec<usize> {
        let of_turn = |(index, container): (usize, &Container)| {
            (container.plan.turn == turn).then_some(index)
        };
        self.containers
            .iter()
            .enumerate()
            .filter_map(of_turn)
            .collect()
    }

    fn start(self: &Arc<Self>, started: &mut Started, index: usize) {
        let (stop, stopped) = watch::channel(None);
        started.stops.push((index, stop));
        let pod = self.clone();
        started
            .tasks
            .spawn(async move { (index, pod.containers[index].supervise(&pod, stopped).await) });
    }

    /// Init containers in order; false if one failed for good.
    async fn initialize(self: &Arc<Self>, started: &mut Started) -> bool {
        for (index, container) in self.containers.iter().enumerate() {
            match container.plan.turn {
                Turn::App => {}
                Turn::Sidecar => {
                    self.start(started, index);
                    let mut changes = self.changes.subscribe();
                    while !container.state().started {
                        // The sender is a field of this pod.
                        let _ = changes.changed().await;
                    }
                }
                Turn::Init => {
                    self.start(started, index);
                    while let Some(ended) = started.tasks.join_next().await {
                        match ended {
                            Ok((ended, Some(exit))) if ended == index && !exit.success() => {
                                self.enter(Stage::Done { success: false });
                                return false;
                            }
                            Ok((ended, _)) if ended == index => break,
                            _ => {}
                        }
                    }
                }
            }
        }
        true
    }

    /// Waits until every app container has ended for good, and ends the sidecars then.
    async fn until_apps_end(&self, started: &mut Started) {
        let mut open = self.indices(Turn::App);
        let mut success = true;
        while !open.is_empty() {
            let Some(ended) = started.tasks.join_next().await else {
                break;
            };
            if let Ok((index, exit)) = ended {
                open.retain(|app| *app != index);
                if self.containers[index].plan.turn == Turn::App {
                    success &= exit.is_some_and(|exit| exit.success());
                }
            }
        }
        self.stop_sidecars(started, Instant::now() + self.plan.grace)
            .await;
        self.enter(Stage::Done { success });
    }

    async fn stop(&self, mut started: Started, deadline: Instant) {
        let of = |turn: &[Turn]| -> Vec<usize> {
            let all = started.stops.iter().map(|(index, _)| *index);
            all.filter(|index| turn.contains(&self.containers[*index].plan.turn))
                .collect()
        };
        let first = of(&[Turn::App, Turn::Init]);
        let shorter = async {
            // Deleted again with less time, or without any.
            let mut deletion = self.deletion.subscribe();
            let sooner = deletion
                .wait_for(|latest| latest.is_some_and(|latest| latest < deadline))
                .await;
            // The sender is a field of this pod.
            sooner.ok().and_then(|latest| *latest).unwrap_or(deadline)
        };
        let orderly = async {
            started.ask(&first, deadline);
            self.ended(&first).await;
            self.stop_sidecars(&started, deadline.max(Instant::now() + LAST_GRACE))
                .await;
        };
        let cut = tokio::select! {
            biased;
            () = orderly => None,
            latest = shorter => Some(latest),
        };
        if let Some(latest) = cut {
            let all = of(&[Turn::App, Turn::Init, Turn::Sidecar]);
            started.ask(&all, latest);
            self.ended(&all).await;
        }
        started.tasks.abort_all();
        while started.tasks.join_next().await.is_some() {}
    }

    async fn stop_sidecars(&self, started: &Started, deadline: Instant) {
        for index in self.indices(Turn::Sidecar).into_iter().rev() {
            started.ask(&[index], deadline);
            self.ended(&[index]).await;
        }
    }

    /// Resolves when none of the containers has a process.
    async fn ended(&self, indices: &[usize]) {
        let wait = indices.iter().map(async |index| {
            let mut changes = self.changes.subscribe();
            while self.containers[*index].state().pid.is_some() {
                // The sender is a field of this pod.
                let _ = changes.changed().await;
            }
        });
        join_all(wait).await;
    }

    async fn tear_down(&self) {
        if let Ok(name) = self.netns().and_then(Netns::name) {
            process::kill_all("net", &name).await;
        }
        self.kubelet.network.remove_pod(self.number).await;
        // What cannot be removed goes with the node.
        let _ = fs::remove_dir_all(directory(&self.uid));
    }

    async fn prepare_volumes(&self) -> Result<Volumes, Error> {
        let directory = directory(&self.uid);
        make_directory(&directory, 0o755)?;
        write_atomically(
            &directory.join("resolv.conf"),
            resolv_conf(&self.key.namespace).as_bytes(),
        )?;
        write_atomically(&directory.join("hosts"), self.hosts().as_bytes())?;
        let mut volumes = Volumes::new(directory, self.plan.volumes.clone());
        let mut refresh = self.kubelet.refresh.subscribe();
        while let Err(missing) = volumes.refresh(self)? {
            let news = self.waiting.lock().replace(missing.clone()) != Some(missing);
            if news {
                self.changed();
            }
            tokio::select! {
                // The sender is a field of the kubelet, which this pod holds.
                _ = refresh.changed() => {}
                () = sleep(REFRESH) => {}
            }
        }
        if self.waiting.lock().take().is_some() {
            self.changed();
        }
        Ok(volumes)
    }

    fn hosts(&self) -> String {
        let mut hosts =
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        for ip in self.ips.all() {
            hosts += &format!("{ip}\t{}\n", self.plan.hostname);
        }
        hosts
    }
}

impl Started {
    fn ask(&self, indices: &[usize], deadline: Instant) {
        let stops = self
            .stops
            .iter()
            .filter(|(index, _)| indices.contains(index));
        stops.for_each(|(_, stop)| {
            stop.send_replace(Some(deadline));
        });
    }
}

/// Where the pod's volumes and logs are.
pub(crate) fn directory(uid: &str) -> PathBuf {
    PathBuf::from(crate::node::ROOT).join("pods").join(uid)
}

fn resolv_conf(namespace: &str) -> String {
    const DOMAIN: &str = DEFAULT_CLUSTER_DOMAIN;
    format!(
        "nameserver {GATEWAY_V4}\nsearch {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\noptions ndots:5\n"
    )
}
