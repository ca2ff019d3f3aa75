//! Which pods the API server asks the injector about.
//!
//! The control plane fills in `caBundle`. System namespaces and our own are never asked about, so that neither the cluster nor
//! we wait for ourselves.

use serde_json::{Value, json};
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

fn webhooks(install: &Install<'_>) -> Vec<Value> {
    let revision = install.values.revision.as_str();
    let enabled = || matches(labels::INJECT, "In", &["enabled"]);
    let not_enabled = || matches(labels::INJECT, "NotIn", &["enabled"]);
    let not_disabled = || matches(labels::INJECT, "NotIn", &["disabled"]);
    let ours = || matches(labels::REVISION, "In", &[revision]);
    let not_ours = || matches(labels::REVISION, "NotIn", &[revision]);
    let unrevised = || json!({ "key": labels::REVISION, "operator": "DoesNotExist" });
    let webhook =
        |name: &str, namespaces: Vec<Value>, pods: Vec<Value>| one(install, name, namespaces, pods);
    let mut webhooks = Vec::new();
    if revision == DEFAULT_REVISION {
        // Who says nothing of revisions is the default one's.
        webhooks.push(webhook(
            "namespace",
            vec![enabled(), unrevised()],
            vec![not_disabled()],
        ));
        webhooks.push(webhook(
            "pod",
            vec![not_enabled(), unrevised()],
            vec![enabled(), unrevised()],
        ));
    }
    webhooks.push(webhook(
        "rev.namespace",
        vec![ours(), not_disabled()],
        vec![not_disabled()],
    ));
    webhooks.push(webhook(
        "rev.pod",
        vec![not_ours()],
        vec![ours(), not_disabled()],
    ));
    webhooks
}

fn matches(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "key": key, "operator": operator, "values": values })
}

fn one(install: &Install<'_>, name: &str, mut namespaces: Vec<Value>, pods: Vec<Value>) -> Value {
    namespaces.push(matches(
        "kubernetes.io/metadata.name",
        "NotIn",
        &SYSTEM_NAMESPACES,
    ));
    json!({
        "name": format!("{name}.injector.tulle.dev"),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
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
