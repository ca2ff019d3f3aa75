//! How far rollouts of the mesh are, and what keeps those from getting on that do not.
//!
//! When one is over is as `kubectl rollout status` has it: <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#deployment-status>.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::CONTROL_NAMESPACE;

use super::connected::is_ready;
use super::error::ClusterError;
use super::{TEMPLATE_HASH, answer, nodes};

/// By which a Deployment tells which of its ReplicaSets is the newest.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// What a container waits for that is on its way.
const ON_ITS_WAY: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// How far a rollout is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Over,
    Under {
        /// What there is to say of it.
        state: String,
        /// Grows as it gets on.
        far: i32,
        /// Whether pods are to come or to go; if not, all are there, and one does not serve.
        rolls: bool,
    },
}

/// How far it is by what the API server says of it.
pub(super) fn stage(deployment: &Deployment) -> Stage {
    let spec = deployment.spec.as_ref();
    let wanted = spec.and_then(|it| it.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= deployment.metadata.generation;
    let replicas = status.replicas.unwrap_or_default();
    let updated = match seen {
        true => status.updated_replicas.unwrap_or_default(),
        false => 0,
    };
    let available = status.available_replicas.unwrap_or_default();
    let old = replicas - updated;
    if seen && updated >= wanted && old <= 0 && available >= updated {
        return Stage::Over;
    }
    let paused = match spec.and_then(|it| it.paused) {
        Some(true) => " (it is paused: kubectl rollout resume)",
        _ => "",
    };
    Stage::Under {
        state: format!(
            "{updated} of {wanted} pods are new, {old} old ones are left, {available} serve{paused}"
        ),
        far: updated - old + available.min(wanted),
        rolls: !seen || updated < wanted || old > 0,
    }
}

/// Why pods of it are not there yet, where the API server or kubelet says so, or that Kubernetes has given it up.
///
/// # Errors
/// If its pods cannot be listed.
pub(super) async fn why(
    client: &Client,
    deployment: &Deployment,
) -> Result<Option<String>, ClusterError> {
    if let Some(refused) = condition(deployment, "ReplicaFailure", "True") {
        return Ok(Some(refused));
    }
    if !has_new_pods(deployment) {
        return Ok(condition(deployment, "Progressing", "False"));
    }
    let selector = deployment.spec.as_ref();
    let selector = selector.and_then(|it| it.selector.match_labels.as_ref());
    let selector = selector.into_iter().flatten();
    let pairs: Vec<_> = selector.map(|(k, v)| format!("{k}={v}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let list = ListParams::default().labels(&pairs.join(","));
    let sets = answer("see why", sets.list(&list)).await?;
    let pods = answer("see why", pods.list(&list)).await?;
    let form = form(deployment, &sets.items);
    let new = pods
        .items
        .iter()
        .filter(|pod| form.is_some() && pod.labels().get(TEMPLATE_HASH) == form);
    let hindered = new.clone().find_map(|pod| Some((pod, hindrance(pod)?)));
    let first = match hindered {
        Some(hindered) => Some(hindered),
        None => lost(client, new).await,
    };
    let first = first.map(|(pod, why)| format!("{}: {why}", pod.name_any()));
    Ok(first.or_else(|| condition(deployment, "Progressing", "False")))
}

/// A pod that does not serve because its node is not there.
async fn lost<'a>(
    client: &Client,
    pods: impl Iterator<Item = &'a Pod>,
) -> Option<(&'a Pod, String)> {
    for pod in pods.filter(|pod| !is_ready(pod)) {
        let Some(node) = pod.spec.as_ref().and_then(|it| it.node_name.as_deref()) else {
            continue;
        };
        if let Some(why) = nodes::away(client, node).await {
            return Some((pod, format!("its node {node} is not ready ({why})")));
        }
    }
    None
}

/// What is said of a condition with that status.
fn condition(deployment: &Deployment, name: &str, status: &str) -> Option<String> {
    let conditions = deployment.status.iter().flat_map(|it| &it.conditions);
    let mut conditions = conditions.flatten();
    let found = conditions.find(|it| it.type_ == name && it.status == status);
    found?.message.clone()
}

/// Whether there are pods of the form that it has now; what hinders those of another says nothing of it.
fn has_new_pods(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let seen = status.and_then(|it| it.observed_generation) >= deployment.metadata.generation;
    seen && status
        .and_then(|it| it.updated_replicas)
        .unwrap_or_default()
        > 0
}

/// What tells the pods that are to stay from those that are about to go.
fn form<'a>(deployment: &Deployment, sets: &'a [ReplicaSet]) -> Option<&'a String> {
    let now = deployment.annotations().get(REVISION)?;
    let mut sets = sets.iter();
    let newest = sets.find(|it| it.annotations().get(REVISION) == Some(now));
    newest?.labels().get(TEMPLATE_HASH)
}

/// Why a pod does not run, if it does not, and that is known.
fn hindrance(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let unplaced = conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(condition) = unplaced {
        return condition.message.clone();
    }
    let init = status.init_container_statuses.iter().flatten();
    let mut containers = init.chain(status.container_statuses.iter().flatten());
    containers.find_map(waits)
}

/// What a container waits for, where that is not on its way.
pub(super) fn waits(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if ON_ITS_WAY.contains(&reason) {
        return None;
    }
    let mut said = match &waiting.message {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    };
    // What it said at its end is nearer to the cause than that it ended.
    let last = container.last_state.as_ref();
    let last = last.and_then(|it| it.terminated.as_ref()?.message.as_deref());
    let words = last.and_then(|it| it.lines().rfind(|line| !line.trim().is_empty()));
    if let Some(words) = words {
        said += &format!("; its last words: {}", words.trim());
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    /// Of three replicas: how many there are, are new and serve, and whether the newest form was seen.
    fn at(replicas: i32, updated: i32, available: i32, seen: bool) -> Stage {
        let template = json!({ "spec": { "containers": [] } });
        stage(&read(json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": 3, "selector": {}, "template": template },
            "status": {
                "observedGeneration": if seen { 2 } else { 1 }, "replicas": replicas, "updatedReplicas": updated,
                "availableReplicas": available,
            },
        })))
    }

    #[test]
    fn a_rollout_is_over_when_all_pods_are_new_and_serve() {
        assert_eq!(at(3, 3, 3, true), Stage::Over);
        for (name, stage) in [
            ("not seen", at(3, 3, 3, false)),
            ("old ones are left", at(4, 3, 4, true)),
            ("too few", at(2, 2, 2, true)),
            ("one does not serve", at(3, 3, 2, true)),
        ] {
            assert!(matches!(stage, Stage::Under { .. }), "{name}: {stage:?}");
        }
    }

    #[test]
    fn whoever_gets_on_is_farther_than_before() {
        let far = |stage| match stage {
            Stage::Over => i32::MAX,
            Stage::Under { far, .. } => far,
        };
        let way = [
            at(3, 3, 3, false),
            at(3, 1, 2, true),
            at(3, 1, 3, true),
            at(3, 2, 3, true),
            at(3, 3, 2, true),
            at(3, 3, 3, true),
        ];
        let way: Vec<_> = way.into_iter().map(far).collect();
        assert!(way.is_sorted(), "{way:?}");
        // One that is ready for a moment, again and again, does not get on.
        let flaps = [at(4, 1, 3, true), at(4, 1, 4, true)].map(far);
        assert_eq!(flaps[0], flaps[1]);
    }

    #[test]
    fn what_kubernetes_has_given_up_is_found_by_its_condition() {
        let deployment = |status: &str| -> Deployment {
            let condition = json!({ "type": "Progressing", "status": status, "message": "timed out progressing" });
            read(json!({ "metadata": {}, "status": { "conditions": [condition] } }))
        };
        let said = |status| condition(&deployment(status), "Progressing", "False");
        assert_eq!(said("False").as_deref(), Some("timed out progressing"));
        assert_eq!(said("True"), None);
    }

    #[test]
    fn before_there_are_new_pods_nothing_is_said_of_others() {
        for (observed, updated, expected) in [(2, 1, true), (2, 0, false), (1, 2, false)] {
            let deployment: Deployment = read(json!({
                "metadata": { "generation": 2 },
                "status": { "observedGeneration": observed, "updatedReplicas": updated },
            }));
            assert_eq!(has_new_pods(&deployment), expected, "{observed} {updated}");
        }
    }

    #[test]
    fn of_pods_of_two_forms_those_of_the_last_rollout_count() {
        let set = |form: &str, revision: &str| -> ReplicaSet {
            let annotations = json!({ "deployment.kubernetes.io/revision": revision });
            let labels = json!({ "pod-template-hash": form });
            read(json!({ "metadata": { "labels": labels, "annotations": annotations } }))
        };
        let sets = [set("old", "1"), set("new", "10"), set("older", "2")];
        let found = |revision: Value| {
            let annotations = json!({ "deployment.kubernetes.io/revision": revision });
            let deployment = read(json!({ "metadata": { "annotations": annotations } }));
            form(&deployment, &sets).map(String::as_str)
        };
        assert_eq!(found(json!("10")), Some("new"));
        // After `kubectl rollout undo` it is an old one that is given the next number.
        assert_eq!(found(json!("11")), None);
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let told = |status: Value| hindrance(&read(json!({ "status": status })));
        let waiting = |reason: &str| {
            let state = json!({ "waiting": { "reason": reason, "message": "back-off" } });
            told(json!({ "containerStatuses": [{
                "name": "x", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }] }))
        };
        assert_eq!(
            waiting("ImagePullBackOff").as_deref(),
            Some("ImagePullBackOff: back-off")
        );
        assert_eq!(waiting("ContainerCreating"), None);
        let ended = json!({ "terminated": { "exitCode": 2, "message": "starting\nerror: no such filter\n" } });
        let crashes = told(json!({ "containerStatuses": [{
            "name": "x", "image": "x", "imageID": "", "ready": false, "restartCount": 1,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": ended,
        }] }));
        assert_eq!(
            crashes.as_deref(),
            Some("CrashLoopBackOff; its last words: error: no such filter")
        );
        let placed = |status: &str| {
            told(
                json!({ "conditions": [{ "type": "PodScheduled", "status": status, "message": "no node" }] }),
            )
        };
        assert_eq!(placed("False").as_deref(), Some("no node"));
        assert_eq!(placed("True"), None);
    }
}
