//! Sidecars that should be connected to the control plane, and are not: they live by what they last knew, as long as their
//! certificate lasts, and nobody else would tell of them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{annotations, containers};

use super::answer;
use super::error::ClusterError;
use super::pods::{is_alive, runs, speaks_mtls};
use super::status::Proxy;

/// Seconds that a sidecar may take to connect.
const TIME: i64 = 60;

/// The pods whose sidecars have had the time to connect to the control plane, of one namespace or of all.
pub(super) async fn expected(
    client: &Client,
    namespace: Option<&str>,
) -> Result<Vec<Pod>, ClusterError> {
    list(client, namespace).await.map(due)
}

/// Those of them that have had the time.
pub(super) fn due(mut pods: Vec<Pod>) -> Vec<Pod> {
    let now = Timestamp::now().as_second();
    pods.retain(|pod| should_be_connected(pod, now));
    pods
}

/// The pods with a sidecar, of one namespace or of all.
pub(super) async fn list(
    client: &Client,
    namespace: Option<&str>,
) -> Result<Vec<Pod>, ClusterError> {
    let api: Api<Pod> = match namespace {
        Some(name) => Api::namespaced(client.clone(), name),
        None => Api::all(client.clone()),
    };
    // Not by their label, which somebody may have taken from them.
    let list = ListParams::default();
    let pods = answer("list the pods with sidecars", api.list(&list)).await?;
    Ok(pods.items.into_iter().filter(speaks_mtls).collect())
}

fn should_be_connected(pod: &Pod, now: i64) -> bool {
    let elsewhere = pod.annotations().contains_key(annotations::XDS_ADDRESS);
    let ends = pod.metadata.deletion_timestamp.is_some() || is_at_its_end(pod);
    let since = since(pod);
    (runs(pod) || has_begun(pod))
        && !elsewhere
        && !ends
        && since.is_some_and(|since| now - since > TIME)
}

/// Whether its sidecar was started, of a pod that waits for it: a native one that gets no configuration keeps its pod Pending.
fn has_begun(pod: &Pod) -> bool {
    let runs = |it: &ContainerStatus| it.state.as_ref().is_some_and(|it| it.running.is_some());
    is_alive(pod) && sidecar(pod).is_some_and(|it| runs(it) || it.restart_count > 0)
}

/// Since when it could be; one that does not run now could have been before.
pub(super) fn since(pod: &Pod) -> Option<i64> {
    let state = sidecar(pod).and_then(|it| it.state.as_ref());
    let started = match state.and_then(|it| it.running.as_ref()) {
        Some(running) => running.started_at.as_ref(),
        None => pod.status.as_ref()?.start_time.as_ref(),
    };
    started.map(|time| time.0.as_second())
}

/// Whether nothing but the sidecar is left of a pod that ends by itself.
fn is_at_its_end(pod: &Pod) -> bool {
    let apps = pod.status.iter().flat_map(|it| &it.container_statuses);
    let mut apps = apps
        .flatten()
        .filter(|it| it.name != containers::PROXY)
        .peekable();
    let ended = |it: &ContainerStatus| it.state.as_ref().is_some_and(|it| it.terminated.is_some());
    apps.peek().is_some() && apps.all(ended)
}

/// Whether its sidecar can be called; of one that was written by hand, the whole pod.
pub(super) fn is_ready(pod: &Pod) -> bool {
    if let Some(sidecar) = sidecar(pod) {
        return sidecar.ready;
    }
    let conditions = pod.status.iter().flat_map(|it| &it.conditions);
    let mut conditions = conditions.flatten();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Whether its sidecar runs, and is one of ours.
pub(super) fn sidecar_runs(pod: &Pod) -> bool {
    let state = sidecar(pod).and_then(|it| it.state.as_ref());
    state.is_some_and(|it| it.running.is_some())
}

/// The command that says what the sidecar has to say.
pub(super) fn log(pod: &Pod) -> String {
    let of = match sidecar(pod) {
        Some(sidecar) => format!("-c {}", sidecar.name),
        None => "--all-containers".to_owned(),
    };
    let namespace = pod.namespace().unwrap_or_default();
    format!("kubectl -n {namespace} logs {} {of}", pod.name_any())
}

fn sidecar(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    all.find(|it| it.name == containers::PROXY)
}

/// Its name, as the control plane says it.
pub(super) fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Those that are not among the proxies of any replica.
pub(super) fn missing<'a>(pods: &'a [Pod], proxies: &[Proxy]) -> Vec<&'a Pod> {
    let connected: BTreeSet<_> = proxies.iter().map(|it| it.pod.as_str()).collect();
    let missing = pods
        .iter()
        .filter(|pod| !connected.contains(name(pod).as_str()));
    missing.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// 12:00 of a day.
    const NOON: i64 = 1_767_268_800;

    fn container(name: &str, state: &Value) -> Value {
        json!({
            "name": name, "image": "x", "imageID": "", "restartCount": 0, "ready": state["running"].is_object(), "state": state,
        })
    }

    fn running(at: &str) -> Value {
        json!({ "running": { "startedAt": format!("2026-01-01T{at}Z") } })
    }

    /// A pod whose sidecar is in such a state, and its app in such a one.
    fn pod(sidecar: &Value, app: &Value) -> Value {
        json!({
            "metadata": { "name": "one", "namespace": "shop" },
            "status": {
                "phase": "Running",
                "startTime": "2026-01-01T10:00:00Z",
                "initContainerStatuses": [container("tulle-proxy", sidecar)],
                "containerStatuses": [container("app", app)],
            },
        })
    }

    fn read(pod: Value) -> Pod {
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_sidecar_that_has_run_for_a_minute_should_be_connected() {
        let (long, app) = (running("11:00:00"), running("11:00:01"));
        let of = |path: &str, value: Value| {
            let mut pod = pod(&long, &app);
            let (object, field) = path.split_once('.').expect("an object and its field");
            pod[object][field] = value;
            pod
        };
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        // Others are to end before it begins.
        let before = |app: &Value| {
            let mut pod = pod(&json!({ "waiting": { "reason": "PodInitializing" } }), app);
            pod["status"]["phase"] = json!("Pending");
            pod
        };
        let crashes = || {
            let mut pod = pod(&waiting, &waiting);
            pod["status"]["phase"] = json!("Pending");
            pod["status"]["initContainerStatuses"][0]["restartCount"] = json!(3);
            pod
        };
        let ended = json!({ "terminated": { "exitCode": 0 } });
        let elsewhere = json!({ "tulle.dev/xds-address": "other:15010" });
        for (name, pod, expected) in [
            ("runs", pod(&long, &app), true),
            ("has just begun", pod(&running("11:59:30"), &app), false),
            ("does not run any more", pod(&waiting, &app), true),
            ("its app crashes", pod(&long, &waiting), true),
            ("its app is done", pod(&long, &ended), false),
            ("waits for it", of("status.phase", json!("Pending")), true),
            ("waits for something else", before(&long), false),
            ("waits for one that crashes", crashes(), true),
            (
                "ends",
                of("metadata.deletionTimestamp", json!("2026-01-01T11:59:59Z")),
                false,
            ),
            ("asks another", of("metadata.annotations", elsewhere), false),
            (
                "by hand",
                of("status.initContainerStatuses", json!([])),
                true,
            ),
        ] {
            assert_eq!(should_be_connected(&read(pod), NOON), expected, "{name}");
        }
    }

    #[test]
    fn those_whom_no_replica_knows_are_missing_with_where_to_look() {
        let one = read(pod(&running("11:00:00"), &json!({})));
        let mut two = one.clone();
        two.metadata.name = Some("two".to_owned());
        two.status = None;
        let proxy = |pod: &str| {
            serde_json::from_value(json!({
                "pod": pod, "kind": "tulle", "identity": "", "address": "", "build": "", "connected_seconds": 7, "types": {},
            }))
        };
        let proxies = [proxy("shop/two").expect("a proxy")];
        let pods = [one, two];
        let names: Vec<_> = missing(&pods, &proxies).into_iter().map(name).collect();
        assert_eq!(names, ["shop/one"]);
        let said = [0, 1].map(|at| (log(&pods[at]), is_ready(&pods[at])));
        let expected = [
            ("kubectl -n shop logs one -c tulle-proxy".to_owned(), true),
            (
                "kubectl -n shop logs two --all-containers".to_owned(),
                false,
            ),
        ];
        assert_eq!(said, expected);
    }
}
