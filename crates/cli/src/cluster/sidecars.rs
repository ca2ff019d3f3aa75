//! The pods that have a sidecar, by the workloads that a person would restart.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{DEFAULT_REVISION, labels};

use super::check::some;
use super::pods::{has_sidecar, is_alive};
use super::{TEMPLATE_HASH, answer};
use crate::cluster::error::ClusterError;

/// Pods of a page.
const PAGE: u32 = 500;

/// Fails if pods live by the control plane of a revision, or of any.
pub(super) async fn stay(client: &Client, revision: Option<&str>) -> Result<(), ClusterError> {
    // Of all pods, because a label can be taken away from a pod, and a sidecar cannot.
    let mut list = ListParams::default().limit(PAGE);
    let api: Api<Pod> = Api::all(client.clone());
    let mut concerned = Vec::new();
    loop {
        let page = answer("list the pods with sidecars", api.list(&list)).await?;
        let items = page.items.into_iter();
        concerned.extend(items.filter(|pod| is_concerned(pod, revision)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => list = list.continue_token(&token),
            None => break,
        }
    }
    if concerned.is_empty() {
        return Ok(());
    }
    Err(ClusterError::SidecarsStay {
        count: concerned.len(),
        some: workloads(&concerned),
    })
}

fn is_concerned(pod: &Pod, revision: Option<&str>) -> bool {
    let of = pod.labels().get(labels::REVISION);
    let of = of.map_or(DEFAULT_REVISION, String::as_str);
    has_sidecar(pod) && is_alive(pod) && revision.is_none_or(|revision| revision == of)
}

/// A handful of the workloads, each with how many pods of it there are.
fn workloads(pods: &[Pod]) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for pod in pods {
        *counts.entry(workload(pod)).or_default() += 1;
    }
    let said: Vec<_> = counts
        .iter()
        .map(|(name, count)| match count {
            1 => name.clone(),
            count => format!("{name} ({count})"),
        })
        .collect();
    some(&said.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What makes a pod anew when it is restarted, as `kubectl -n NAMESPACE rollout restart` takes it.
pub(super) fn workload(pod: &Pod) -> String {
    let namespace = pod.namespace().unwrap_or_default();
    let owners = pod.owner_references().iter();
    let mut owners = owners.filter(|owner| owner.controller == Some(true));
    let Some(owner) = owners.next() else {
        return format!("{namespace}/{}", pod.name_any());
    };
    let hash = pod.labels().get(TEMPLATE_HASH);
    let deployment = hash
        .and_then(|hash| owner.name.strip_suffix(hash))
        .and_then(|name| name.strip_suffix('-'))
        .filter(|_| owner.kind == "ReplicaSet");
    match deployment {
        Some(name) => format!("{namespace}/deployment/{name}"),
        None => format!("{namespace}/{}/{}", owner.kind.to_lowercase(), owner.name),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, phase: &str, revision: Option<&str>, owner: Option<(&str, &str)>) -> Pod {
        let mut labels = json!({ "tulle.dev/proxied": "true", "pod-template-hash": "7d9c" });
        if let Some(revision) = revision {
            labels["tulle.dev/rev"] = json!(revision);
        }
        let owners = owner.map(|(kind, name)| {
            json!([{
                "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true,
            }])
        });
        let pod = json!({
            "metadata": { "name": name, "namespace": "shop", "labels": labels, "ownerReferences": owners },
            "status": { "phase": phase },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn pods_that_live_by_a_control_plane_count_if_it_goes() {
        for (phase, of, going, counts) in [
            ("Running", Some("default"), None, true),
            ("Running", Some("next"), None, true),
            ("Pending", None, None, true),
            ("Succeeded", Some("default"), None, false),
            ("Failed", Some("default"), None, false),
            ("Running", Some("next"), Some("next"), true),
            ("Running", Some("default"), Some("next"), false),
            // Who says nothing of revisions is the default one's.
            ("Running", None, Some("next"), false),
            ("Running", None, Some("default"), true),
        ] {
            let pod = pod("web", phase, of, None);
            assert_eq!(
                is_concerned(&pod, going),
                counts,
                "{phase} {of:?} {going:?}"
            );
        }
    }

    #[test]
    fn a_pod_counts_by_what_was_injected_whatever_became_of_its_label() {
        for (init, counts) in [("tulle-capture", true), ("migrate", false)] {
            let mut pod = pod("web", "Running", None, None);
            pod.metadata.labels = None;
            let spec = json!({ "containers": [], "initContainers": [{ "name": init }] });
            pod.spec = Some(serde_json::from_value(spec).expect("a spec"));
            assert_eq!(is_concerned(&pod, None), counts, "{init}");
        }
    }

    #[test]
    fn pods_are_told_by_what_a_person_would_restart() {
        let of = |name: &str, owner| pod(name, "Running", None, owner);
        let pods = [
            of("web-7d9c-a", Some(("ReplicaSet", "web-7d9c"))),
            of("web-7d9c-b", Some(("ReplicaSet", "web-7d9c"))),
            of("bare-x", Some(("ReplicaSet", "bare"))),
            of("db-0", Some(("StatefulSet", "db"))),
            of("alone", None),
        ];
        assert_eq!(
            workloads(&pods),
            "shop/alone, shop/deployment/web (2), shop/replicaset/bare, shop/statefulset/db"
        );
        let names: Vec<_> = (0..9).map(|at| format!("pod{at}")).collect();
        let many: Vec<_> = names.iter().map(|name| of(name, None)).collect();
        let said = workloads(&many);
        assert!(said.ends_with("shop/pod4 and 4 more"), "{said}");
    }
}
