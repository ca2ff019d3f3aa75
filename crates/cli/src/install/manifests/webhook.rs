//! Which pods the API server asks the injector about.
//!
//! The control plane fills in `caBundle`. System namespaces and our own are never asked about, so that neither the cluster nor
//! we wait for ourselves.

use serde_json::{Map, Value, json};
use tulle_runtime::names::{CONTROL_NAMESPACE, DEFAULT_REVISION, SYSTEM_NAMESPACES, labels};

use super::Install;

pub(super) fn configuration(install: &Install<'_>) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": install.metadata(&install.injector, false),
        "webhooks": webhooks(install),
    })
}

/// One for each way in which labels ask for this revision's injector, as it decides: no pod is asked about twice, and none that
/// would get a sidecar is left out.
fn webhooks(install: &Install<'_>) -> Vec<Value> {
    let revision = install.values.revision.as_str();
    let inject = |operator, word| matches(labels::INJECT, operator, &[word]);
    let ours = || matches(labels::REVISION, "In", &[revision]);
    // A pod that names another revision is asked about, too, and left to that: who names none can say so by an empty value.
    let not_ours = || matches(labels::REVISION, "NotIn", &[revision]);
    let exists = json!({ "key": labels::INJECT, "operator": "Exists" });
    // A word that is none is refused, so that its author hears of it.
    let any = || vec![inject("NotIn", "disabled"), not_ours()];
    let asking = || vec![exists.clone(), inject("NotIn", "disabled"), not_ours()];
    // Those that say nothing themselves: of the others one of the others asks.
    let selectors = &install.values.injector.always_inject;
    let always: Vec<_> = selectors
        .iter()
        .map(|selector| {
            let mut pods = requirements(selector);
            pods.push(json!({ "key": labels::INJECT, "operator": "DoesNotExist" }));
            pods.push(not_ours());
            pods
        })
        .collect();
    let mut webhooks = Vec::new();
    let mut webhook = |name: &str, namespaces: &[Value], pods: Vec<Value>| {
        webhooks.push(one(install, name, namespaces, pods));
    };
    // First, because the API server shows each webhook what those before it have made of a pod: once injected, it names its
    // revision, and this one would be asked again. All others are not for such pods.
    let pods = vec![ours(), inject("NotIn", "disabled")];
    webhook("rev.pod", &[], pods);
    if revision == DEFAULT_REVISION {
        // Who says nothing of revisions is the default one's.
        let absent = json!({ "key": labels::REVISION, "operator": "DoesNotExist" });
        let empty = matches(labels::REVISION, "In", &[""]);
        for (prefix, unrevised) in [("", absent), ("empty.", empty)] {
            let enabled = [inject("In", "enabled"), unrevised.clone()];
            webhook(&format!("{prefix}namespace"), &enabled, any());
            let others = [inject("NotIn", "enabled"), unrevised];
            webhook(&format!("{prefix}pod"), &others, asking());
            for (index, pods) in always.iter().enumerate() {
                webhook(&format!("{prefix}always-{index}"), &others, pods.clone());
            }
        }
    }
    let asks = [ours(), inject("NotIn", "disabled")];
    webhook("rev.namespace", &asks, any());
    let asks_not = [ours(), inject("In", "disabled")];
    webhook("rev.disabled", &asks_not, asking());
    for (index, pods) in always.into_iter().enumerate() {
        webhook(&format!("rev.always-{index}"), &asks_not, pods);
    }
    webhooks
}

/// A label selector, as requirements alone.
fn requirements(selector: &Map<String, Value>) -> Vec<Value> {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    let equal = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| json!({ "key": key, "operator": "In", "values": [value] }));
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    equal
        .chain(expressions.into_iter().flatten().cloned())
        .collect()
}

fn matches(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "key": key, "operator": operator, "values": values })
}

fn one(install: &Install<'_>, name: &str, namespaces: &[Value], pods: Vec<Value>) -> Value {
    let mut namespaces = namespaces.to_vec();
    namespaces.push(matches(
        "kubernetes.io/metadata.name",
        "NotIn",
        &SYSTEM_NAMESPACES,
    ));
    json!({
        "name": format!("{name}.injector.tulle.dev"),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "NoneOnDryRun",
        "failurePolicy": install.values.injector.failure_policy,
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "Never",
        "timeoutSeconds": install.values.injector.timeout_seconds,
        "clientConfig": { "service": {
            "name": install.injector,
            "namespace": CONTROL_NAMESPACE,
            "path": "/inject",
            "port": 443,
        } },
        "rules": [{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }],
        "namespaceSelector": { "matchExpressions": namespaces },
        "objectSelector": { "matchExpressions": pods },
    })
}

#[cfg(test)]
mod tests;
