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
    let init = pod.spec.iter().flat_map(|it| &it.init_containers).flatten();
    let mut init = init.map(|it| it.name.as_str());
    pod.labels().contains_key(labels::PROXIED) || init.any(|it| it == containers::CAPTURE)
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
        let label = json!({ "tulle.dev/proxied": "true" });
        for (pod, expected) in [
            (pod(label.clone(), "tulle-capture"), true),
            (pod(json!({}), "tulle-capture"), true),
            // As one that was written by hand.
            (pod(label, "own"), true),
            (pod(json!({}), "own"), false),
        ] {
            assert_eq!(has_sidecar(&pod), expected, "{pod:?}");
        }
    }
}
