//! Pods that do not start because what was added to them does not: nobody else would say that it is not the app's fault.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;
use tulle_runtime::names::containers;

use super::finding::Findings;
use super::some;
use super::workloads::Scope;
use crate::cluster::connected;
use crate::cluster::pods::is_alive;
use crate::cluster::rollouts::waits;

/// Seconds that it may take.
const TIME: i64 = 60;

/// Names those of the pods with a sidecar of which it is known why theirs does not start, and gives the others.
pub(super) async fn look(scope: &Scope<'_>, findings: &mut Findings) -> Vec<Pod> {
    match connected::list(scope.client, scope.namespace).await {
        Ok(pods) => judge(pods, Timestamp::now().as_second(), findings),
        Err(error) => {
            findings.unknown("sidecars", &error);
            Vec::new()
        }
    }
}

fn judge(pods: Vec<Pod>, now: i64, findings: &mut Findings) -> Vec<Pod> {
    let mut found = BTreeMap::<(&'static str, String), Vec<(Pod, String)>>::new();
    let mut others = Vec::new();
    for pod in pods {
        match hindered(&pod, now) {
            Some((container, reason, why)) => {
                found
                    .entry((container, reason))
                    .or_default()
                    .push((pod, why));
            }
            None => others.push(pod),
        }
    }
    for ((container, reason), pods) in found {
        let Some((first, why)) = pods.first() else {
            continue;
        };
        let names: Vec<_> = pods.iter().map(|(pod, _)| connected::name(pod)).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        findings.error(
            "sidecars",
            format!(
                "{} do not start, for their container {container} does not: {}: {why}",
                names.len(),
                some(&names)
            ),
            remedy(first, container, &reason),
        );
    }
    others
}

/// Which container of ours keeps a pod from starting, the word for it and all that is said of it.
fn hindered(pod: &Pod, now: i64) -> Option<(&'static str, String, String)> {
    let made = pod.creation_timestamp()?.0.as_second();
    let ends = pod.metadata.deletion_timestamp.is_some();
    if ends || !is_alive(pod) || now - made <= TIME {
        return None;
    }
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    all.find_map(|container| {
        let ours = [containers::CAPTURE, containers::PROXY];
        let name = ours.into_iter().find(|it| *it == container.name)?;
        let (reason, why) = trouble(container)?;
        Some((name, reason, why))
    })
}

fn trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let why = waits(container)?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, why))
}

fn remedy(pod: &Pod, container: &str, reason: &str) -> String {
    if reason.contains("Image") {
        return "see that its node can fetch the image: values image.registry, image.tag and proxy.imagePullSecrets of the installation"
            .to_owned();
    }
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    format!(
        "see why: kubectl -n {namespace} logs {name} -c {container} --previous; kubectl -n {namespace} describe pod {name}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// 12:00 of a day.
    const NOON: i64 = 1_767_268_800;

    fn pod(name: &str, container: &str, state: &Value) -> Pod {
        let status = json!({
            "name": container, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T11:00:00Z" },
            "status": { "phase": "Pending", "initContainerStatuses": [status] },
        }))
        .expect("a pod")
    }

    fn waiting(reason: &str) -> Value {
        json!({ "waiting": { "reason": reason, "message": "so it is" } })
    }

    #[test]
    fn pods_that_wait_for_what_was_added_to_them_are_named_with_the_reason() {
        let pull = waiting("ImagePullBackOff");
        let pods = vec![
            pod("a", "tulle-capture", &pull),
            pod("b", "tulle-capture", &pull),
            pod("c", "tulle-proxy", &waiting("CrashLoopBackOff")),
            pod("own", "migrate", &pull),
            pod("begins", "tulle-capture", &waiting("PodInitializing")),
        ];
        let mut findings = Findings::default();
        let others = judge(pods.clone(), NOON, &mut findings);
        let names: Vec<_> = others.iter().map(Pod::name_any).collect();
        assert_eq!(names, ["own", "begins"]);
        let said: Vec<_> = findings.all.iter().map(|it| it.state.as_str()).collect();
        assert_eq!(
            said,
            [
                "2 do not start, for their container tulle-capture does not: shop/a, shop/b: ImagePullBackOff: so it is",
                "1 do not start, for their container tulle-proxy does not: shop/c: CrashLoopBackOff: so it is",
            ]
        );
        let remedies: Vec<_> = findings
            .all
            .iter()
            .filter_map(|it| it.remedy.as_deref())
            .collect();
        assert!(
            remedies[0].contains("proxy.imagePullSecrets"),
            "{remedies:?}"
        );
        assert!(
            remedies[1].contains("kubectl -n shop logs c -c tulle-proxy --previous"),
            "{remedies:?}"
        );
        // It may take a while.
        let soon = NOON - 3600 + TIME;
        assert_eq!(judge(pods, soon, &mut Findings::default()).len(), 5);
    }
}
