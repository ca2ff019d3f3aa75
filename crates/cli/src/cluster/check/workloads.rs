//! Pods that should be in the mesh and are not, namespaces that keep them out, and what both say in vain.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tulle_runtime::names::{SYSTEM_NAMESPACES, labels};

use super::finding::Findings;
use super::injectors::Injectors;
use super::installed::some;
use super::{annotations, asked, refused};
use crate::cluster::error::ClusterError;
use crate::cluster::pods::{has_sidecar, is_alive};
use crate::cluster::sidecars::workload;
use crate::cluster::{answer, asks};

/// By which a namespace says what its pods may do.
pub(super) const ENFORCED: &str = "pod-security.kubernetes.io/enforce";

/// What of the workloads is looked at.
pub(super) struct Scope<'a> {
    pub(super) client: &'a Client,
    /// All of them, unless it is named.
    pub(super) namespace: Option<&'a str>,
    /// Who adds sidecars; nobody before an installation, or if that cannot be seen.
    pub(super) injectors: Option<&'a Injectors>,
}

pub(super) async fn look(scope: &Scope<'_>, findings: &mut Findings) {
    let all = match scope.namespaces().await {
        Ok(all) => all,
        Err(error) => return findings.unknown("namespaces", &error),
    };
    let meshed: Vec<_> = all.iter().filter(|it| asks(it)).cloned().collect();
    restricted(&meshed, findings);
    let Some(injectors) = scope.injectors else {
        return;
    };
    asked::namespaces(&all, injectors, findings);
    if let Err(error) = pods(scope, injectors, &meshed, findings).await {
        findings.unknown("pods", &error);
    }
}

async fn pods(
    scope: &Scope<'_>,
    injectors: &Injectors,
    meshed: &[Namespace],
    findings: &mut Findings,
) -> Result<(), ClusterError> {
    let mut in_vain = Vec::new();
    for selector in asked::selectors(injectors) {
        in_vain.extend(scope.pods(&selector).await?);
    }
    asked::pods(&in_vain, injectors, findings);
    let unlabelled = scope.pods(&format!("!{}", labels::PROXIED)).await?;
    let (mut injected, bare): (Vec<_>, Vec<_>) = unlabelled.into_iter().partition(has_sidecar);
    injected.extend(scope.pods(labels::PROXIED).await?);
    annotations::look(&injected, findings);
    uninjected(&injected, &bare, meshed, injectors, findings);
    refused::look(scope, meshed, &injected, injectors, findings).await
}

impl Scope<'_> {
    /// Those whose pods may have sidecars.
    async fn namespaces(&self) -> Result<Vec<Namespace>, ClusterError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = match self.namespace {
            Some(name) => {
                vec![answer(&format!("find namespace {name}"), api.get(name)).await?]
            }
            None => {
                let every = ListParams::default();
                answer("list the namespaces", api.list(&every)).await?.items
            }
        };
        let system = |it: &Namespace| SYSTEM_NAMESPACES.contains(&it.name_any().as_str());
        Ok(found.into_iter().filter(|it| !system(it)).collect())
    }

    /// The pods that run, or are to, and have such labels.
    async fn pods(&self, selector: &str) -> Result<Vec<Pod>, ClusterError> {
        let pods = self.list("pods", selector).await?;
        Ok(pods.into_iter().filter(is_alive).collect())
    }

    /// Objects of a kind that have such labels, where workloads are looked at.
    pub(super) async fn list<K>(&self, kinds: &str, selector: &str) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.list_with(kinds, selector, "").await
    }

    /// The same, of those that have such fields.
    pub(super) async fn list_with<K>(
        &self,
        kinds: &str,
        selector: &str,
        fields: &str,
    ) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let (api, what): (Api<K>, _) = match self.namespace {
            Some(name) => {
                let api = Api::namespaced(self.client.clone(), name);
                (api, format!("list the {kinds} of {name}"))
            }
            None => (Api::all(self.client.clone()), format!("list the {kinds}")),
        };
        let list = ListParams::default().labels(selector).fields(fields);
        Ok(answer(&what, api.list(&list)).await?.items)
    }
}

/// What is said of pods, once for each workload that makes them.
pub(super) fn by_workload(
    pods: &[Pod],
    said: impl Fn(&Pod) -> Vec<String>,
) -> BTreeSet<(String, String)> {
    let of = |pod| said(pod).into_iter().map(|said| (workload(pod), said));
    pods.iter().flat_map(of).collect()
}

/// The level that a namespace enforces, if no pod with a sidecar meets it.
pub(super) fn enforced(namespace: &Namespace) -> Option<&str> {
    let level = namespace.labels().get(ENFORCED)?;
    ["baseline", "restricted"]
        .into_iter()
        .find(|it| it == level)
}

/// The init container that captures connections needs what these do not permit.
fn restricted(namespaces: &[Namespace], findings: &mut Findings) {
    for namespace in namespaces {
        if let Some(level) = enforced(namespace) {
            let name = namespace.name_any();
            findings.error(
                format!("namespace {name}"),
                format!("enforces the pod security level {level}, which no pod with a sidecar meets: capture needs NET_ADMIN"),
                format!("kubectl label namespace {name} --overwrite {ENFORCED}=privileged"),
            );
        }
    }
}

fn uninjected(
    injected: &[Pod],
    bare: &[Pod],
    meshed: &[Namespace],
    injectors: &Injectors,
    findings: &mut Findings,
) {
    let of = |pods: &[Pod], name: &str| -> BTreeSet<String> {
        let within = |pod: &&Pod| pod.namespace().as_deref() == Some(name) && is_concerned(pod);
        let within = pods.iter().filter(within);
        within.map(|pod| pod.name_any()).collect()
    };
    let mut counted = 0;
    for namespace in meshed {
        let name = namespace.name_any();
        let without = of(bare, &name);
        counted += without.len() + of(injected, &name).len();
        // A restart changes nothing where nobody would inject it: that is a finding of its own.
        if !without.is_empty() && asked::served(namespace, injectors) {
            let names: Vec<_> = without.iter().map(String::as_str).collect();
            findings.warning(
                format!("namespace {name}"),
                format!("{} pods have no sidecar: {}", names.len(), some(&names)),
                format!("restart them: kubectl -n {name} rollout restart deployment,statefulset,daemonset"),
            );
        }
    }
    findings.ok(
        "workloads",
        format!("{counted} pods in {} meshed namespaces", meshed.len()),
    );
}

/// Whether a pod would get a sidecar if it were made now.
fn is_concerned(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or_default();
    let opted_out = |labels: &BTreeMap<String, String>| {
        labels
            .get(labels::INJECT)
            .is_some_and(|value| value == "disabled")
    };
    !host_network && !opted_out(pod.labels()) && !opted_out(pod.annotations())
}
