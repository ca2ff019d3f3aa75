//! What a pod says of how it is.

use k8s_openapi::api::core::v1::Pod;

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
