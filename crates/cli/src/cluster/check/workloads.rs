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
    if let Err(error) = pods(scope, injectors, &all, &meshed, findings).await {
        findings.unknown("pods", &error);
    }
}

async fn pods(
    scope: &Scope<'_>,
    injectors: &Injectors,
    all: &[Namespace],
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
    uninjected(&bare, all, injectors, findings);
    let (pods, namespaces) = (injected.len(), meshed.len());
    findings.ok(
        "workloads",
        format!("{pods} pods have a sidecar; {namespaces} namespaces ask for one"),
    );
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

/// Names pods that an injector would give a sidecar if they were made now. Where nobody would, a restart changes nothing: that
/// nobody is there for them is a finding of its own.
fn uninjected(
    bare: &[Pod],
    namespaces: &[Namespace],
    injectors: &Injectors,
    findings: &mut Findings,
) {
    let namespaces = namespaces.iter().map(|it| tulle_injector::Namespace {
        name: it.name_any(),
        labels: it.labels().clone(),
    });
    let namespaces: BTreeMap<_, _> = namespaces.map(|it| (it.name.clone(), it)).collect();
    let mut without = BTreeMap::<String, BTreeSet<String>>::new();
    for pod in bare {
        let name = pod.namespace().unwrap_or_default();
        let namespace = namespaces.get(&name);
        if namespace.is_some_and(|it| injectors.want(pod, it)) {
            without.entry(name).or_default().insert(pod.name_any());
        }
    }
    for (name, pods) in without {
        let pods: Vec<_> = pods.iter().map(String::as_str).collect();
        findings.warning(
            format!("namespace {name}"),
            format!("{} pods have no sidecar: {}", pods.len(), some(&pods)),
            format!(
                "restart them: kubectl -n {name} rollout restart deployment,statefulset,daemonset"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::{Value, json};

    use super::super::finding::Level;
    use super::*;

    fn read<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn injector() -> Deployment {
        let never = r#"--never-inject={"matchLabels":{"app":"batch"}}"#;
        let always = r#"{"matchExpressions":[{"key":"build","operator":"Exists"}]}"#;
        let args = ["injector", never, "--always-inject", always];
        let template = json!({ "spec": { "containers": [{ "name": "x", "args": args }] } });
        let spec = json!({ "selector": {}, "template": template });
        read(json!({ "metadata": { "name": "tulle-injector" }, "spec": spec }))
    }

    #[test]
    fn pods_lack_a_sidecar_that_the_injector_would_give_one() {
        let namespaces = [
            ("asks", json!({ "tulle.dev/inject": "enabled" })),
            ("not", json!({})),
            ("other", json!({ "tulle.dev/rev": "other" })),
        ];
        let namespaces = namespaces.map(|(name, labels)| -> Namespace {
            read(json!({ "metadata": { "name": name, "labels": labels } }))
        });
        let injectors = Injectors::of(&[injector()]);
        let plain = json!({});
        let on_host = json!({ "hostNetwork": true });
        let windows = json!({ "os": { "name": "windows" } });
        let opts = |word: &str| json!({ "tulle.dev/inject": word });
        for (name, namespace, labels, annotations, spec, lacks) in [
            ("asked for", "asks", json!({}), &plain, &plain, true),
            ("not asked for", "not", json!({}), &plain, &plain, false),
            ("asks itself", "not", opts("enabled"), &plain, &plain, true),
            ("opts out", "asks", opts("disabled"), &plain, &plain, false),
            (
                "says so beside",
                "asks",
                json!({}),
                &opts("disabled"),
                &plain,
                false,
            ),
            ("no word", "asks", opts("no"), &plain, &plain, true),
            ("on its node", "asks", json!({}), &plain, &on_host, false),
            ("on Windows", "asks", json!({}), &plain, &windows, false),
            (
                "never",
                "asks",
                json!({ "app": "batch" }),
                &plain,
                &plain,
                false,
            ),
            (
                "always",
                "not",
                json!({ "build": "" }),
                &plain,
                &plain,
                true,
            ),
            ("nobody's", "other", json!({}), &plain, &plain, false),
            (
                "of the system",
                "kube-system",
                opts("enabled"),
                &plain,
                &plain,
                false,
            ),
        ] {
            let metadata = json!({
                "name": "one", "namespace": namespace, "labels": labels, "annotations": annotations,
            });
            let mut pod = json!({ "metadata": metadata, "spec": spec });
            pod["spec"]["containers"] = json!([{ "name": "app", "image": "x" }]);
            let mut findings = Findings::default();
            uninjected(&[read(pod)], &namespaces, &injectors, &mut findings);
            let found = findings.all.first();
            assert_eq!(found.is_some(), lacks, "{name}: {found:?}");
            if let Some(found) = found {
                assert_eq!(found.level, Level::Warning, "{name}");
                assert_eq!(found.subject, format!("namespace {namespace}"));
                assert_eq!(found.state, "1 pods have no sidecar: one");
            }
        }
    }
}
