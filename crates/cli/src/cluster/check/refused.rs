//! Pods with sidecars that the API server does not let be made: their author sees a workload that has none, and no more.

use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod, ResourceQuota};
use kube::ResourceExt as _;
use tulle_runtime::names::{DEFAULT_REVISION, annotations};

use super::annotations::sidecar;
use super::finding::Findings;
use super::injectors::Injectors;
use super::workloads::Scope;
use super::{asked, ranges, unmade};
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
    unmade::look(scope, meshed, findings).await
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
}
