//! The canonical name and revision of a workload, by which telemetry groups pods.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_runtime::names::labels;

use super::Pod;

/// Longest value of a label.
const MAX_LABEL: usize = 63;
/// Label that a Deployment puts on its pods; its value ends the name of the ReplicaSet.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// From the labels, else from the workload that owns the pod, else from the pod itself.
pub(crate) fn canonical_name(pod: &Pod<'_>) -> Option<String> {
    let from_labels = label(pod.meta, labels::APP_NAME).or_else(|| label(pod.meta, "app"));
    let name = match from_labels {
        Some(name) => name,
        None => (pod.workload)
            .or_else(|| owner(pod.meta))
            .or(pod.meta.name.as_deref())
            .or_else(|| {
                pod.meta
                    .generate_name
                    .as_deref()
                    .map(|name| name.trim_end_matches('-'))
            })?,
    };
    let name: String = name.chars().take(MAX_LABEL).collect();
    let name = name.trim_end_matches(['-', '.', '_']).to_owned();
    (!name.is_empty()).then_some(name)
}

/// From the labels, else `latest`.
pub(crate) fn canonical_revision(meta: &ObjectMeta) -> String {
    let version = label(meta, labels::APP_VERSION).or_else(|| label(meta, "version"));
    version.unwrap_or("latest").to_owned()
}

/// The controller's name; of a ReplicaSet made by a Deployment, the Deployment's.
fn owner(meta: &ObjectMeta) -> Option<&str> {
    let owner = meta
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))?;
    let deployment = label(meta, TEMPLATE_HASH)
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    Some(deployment.unwrap_or(&owner.name))
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels
        .as_ref()?
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}
