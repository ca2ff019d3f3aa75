//! The two entrances: a pod as the API server sends it, and a document as a user keeps it in a file.

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tulle_runtime::names::labels;

use crate::decide::{Decision, Namespace, SkipReason, decide};
use crate::patch::{Pod, label, patch};
use crate::{InjectError, InjectorConfig, Outcome};

/// Injects a pod, whatever its `kind` says.
pub fn inject_pod(
    pod: &Value,
    namespace: &Namespace,
    config: &InjectorConfig,
) -> Result<Outcome, InjectError> {
    inject_at(pod.clone(), "Pod", &[], None, namespace, config)
}

/// Injects a pod or the pod template of a workload (Deployment, StatefulSet, DaemonSet, ReplicaSet,
/// ReplicationController, Job, CronJob). Any other document comes back untouched.
pub fn inject_document(
    document: Value,
    namespace: &Namespace,
    config: &InjectorConfig,
) -> Result<Outcome, InjectError> {
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    let template: &[&str] = match kind.as_str() {
        "Pod" => &[],
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => &["spec", "template"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => {
            let decision = Decision::Skip(SkipReason::NotAWorkload);
            return Ok(Outcome::untouched(decision, document));
        }
    };
    let workload = document["metadata"]["name"].as_str().map(str::to_owned);
    inject_at(document, &kind, template, workload, namespace, config)
}

fn inject_at(
    document: Value,
    kind: &str,
    template: &[&str],
    workload: Option<String>,
    namespace: &Namespace,
    config: &InjectorConfig,
) -> Result<Outcome, InjectError> {
    let meta: Option<ObjectMeta> = part(&document, kind, template, "metadata")?;
    let meta = meta.unwrap_or_default();
    let spec: PodSpec =
        part(&document, kind, template, "spec")?.ok_or_else(|| InjectError::Missing {
            kind: kind.to_owned(),
            field: field(template, "spec"),
        })?;
    let decision = decide(&meta, &spec, namespace, config)?;
    if decision == Decision::Skip(SkipReason::AlreadyInjected) {
        return restore(document, kind, template, &meta, decision);
    }
    if let Decision::Skip(_) = decision {
        return Ok(Outcome::untouched(decision, document));
    }
    let pod = Pod {
        meta: &meta,
        spec: &spec,
        workload: workload.as_deref(),
    };
    let (patch, document, mut warnings) = patch(document, kind, template, &pod, config)?;
    warnings.extend(namespace.warning());
    Ok(Outcome {
        decision,
        patch,
        document,
        warnings,
    })
}

/// Gives a pod with a sidecar the label by which its peers know, if a copy was made without.
fn restore(
    document: Value,
    kind: &str,
    template: &[&str],
    meta: &ObjectMeta,
    decision: Decision,
) -> Result<Outcome, InjectError> {
    let said = meta.labels.as_ref();
    if said.is_some_and(|all| all.contains_key(labels::PROXIED)) {
        return Ok(Outcome::untouched(decision, document));
    }
    let (patch, document) = label(document, kind, template)?;
    Ok(Outcome {
        decision,
        patch,
        document,
        warnings: Vec::new(),
    })
}

/// Reads one part of the pod into its typed form; `null` is absent, as everywhere in Kubernetes.
fn part<T: DeserializeOwned>(
    document: &Value,
    kind: &str,
    template: &[&str],
    name: &str,
) -> Result<Option<T>, InjectError> {
    let pod = template.iter().fold(document, |value, key| &value[*key]);
    Option::<T>::deserialize(&pod[name]).map_err(|source| InjectError::Malformed {
        kind: kind.to_owned(),
        field: field(template, name),
        source,
    })
}

fn field(template: &[&str], name: &str) -> String {
    let mut path = template.to_vec();
    path.push(name);
    path.join(".")
}

#[cfg(test)]
mod tests;
