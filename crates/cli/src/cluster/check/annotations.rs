//! What pods say of their sidecars in vain: the warnings that the injector gave whoever made them, which for a pod of a
//! Deployment is the controller of its ReplicaSet, and nobody.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tulle_injector::{InjectorConfig, Namespace, Resources, inject_pod};
use tulle_runtime::names::{annotations, containers};

use super::finding::{Findings, Level};
use super::workloads::by_workload;

pub(super) fn look(pods: &[Pod], findings: &mut Findings) {
    findings.few(
        Level::Warning,
        by_workload(pods, warnings),
        "correct it in its pod template, which makes its pods anew",
    );
}

/// What the injector would say if the pod were made now with the sidecar that it has.
fn warnings(pod: &Pod) -> Vec<String> {
    let Some(config) = config(pod) else {
        return Vec::new();
    };
    let namespace = Namespace::enabled(pod.namespace().unwrap_or_default());
    match inject_pod(&without_sidecar(pod), &namespace, &config) {
        Ok(outcome) => outcome.warnings.iter().map(ToString::to_string).collect(),
        Err(error) => vec![crate::output::chain(&error)],
    }
}

/// The pod before it was injected, as far as that matters.
fn without_sidecar(pod: &Pod) -> Value {
    let said = pod.annotations().iter().filter(|(name, _)| {
        let ours = name.starts_with("tulle.dev/") || name.starts_with(annotations::LIMITS);
        ours && *name != annotations::STATUS
    });
    let said: serde_json::Map<_, _> = said
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let policy = pod.spec.as_ref().and_then(|it| it.restart_policy.as_ref());
    json!({
        "metadata": { "annotations": said, "ownerReferences": pod.owner_references() },
        "spec": { "containers": [], "restartPolicy": policy },
    })
}

/// The sidecar of a pod, if it has one.
pub(super) fn sidecar(pod: &Pod) -> Option<&Container> {
    let mut apps = pod.spec.iter().flat_map(|spec| &spec.containers);
    native(pod).or_else(|| apps.find(is_proxy))
}

fn native(pod: &Pod) -> Option<&Container> {
    let init = pod.spec.iter().flat_map(|spec| &spec.init_containers);
    init.flatten().find(is_proxy)
}

fn is_proxy(container: &&Container) -> bool {
    container.name == containers::PROXY
}

/// What its injector gave the sidecar, if it has one, as far as annotations are compared with it.
fn config(pod: &Pod) -> Option<InjectorConfig> {
    let has = sidecar(pod)?.resources.as_ref();
    let limit = |name: &str| Some(has?.limits.as_ref()?.get(name)?.0.clone());
    Some(InjectorConfig {
        native_sidecar: native(pod).is_some(),
        resources: Resources {
            cpu_limit: limit("cpu"),
            memory_limit: limit("memory"),
            ..Resources::default()
        },
        ..InjectorConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: Value, native: bool, policy: &str) -> Pod {
        let proxy =
            json!({ "name": "tulle-proxy", "resources": { "limits": { "memory": "1Gi" } } });
        let app = json!({ "name": "app" });
        let (init, apps) = match native {
            true => (json!([proxy]), json!([app])),
            false => (json!([]), json!([proxy, app])),
        };
        let pod = json!({
            "metadata": { "name": "one", "namespace": "shop", "annotations": annotations },
            "spec": { "initContainers": init, "containers": apps, "restartPolicy": policy },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn what_a_running_pod_says_in_vain_is_told_with_what_is_allowed() {
        let status = json!({ "tulle.dev/status": "{}", "example.org/x": "y" });
        for (annotations, native, policy, words) in [
            (status, true, "Always", &[][..]),
            (
                json!({ "tulle.dev/proxy-log-level": "debug" }),
                true,
                "Always",
                &[],
            ),
            (
                json!({ "tulle.dev/proxy-log-level": "loud" }),
                true,
                "Always",
                &[
                    "annotation tulle.dev/proxy-log-level",
                    "\"loud\"",
                    "write off, error, warn",
                ],
            ),
            (
                json!({ "tulle.dev/exlude-inbound-ports": "1" }),
                true,
                "Always",
                &["tulle.dev/exlude-inbound-ports is not known"],
            ),
            // Changed after the pod was made: it would be refused now.
            (
                json!({ "tulle.dev/exclude-inbound-ports": "x" }),
                true,
                "Always",
                &[
                    "tulle.dev/exclude-inbound-ports",
                    "\"x\"",
                    "write ports from 1 to 65535",
                ],
            ),
            (
                json!({ "limits.tulle.dev/memory-limit": "512Mi" }),
                true,
                "Always",
                &[],
            ),
            (
                json!({ "limits.tulle.dev/memory-limit": "2Gi" }),
                true,
                "Always",
                &["allows 2Gi, but the sidecar's container has 1Gi"],
            ),
            (json!({}), true, "Never", &[]),
            (json!({}), false, "Always", &[]),
            // The control plane tells its sidecar.
            (json!({}), false, "Never", &[]),
            (
                json!({ "tulle.dev/xds-address": "elsewhere:15010" }),
                false,
                "Never",
                &["would keep its pods from completing"],
            ),
        ] {
            let told = format!("{annotations} {native} {policy}");
            let mut findings = Findings::default();
            look(&[pod(annotations, native, policy)], &mut findings);
            assert_eq!(
                findings.all.is_empty(),
                words.is_empty(),
                "{told}: {findings:?}"
            );
            for word in words {
                let found = &findings.all[0];
                assert_eq!((found.level, &*found.subject), (Level::Warning, "shop/one"));
                assert!(found.state.contains(word), "{told}: {}", found.state);
            }
        }
    }
}
