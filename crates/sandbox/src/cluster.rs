//! The one task that compares what the manifests say with what runs, and tells the rest of the world.
//!
//! Order matters to those who watch the state directory: a Pod with its IP is written before its containers start, and an
//! endpoint is `terminating` before SIGTERM is sent. So each turn decides, writes, and only then starts and ends pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tulle_injector::{InjectorConfig, Namespace, inject_pod};
use tulle_runtime::causes::chain;
use tulle_runtime::names::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, ports};

use crate::dns::{Dns, Zone};
use crate::endpoints::{self, Backend, Translation};
use crate::kubelet::{Kubelet, Update};
use crate::manifests::{Manifests, Objects};
use crate::network::{GATEWAY_V4, PodIps};
use crate::pod::env::Facts;
use crate::pod::life::{Birth, Pod, Stage, directory};
use crate::pod::{plan, status};
use crate::state::StateDir;
use crate::view::{PodView, What};
use crate::workload::{self, Action, Existing, Owner, stable_uid};
use crate::{Error, ObjectKey, rules};

/// Pods by name, for everybody who wants to look one up.
pub(crate) type Pods = Arc<Mutex<BTreeMap<ObjectKey, Arc<Pod>>>>;

/// What the sandbox looks like after a turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) pods: Vec<PodView>,
    /// What is wrong and will not become right by waiting.
    pub(crate) problems: Vec<String>,
    /// Workloads that do not have all their pods ready, and why.
    pub(crate) waiting: Vec<String>,
}

/// The state of that task.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) manifests: Manifests,
    pub(crate) state: StateDir,
    pub(crate) dns: Dns,
    pub(crate) injector: InjectorConfig,
    pub(crate) pods: Pods,
    pub(crate) view: watch::Sender<View>,
    pub(crate) memory: Memory,
}

/// What it remembers from turn to turn.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    problems: Vec<String>,
    /// Pods that cannot run, which count as existing until a manifest changes.
    refused: BTreeMap<ObjectKey, (Existing, String)>,
    /// Pods that are being deleted, since when, and the time they get.
    deleting: BTreeMap<ObjectKey, (Timestamp, Option<Duration>)>,
    replicas: HashMap<Owner, usize>,
    cluster_ips: BTreeMap<ObjectKey, u16>,
    last_ip: u16,
    last_number: u16,
    births: u64,
    ready: BTreeSet<ObjectKey>,
    files: BTreeSet<(&'static str, ObjectKey)>,
    translations: Option<Vec<Translation>>,
    /// Pods of this turn that are to be started, or ended, once everything is written.
    starting: Vec<Arc<Pod>>,
    ending: Vec<Arc<Pod>>,
    /// To be answered once this turn can be seen.
    looks: Vec<oneshot::Sender<()>>,
    /// The sandbox ends: no pod is started any more.
    closing: bool,
}

impl Cluster {
    pub(crate) async fn run(mut self, mut updates: mpsc::UnboundedReceiver<Update>) {
        self.read();
        self.turn().await;
        while let Some(update) = updates.recv().await {
            self.take(update);
            while let Ok(update) = updates.try_recv() {
                self.take(update);
            }
            self.turn().await;
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Changed => {}
            Update::Manifests => self.read(),
            Update::Scale(owner, replicas) => drop(self.memory.replicas.insert(owner, replicas)),
            Update::Delete(key, grace) => self.delete(&key, grace),
            Update::Look(seen) => {
                if self.manifests.stale() {
                    self.read();
                }
                self.memory.looks.push(seen);
            }
            Update::Shutdown(grace) => {
                self.memory.closing = true;
                let keys: Vec<_> = self.pods.lock().keys().cloned().collect();
                keys.iter().for_each(|key| self.delete(key, Some(grace)));
            }
            Update::Gone(key) => {
                self.pods.lock().remove(&key);
                self.memory.deleting.remove(&key);
                self.kubelet.tell(format!("pod {key}"), What::Deleted, "");
            }
        }
    }

    fn read(&mut self) {
        let (mut objects, problems) = self.manifests.read();
        builtin(&mut objects);
        *self.kubelet.objects.write() = Arc::new(objects);
        self.kubelet.refresh.send_replace(());
        self.memory.refused.clear();
        let problems: Vec<_> = problems.iter().map(|problem| chain(problem)).collect();
        for problem in problems
            .iter()
            .filter(|problem| !self.memory.problems.contains(problem))
        {
            self.kubelet
                .tell("manifest", What::Refused, problem.clone());
        }
        self.memory.problems = problems;
    }

    async fn turn(&mut self) {
        let objects = self.kubelet.objects.read().clone();
        for action in self.actions(&objects) {
            match action {
                Action::Delete(key) => self.delete(&key, None),
                Action::Create {
                    key,
                    owner,
                    hash,
                    pod,
                } => self.create(&objects, key, owner, hash, pod),
            }
        }
        if let Err(error) = self.publish(&objects).await {
            let problem = chain(&error);
            tracing::error!(%problem, "the sandbox cannot publish its state");
            self.kubelet.tell("sandbox", What::Refused, problem);
        }
        for pod in std::mem::take(&mut self.memory.starting) {
            self.kubelet.tasks.spawn("pod", pod.live());
        }
        for pod in std::mem::take(&mut self.memory.ending) {
            let grace = self
                .memory
                .deleting
                .get(&pod.key)
                .and_then(|(_, grace)| *grace);
            pod.terminate(grace);
        }
        self.show(&objects);
        for seen in std::mem::take(&mut self.memory.looks) {
            // Whoever asked may have stopped waiting.
            let _ = seen.send(());
        }
    }

    fn actions(&self, objects: &Objects) -> Vec<Action> {
        if self.memory.closing {
            return Vec::new();
        }
        let pods = self.pods.lock();
        let existing = pods.values().map(|pod| Existing {
            key: pod.key.clone(),
            owner: pod.owner.clone(),
            hash: pod.hash.clone(),
            ready: pod.stage() == Stage::Running && status::is_ready(pod),
            terminating: self.memory.deleting.contains_key(&pod.key),
        });
        let refused = self
            .memory
            .refused
            .values()
            .map(|(existing, _)| existing.clone());
        let existing: Vec<_> = existing.chain(refused).collect();
        let workloads = objects
            .workloads
            .values()
            .map(|workload| (workload, self.replicas(workload)));
        workload::plan(workloads, &existing, &mut fastrand::Rng::new())
    }

    fn replicas(&self, workload: &workload::Workload) -> usize {
        self.memory
            .replicas
            .get(&workload.owner())
            .copied()
            .unwrap_or(workload.replicas)
    }

    fn delete(&mut self, key: &ObjectKey, grace: Option<Duration>) {
        self.memory.refused.remove(key);
        let Some(pod) = self.pods.lock().get(key).cloned() else {
            return;
        };
        let since = self
            .memory
            .deleting
            .get(key)
            .map_or_else(Timestamp::now, |(since, _)| *since);
        self.memory.deleting.insert(key.clone(), (since, grace));
        pod.tell(What::Terminating, "");
        self.memory.ending.push(pod);
    }

    fn create(
        &mut self,
        objects: &Objects,
        key: ObjectKey,
        owner: Owner,
        hash: String,
        pod: Value,
    ) {
        match self.birth(objects, &key, &owner, &hash, pod) {
            Ok(birth) => {
                let pod = Arc::new(Pod::new(birth, self.kubelet.clone()));
                self.pods.lock().insert(key, pod.clone());
                self.memory.starting.push(pod);
            }
            Err(problem) => {
                self.kubelet
                    .tell(format!("pod {key}"), What::Refused, problem.clone());
                let (ready, terminating) = (false, false);
                let existing = Existing {
                    key: key.clone(),
                    owner,
                    hash,
                    ready,
                    terminating,
                };
                self.memory.refused.insert(key, (existing, problem));
            }
        }
    }

    fn birth(
        &mut self,
        objects: &Objects,
        key: &ObjectKey,
        owner: &Owner,
        hash: &str,
        pod: Value,
    ) -> Result<Birth, String> {
        let labels = objects
            .namespaces
            .get(&key.namespace)
            .and_then(|namespace| namespace.metadata.labels.clone());
        let namespace = Namespace {
            name: key.namespace.clone(),
            labels: labels.unwrap_or_default(),
        };
        let outcome =
            inject_pod(&pod, &namespace, &self.injector).map_err(|error| chain(&error))?;
        outcome
            .warnings
            .iter()
            .for_each(|warning| tracing::warn!(pod = %key, "{warning}"));
        let mut document = outcome.document;
        self.memory.births += 1;
        let uid = stable_uid(&format!("Pod/{key}/{}", self.memory.births));
        document["metadata"]["uid"] = json!(uid);
        document["spec"]["nodeName"] = json!(crate::NODE_NAME);
        if document["spec"]["serviceAccountName"].is_null() {
            document["spec"]["serviceAccountName"] = json!("default");
        }
        let manifest = plan::typed(&document)?;
        let number = self.number()?;
        let ips = PodIps::of(number, self.kubelet.network.ipv6());
        let config_map = |name: &str| self.kubelet.config_map(&key.namespace, name);
        let facts = Facts {
            pod: &manifest,
            ips,
            config_map: &config_map,
        };
        let plan = plan::plan(&facts, self.kubelet.node.ids(), &directory(&uid))?;
        let (key, owner, hash) = (key.clone(), owner.clone(), hash.to_owned());
        Ok(Birth {
            key,
            uid,
            number,
            ips,
            owner,
            hash,
            document,
            manifest,
            plan,
        })
    }

    /// The next free one, so that an address comes back as late as possible.
    fn number(&mut self) -> Result<u16, String> {
        let pods = self.pods.lock();
        let used: BTreeSet<_> = pods.values().map(|pod| pod.number).collect();
        let after = self.memory.last_number.max(1) + 1;
        let number = (after..u16::MAX)
            .chain(2..after)
            .find(|number| !used.contains(number));
        self.memory.last_number = number.ok_or("every pod address is in use: delete pods")?;
        Ok(self.memory.last_number)
    }

    async fn publish(&mut self, objects: &Objects) -> Result<(), Error> {
        let services = self.services(objects);
        let backends = self.backends();
        let mut slices = objects.slices.clone();
        let mut ours = BTreeSet::new();
        for (key, service) in &services {
            for (name, slice) in endpoints::slices(key, service, &backends) {
                ours.insert(name.clone());
                slices.insert(name, slice);
            }
        }
        let mut files = BTreeMap::new();
        for (key, pod) in self.pods.lock().iter() {
            files.insert(("Pod", key.clone()), self.document(pod));
        }
        for (key, service) in &services {
            files.insert(("Service", key.clone()), value(service)?);
        }
        // A user's own slice is in the user's own file.
        for (key, slice) in &slices {
            let builtin = key.namespace == CONTROL_NAMESPACE && key.name == CONTROL_SERVICE_ACCOUNT;
            if builtin || ours.contains(key) {
                files.insert(("EndpointSlice", key.clone()), value(slice)?);
            }
        }
        for (kind, key) in std::mem::take(&mut self.memory.files) {
            if !files.contains_key(&(kind, key.clone())) {
                self.state.remove(kind, &key)?;
            }
        }
        self.memory.files = files.keys().cloned().collect();
        // Pods first, and what points to them afterwards.
        for kind in ["Pod", "Service", "EndpointSlice"] {
            for ((_, key), object) in files.iter().filter(|((of, _), _)| *of == kind) {
                self.state.put(kind, key, object.clone())?;
            }
        }
        self.translate(&services, &slices).await
    }

    async fn translate(
        &mut self,
        services: &BTreeMap<ObjectKey, Service>,
        slices: &BTreeMap<ObjectKey, EndpointSlice>,
    ) -> Result<(), Error> {
        let mut by_service: BTreeMap<ObjectKey, Vec<&EndpointSlice>> = BTreeMap::new();
        for (key, slice) in slices {
            if let Some(service) = endpoints::service_of(key, slice) {
                by_service.entry(service).or_default().push(slice);
            }
        }
        let (mut zone, mut translations) = (Zone::default(), Vec::new());
        for (key, service) in services {
            let slices = by_service.get(key).map(Vec::as_slice).unwrap_or_default();
            zone.add(key, service, slices);
            translations.extend(endpoints::translations(service, slices));
        }
        self.dns.replace(zone);
        if self.memory.translations.as_ref() == Some(&translations) {
            return Ok(());
        }
        let ruleset = rules::ruleset(&translations);
        let applied = tokio::task::spawn_blocking(move || ruleset.apply()).await;
        applied.unwrap_or(Ok(())).map_err(Error::Rules)?;
        self.memory.translations = Some(translations);
        Ok(())
    }

    /// The Services with their ClusterIPs; an address stays with its Service.
    fn services(&mut self, objects: &Objects) -> BTreeMap<ObjectKey, Service> {
        self.memory
            .cluster_ips
            .retain(|key, _| objects.services.contains_key(key));
        let mut services = objects.services.clone();
        for (key, service) in &mut services {
            let external = endpoints::external_name(service).is_some();
            if external
                || endpoints::is_headless(service)
                || !endpoints::cluster_ips(service).is_empty()
            {
                continue;
            }
            let number = *self
                .memory
                .cluster_ips
                .entry(key.clone())
                .or_insert_with(|| {
                    self.memory.last_ip = self.memory.last_ip.max(9) + 1;
                    self.memory.last_ip
                });
            let v6 = endpoints::has_family(service, true) && self.kubelet.network.ipv6();
            let v4 = endpoints::has_family(service, false).then(|| service_ip_v4(number));
            let ips: Vec<_> = v4
                .into_iter()
                .chain(v6.then(|| service_ip_v6(number)))
                .collect();
            let family = |ip: &IpAddr| {
                if ip.is_ipv6() {
                    "IPv6".to_owned()
                } else {
                    "IPv4".to_owned()
                }
            };
            let spec = service.spec.get_or_insert_default();
            spec.ip_families = Some(ips.iter().map(family).collect());
            spec.cluster_ips = Some(ips.iter().map(ToString::to_string).collect());
            spec.cluster_ip = ips.first().map(ToString::to_string);
        }
        services
    }

    fn backends(&self) -> Vec<Backend> {
        let pods = self.pods.lock();
        let alive = pods
            .values()
            .filter(|pod| !matches!(pod.stage(), Stage::Done { .. }));
        alive
            .map(|pod| {
                let spec = pod.manifest.spec.as_ref();
                Backend {
                    key: pod.key.clone(),
                    uid: pod.uid.clone(),
                    ips: pod.ips,
                    labels: pod.manifest.metadata.labels.clone().unwrap_or_default(),
                    ports: plan::named_ports(&pod.manifest),
                    hostname: spec.and_then(|spec| spec.hostname.clone()),
                    subdomain: spec.and_then(|spec| spec.subdomain.clone()),
                    serving: pod.stage() != Stage::Starting && status::is_ready(pod),
                    terminating: self.memory.deleting.contains_key(&pod.key),
                }
            })
            .collect()
    }

    fn document(&self, pod: &Pod) -> Value {
        let mut document = pod.document.clone();
        document["metadata"]["creationTimestamp"] = json!(status::timestamp(pod.created));
        if let Some((since, grace)) = self.memory.deleting.get(&pod.key) {
            let grace = grace.unwrap_or(pod.plan.grace).as_secs();
            document["metadata"]["deletionTimestamp"] = json!(status::timestamp(*since));
            document["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        document["status"] = status::status(pod);
        document
    }

    fn show(&mut self, objects: &Objects) {
        let pods: Vec<_> = self
            .pods
            .lock()
            .values()
            .map(|pod| (pod.owner.clone(), pod.hash.clone(), status::view(pod)))
            .collect();
        let ready: BTreeSet<_> = pods
            .iter()
            .filter(|(_, _, pod)| pod.ready)
            .map(|(_, _, pod)| pod.key.clone())
            .collect();
        for key in ready.difference(&self.memory.ready) {
            self.kubelet.tell(format!("pod {key}"), What::Ready, "");
        }
        for key in self
            .memory
            .ready
            .difference(&ready)
            .filter(|key| !self.memory.deleting.contains_key(key))
        {
            self.kubelet.tell(format!("pod {key}"), What::Unready, "");
        }
        self.memory.ready = ready;
        let mut waiting = Vec::new();
        for workload in objects.workloads.values() {
            let owner = workload.owner();
            // Pods of an older manifest do not stand for those that replace them.
            let of = pods.iter().filter(|(of, hash, pod)| {
                *of == owner && *hash == workload.hash && !pod.terminating
            });
            let done = of
                .clone()
                .filter(|(_, _, pod)| pod.ready || pod.phase == "Succeeded")
                .count();
            if done < self.replicas(workload) {
                let blocker = of.filter_map(|(_, _, pod)| pod.blocker()).next();
                waiting.push(
                    blocker.unwrap_or_else(|| format!("{} {}: pods are missing", owner.0, owner.1)),
                );
            }
        }
        let refused = self
            .memory
            .refused
            .iter()
            .map(|(key, (_, problem))| format!("pod {key}: {problem}"));
        self.view.send_replace(View {
            pods: pods.into_iter().map(|(_, _, pod)| pod).collect(),
            problems: self
                .memory
                .problems
                .iter()
                .cloned()
                .chain(refused)
                .collect(),
            waiting,
        });
    }
}

fn service_ip_v4(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 96, high, low).into()
}

fn service_ip_v6(number: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number).into()
}

fn value(object: &impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(object).map_err(|error| Error::Io {
        what: "render an object".to_owned(),
        source: std::io::Error::other(error),
    })
}

/// The control plane runs on the node itself: a Service whose endpoint is the gateway.
fn builtin(objects: &mut Objects) {
    let key = ObjectKey::new(CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT);
    let numbers = [json!({ "name": "grpc-xds", "port": ports::XDS, "protocol": "TCP" })];
    let metadata = json!({
        "name": key.name,
        "namespace": key.namespace,
        "labels": { "kubernetes.io/service-name": key.name },
    });
    let service =
        json!({ "metadata": metadata, "spec": { "type": "ClusterIP", "ports": numbers } });
    let slice = json!({
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": numbers,
        "endpoints": [{ "addresses": [GATEWAY_V4.to_string()], "conditions": { "ready": true } }],
    });
    if let (Ok(service), Ok(slice)) = (
        serde_json::from_value(service),
        serde_json::from_value(slice),
    ) && !objects.services.contains_key(&key)
    {
        objects.services.insert(key.clone(), service);
        objects.slices.insert(key, slice);
    }
}
