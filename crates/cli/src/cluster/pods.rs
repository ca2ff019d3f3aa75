//! What a pod says of how it is.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tulle_runtime::names::{containers, labels};

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Whether it runs.
pub(super) fn runs(pod: &Pod) -> bool {
    phase(pod) == Some("Running")
}

/// Whether it runs, or is to.
pub(super) fn is_alive(pod: &Pod) -> bool {
    !matches!(phase(pod), Some("Succeeded" | "Failed"))
}

/// Whether it has a sidecar: its containers say so for good, its label only until somebody takes it away.
pub(super) fn has_sidecar(pod: &Pod) -> bool {
    pod.labels().contains_key(labels::PROXIED) || was_injected(pod)
}

/// Whether others call it by mTLS, so that it lives by the control plane. What speaks xDS itself is another matter.
pub(super) fn speaks_mtls(pod: &Pod) -> bool {
    let label = pod.labels().get(labels::PROXIED);
    label.is_some_and(|value| value == "true") || was_injected(pod)
}

fn was_injected(pod: &Pod) -> bool {
    let init = pod.spec.iter().flat_map(|it| &it.init_containers).flatten();
    let mut init = init.map(|it| it.name.as_str());
    init.any(|it| it == containers::CAPTURE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_has_a_sidecar_by_its_label_or_by_what_was_injected() {
        let pod = |labels: Value, init: &str| -> Pod {
            let spec = json!({ "containers": [], "initContainers": [{ "name": init }] });
            serde_json::from_value(json!({ "metadata": { "labels": labels }, "spec": spec }))
                .expect("a pod")
        };
        let label = |value: &str| json!({ "tulle.dev/proxied": value });
        for (pod, sidecar, mtls) in [
            (pod(label("true"), "tulle-capture"), true, true),
            (pod(json!({}), "tulle-capture"), true, true),
            (pod(label("false"), "tulle-capture"), true, true),
            // As one that was written by hand.
            (pod(label("true"), "own"), true, true),
            (pod(label("grpc"), "own"), true, false),
            (pod(json!({}), "own"), false, false),
        ] {
            let found = (has_sidecar(&pod), speaks_mtls(&pod));
            assert_eq!(found, (sidecar, mtls), "{pod:?}");
        }
    }
}
