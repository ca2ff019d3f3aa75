//! Pods with sidecars that the API server does not let be made: their author sees a workload that has none, and no more.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod, ResourceQuota};
use kube::ResourceExt as _;
use tulle_runtime::names::{DEFAULT_REVISION, annotations};

use super::annotations::sidecar;
use super::finding::{Findings, Level};
use super::injectors::Injectors;
use super::workloads::Scope;
use super::{asked, ranges};
use crate::cluster::error::ClusterError;

/// What a quota counts that sidecars do not have by default.
const LIMITED: &str = "limits.cpu";

/// Looks at meshed namespaces, whose pods with sidecars are known.
pub(super) async fn look(
    scope: &Scope<'_>,
    meshed: &[Namespace],
    injected: &[Pod],
    injectors: &Injectors,
    findings: &mut Findings,
) -> Result<(), ClusterError> {
    let quotas: Vec<ResourceQuota> = scope.list("ResourceQuotas", "").await?;
    let ranges: Vec<LimitRange> = scope.list("LimitRanges", "").await?;
    for namespace in meshed {
        let name = namespace.name_any();
        let within = |of: Option<String>| of.as_deref() == Some(&*name);
        let mut counting = quotas
            .iter()
            .filter(|quota| within(quota.namespace()) && counts(quota));
        let revision = asked::revision(namespace).unwrap_or(DEFAULT_REVISION);
        let limited = injectors.limit_cpu(revision)
            || ranges.iter().any(|it| within(it.namespace()) && gives(it))
            || injected.iter().any(|it| within(it.namespace()) && has(it));
        if let (Some(quota), false) = (counting.next(), limited) {
            findings.error(
                format!("namespace {name}"),
                format!(
                    "its ResourceQuota {} counts {LIMITED}, which sidecars have not: no pod with a sidecar can be made",
                    quota.name_any()
                ),
                format!(
                    "limit all sidecars (tulle upgrade --set proxy.cpuLimit=1, with Helm the same value), or those of a workload by \
                     the annotation {} in its pod template",
                    annotations::CPU_LIMIT
                ),
            );
        }
    }
    ranges::look(&ranges, meshed, injected, injectors, findings);
    let in_mesh = |it: &Deployment| {
        let of = it.namespace();
        meshed.iter().any(|it| it.metadata.name == of)
    };
    let deployments: Vec<Deployment> = scope.list("Deployments", "").await?;
    findings.few(
        Level::Error,
        deployments
            .iter()
            .filter_map(|it| without_pods(it, in_mesh(it))),
        "put right in its pod template, or in its namespace, what the message says",
    );
    Ok(())
}

/// Whether it counts that of all pods: one with a scope is for some of them alone.
fn counts(quota: &ResourceQuota) -> bool {
    quota.spec.as_ref().is_some_and(|spec| {
        let hard = spec.hard.as_ref();
        let scoped = spec.scopes.is_some() || spec.scope_selector.is_some();
        hard.is_some_and(|hard| hard.contains_key(LIMITED)) && !scoped
    })
}

/// Whether containers that have no limit are given one.
fn gives(range: &LimitRange) -> bool {
    let limits = range.spec.iter().flat_map(|spec| &spec.limits);
    let mut defaults = limits
        .filter(|it| it.type_ == "Container")
        .filter_map(|it| it.default.as_ref());
    defaults.any(|default| default.contains_key("cpu"))
}

/// Whether the sidecar has a limit, which its namespace then has found out about.
fn has(pod: &Pod) -> bool {
    let resources = sidecar(pod).and_then(|it| it.resources.as_ref());
    let limits = resources.and_then(|it| it.limits.as_ref());
    limits.is_some_and(|limits| limits.contains_key("cpu"))
}

/// A workload with the reason why its pods are not made, if that is about sidecars, or may be.
fn without_pods(deployment: &Deployment, in_mesh: bool) -> Option<(String, String)> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failed = conditions
        .filter(|it| it.type_ == "ReplicaFailure" && it.status == "True")
        .find_map(|it| it.message.as_deref())?;
    let subject = format!(
        "{}/deployment/{}",
        deployment.namespace().unwrap_or_default(),
        deployment.name_any()
    );
    // A LimitRange does not name the container.
    let ours = failed.contains("tulle") || (in_mesh && failed.contains(" per Container is "));
    ours.then(|| (subject, format!("its pods are not made: {failed}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn quotas_ranges_and_sidecars_say_whether_there_is_a_limit() {
        let quota = |hard: Value| counts(&read(json!({ "spec": { "hard": hard } })));
        assert!(quota(json!({ "limits.cpu": "4" })));
        assert!(!quota(
            json!({ "limits.memory": "4Gi", "requests.cpu": "4" })
        ));
        let scoped = json!({ "hard": { "limits.cpu": "4" }, "scopes": ["Terminating"] });
        assert!(!counts(&read(json!({ "spec": scoped }))));
        let range = |kind: &str, default: Value| {
            let limit = json!({ "type": kind, "default": default });
            gives(&read(json!({ "spec": { "limits": [limit] } })))
        };
        assert!(range("Container", json!({ "cpu": "1" })));
        assert!(!range("Container", json!({ "memory": "1Gi" })));
        assert!(!range("Pod", json!({ "cpu": "1" })));
        let pod = |name: &str, limits: Value| {
            let container = json!({ "name": name, "resources": { "limits": limits } });
            has(&read(
                json!({ "spec": { "initContainers": [container], "containers": [] } }),
            ))
        };
        assert!(pod("tulle-proxy", json!({ "cpu": "1" })));
        assert!(!pod("tulle-proxy", json!({ "memory": "1Gi" })));
        assert!(!pod("other", json!({ "cpu": "1" })));
    }

    #[test]
    fn a_workload_that_has_no_pods_for_its_sidecars_sake_is_told_why() {
        let of = |kind: &str, status: &str, message: &str, in_mesh: bool| {
            let condition = json!({ "type": kind, "status": status, "message": message });
            let metadata = json!({ "name": "web", "namespace": "shop" });
            let status = json!({ "conditions": [condition] });
            let deployment = read(json!({ "metadata": metadata, "status": status }));
            without_pods(&deployment, in_mesh)
        };
        let told = |kind: &str, status: &str, message: &str| of(kind, status, message, true);
        let range = "minimum cpu usage per Container is 50m, but request is 10m";
        for in_mesh in [true, false] {
            let found = of("ReplicaFailure", "True", range, in_mesh);
            assert_eq!(found.is_some(), in_mesh, "{found:?}");
        }
        let message = "admission webhook \"namespace.injector.tulle.dev\" denied the request: no";
        let expected = (
            "shop/deployment/web".to_owned(),
            format!("its pods are not made: {message}"),
        );
        assert_eq!(told("ReplicaFailure", "True", message), Some(expected));
        assert_eq!(told("ReplicaFailure", "False", message), None);
        assert_eq!(told("Available", "True", message), None);
        assert_eq!(told("ReplicaFailure", "True", "exceeded quota: pods"), None);
    }
}
