//! Workloads and the pods that they stand for: what to create and what to delete, decided without doing it.
//!
//! Deployments roll by starting all new pods and deleting the old ones once those are ready; StatefulSets keep their order.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use serde_json::{Map, Value, json};

use crate::ObjectKey;

/// What kind of workload owns a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    Deployment,
    StatefulSet,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

/// A workload as its manifest has it.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) key: ObjectKey,
    pub(crate) replicas: usize,
    /// Start pods one after the other.
    ordered: bool,
    /// `spec.serviceName` of a StatefulSet.
    service: Option<String>,
    /// Raw JSON of a pod, with the fields that our types do not know.
    pod: Value,
    /// Of the above: pods with another one are out of date.
    pub(crate) hash: String,
}

/// Who a pod belongs to.
pub(crate) type Owner = (&'static str, ObjectKey);

/// A pod that exists.
#[derive(Debug, Clone)]
pub(crate) struct Existing {
    pub(crate) key: ObjectKey,
    pub(crate) owner: Owner,
    pub(crate) hash: String,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
}

/// One step towards what the manifests say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Create {
        key: ObjectKey,
        owner: Owner,
        hash: String,
        pod: Value,
    },
    Delete(ObjectKey),
}

impl Workload {
    pub(crate) fn pod(key: ObjectKey, pod: Value) -> Self {
        Self::new(Kind::Pod, key, 1, pod)
    }

    pub(crate) fn deployment(
        key: ObjectKey,
        deployment: &Deployment,
        raw: &Value,
    ) -> Result<Self, String> {
        let spec = deployment
            .spec
            .as_ref()
            .ok_or("Deployment has no spec: add one")?;
        Ok(Self::new(
            Kind::Deployment,
            key,
            count(spec.replicas)?,
            template(raw),
        ))
    }

    pub(crate) fn stateful_set(
        key: ObjectKey,
        set: &StatefulSet,
        raw: &Value,
    ) -> Result<Self, String> {
        let spec = set
            .spec
            .as_ref()
            .ok_or("StatefulSet has no spec: add one")?;
        if spec
            .volume_claim_templates
            .as_ref()
            .is_some_and(|templates| !templates.is_empty())
        {
            return Err(
                "the sandbox has no storage for volumeClaimTemplates: use an emptyDir volume"
                    .to_owned(),
            );
        }
        Ok(Self {
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            service: spec.service_name.clone(),
            ..Self::new(Kind::StatefulSet, key, count(spec.replicas)?, template(raw))
        })
    }

    fn new(kind: Kind, key: ObjectKey, replicas: usize, pod: Value) -> Self {
        let hash = short_hash(&pod.to_string());
        Self {
            kind,
            key,
            replicas,
            ordered: false,
            service: None,
            pod,
            hash,
        }
    }

    pub(crate) fn owner(&self) -> Owner {
        (self.kind.as_str(), self.key.clone())
    }

    fn create(&self, name: String) -> Action {
        let mut pod = self.pod.clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        let metadata = object(&mut pod, "metadata");
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("namespace".to_owned(), json!(self.key.namespace));
        match self.kind {
            Kind::Pod => {}
            Kind::Deployment => {
                let set = format!("{}-{}", self.key.name, self.hash);
                let owner = json!([owner("ReplicaSet", &set, &self.key.namespace)]);
                metadata.insert("generateName".to_owned(), json!(format!("{set}-")));
                metadata.insert("ownerReferences".to_owned(), owner);
                object_in(metadata, "labels")
                    .insert("pod-template-hash".to_owned(), json!(self.hash));
            }
            Kind::StatefulSet => {
                let owner = json!([owner("StatefulSet", &self.key.name, &self.key.namespace)]);
                metadata.insert("ownerReferences".to_owned(), owner);
                let index = name.rsplit('-').next().unwrap_or_default();
                let labels = object_in(metadata, "labels");
                labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), json!(name));
                labels.insert("apps.kubernetes.io/pod-index".to_owned(), json!(index));
                let spec = object(&mut pod, "spec");
                spec.insert("hostname".to_owned(), json!(name));
                if let Some(service) = &self.service {
                    spec.insert("subdomain".to_owned(), json!(service));
                }
            }
        }
        Action::Create {
            key: ObjectKey::new(self.key.namespace.clone(), name),
            owner: self.owner(),
            hash: self.hash.clone(),
            pod,
        }
    }
}

/// What to do so that the pods become what the workloads say; called again whenever something changed.
pub(crate) fn plan<'a>(
    workloads: impl Iterator<Item = (&'a Workload, usize)>,
    existing: &[Existing],
    random: &mut fastrand::Rng,
) -> Vec<Action> {
    let mut owned: BTreeMap<&Owner, Vec<&Existing>> = BTreeMap::new();
    for pod in existing {
        owned.entry(&pod.owner).or_default().push(pod);
    }
    let mut actions = Vec::new();
    for (workload, replicas) in workloads {
        let pods = owned.remove(&workload.owner()).unwrap_or_default();
        match workload.kind {
            Kind::Pod => plan_pod(workload, &pods, &mut actions),
            Kind::Deployment => plan_deployment(workload, replicas, &pods, random, &mut actions),
            Kind::StatefulSet => plan_stateful_set(workload, replicas, &pods, &mut actions),
        }
    }
    let orphans = owned.into_values().flatten().filter(|pod| !pod.terminating);
    actions.extend(orphans.map(|pod| Action::Delete(pod.key.clone())));
    actions
}

fn plan_pod(workload: &Workload, pods: &[&Existing], actions: &mut Vec<Action>) {
    match pods.first() {
        None => actions.push(workload.create(workload.key.name.clone())),
        Some(pod) if pod.hash != workload.hash && !pod.terminating => {
            actions.push(Action::Delete(pod.key.clone()))
        }
        Some(_) => {}
    }
}

fn plan_deployment(
    workload: &Workload,
    replicas: usize,
    pods: &[&Existing],
    random: &mut fastrand::Rng,
    actions: &mut Vec<Action>,
) {
    let alive = pods.iter().filter(|pod| !pod.terminating);
    let (mut current, old): (Vec<&Existing>, Vec<&Existing>) =
        alive.partition(|pod| pod.hash == workload.hash);
    for _ in current.len()..replicas {
        let suffix: String = (0..5).map(|_| letter(random.usize(..))).collect();
        actions.push(workload.create(format!("{}-{}-{suffix}", workload.key.name, workload.hash)));
    }
    // Pods that do not serve go first.
    current.sort_by_key(|pod| !pod.ready);
    let surplus = current.iter().skip(replicas);
    let rolled = current.iter().filter(|pod| pod.ready).count() >= replicas;
    let outdated = old.iter().filter(|pod| rolled || !pod.ready);
    actions.extend(
        surplus
            .chain(outdated)
            .map(|pod| Action::Delete(pod.key.clone())),
    );
}

fn plan_stateful_set(
    workload: &Workload,
    replicas: usize,
    pods: &[&Existing],
    actions: &mut Vec<Action>,
) {
    let name = |index: usize| format!("{}-{index}", workload.key.name);
    let mut outdated = None;
    let mut settled = true;
    for index in 0..replicas {
        let name = name(index);
        match pods.iter().find(|pod| pod.key.name == name) {
            None => actions.push(workload.create(name)),
            Some(pod) if pod.ready && !pod.terminating => {
                if pod.hash != workload.hash {
                    outdated = Some(*pod);
                }
                continue;
            }
            Some(pod) if pod.hash != workload.hash && !pod.terminating => {
                actions.push(Action::Delete(pod.key.clone()));
            }
            Some(_) => {}
        }
        settled = false;
        if workload.ordered {
            break;
        }
    }
    // All are there and ready: the last one that is out of date goes next.
    if let Some(pod) = outdated.filter(|_| settled) {
        actions.push(Action::Delete(pod.key.clone()));
    }
    let keep: Vec<_> = (0..replicas).map(name).collect();
    let surplus = pods
        .iter()
        .filter(|pod| !pod.terminating && !keep.contains(&pod.key.name));
    actions.extend(surplus.map(|pod| Action::Delete(pod.key.clone())));
}

fn count(replicas: Option<i32>) -> Result<usize, String> {
    let replicas = replicas.unwrap_or(1);
    usize::try_from(replicas).map_err(|_| format!("spec.replicas is {replicas}: write 0 or more"))
}

fn template(raw: &Value) -> Value {
    let template = &raw["spec"]["template"];
    json!({ "metadata": template["metadata"], "spec": template["spec"] })
}

fn object<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    let map = value
        .as_object_mut()
        .expect("it was made one if it was none");
    object_in(map, field)
}

fn object_in<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(field).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value
        .as_object_mut()
        .expect("it was made one if it was none")
}

fn owner(kind: &str, name: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": stable_uid(&format!("{kind}/{namespace}/{name}")),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The alphabet of generated names in Kubernetes: no vowels, hence no words.
fn letter(number: usize) -> char {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    char::from(ALPHABET[number % ALPHABET.len()])
}

fn short_hash(text: &str) -> String {
    let mut rest = hash(text);
    let mut next = || {
        let number = usize::try_from(rest % 27).unwrap_or(0);
        rest /= 27;
        letter(number)
    };
    (0..10).map(|_| next()).collect()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A unique id that depends on nothing but the text, in the usual notation.
pub(crate) fn stable_uid(text: &str) -> String {
    let (high, low) = (hash(text), hash(&format!("{text}#")));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests;
