//! Who the parts are, and what each may do: no more than it does.

use serde_json::{Value, json};
use tulle_runtime::names::{CA_CONFIG_MAP, CA_SECRET, CONTROL_NAMESPACE, LEASE};

use super::Install;

const RBAC: &str = "rbac.authorization.k8s.io";
/// On a role that is part of what every control plane may do.
const GATHERED: &str = "rbac.tulle.dev/aggregate-to-control";

/// Accounts, roles and bindings of both parts.
pub(super) fn objects(install: &Install<'_>) -> Vec<Value> {
    let mut objects = Vec::new();
    let control = (
        install.control.as_str(),
        control_cluster(),
        control_own(install),
    );
    let injector = (
        install.injector.as_str(),
        injector_cluster(),
        injector_own(),
    );
    for (name, cluster, own) in [control, injector] {
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": install.metadata(name, true),
        }));
        for (kind, rules) in [("ClusterRole", cluster), ("Role", own)] {
            let namespaced = kind == "Role";
            if rules == json!([]) {
                continue;
            }
            objects.push(json!({
                "apiVersion": format!("{RBAC}/v1"),
                "kind": kind,
                "metadata": install.metadata(name, namespaced),
                "rules": rules,
            }));
            objects.push(json!({
                "apiVersion": format!("{RBAC}/v1"),
                "kind": format!("{kind}Binding"),
                "metadata": install.metadata(name, namespaced),
                "roleRef": { "apiGroup": RBAC, "kind": kind, "name": name },
                "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": CONTROL_NAMESPACE }],
            }));
        }
    }
    objects.extend(webhooks(install));
    objects
}

/// What the control plane reads and writes everywhere.
fn control_cluster() -> Value {
    json!([
        {
            "apiGroups": [""],
            "resources": ["namespaces", "nodes", "pods", "serviceaccounts", "services"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["gateway.networking.k8s.io"],
            "resources": ["grpcroutes", "httproutes", "tcproutes", "tlsroutes"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["gateway.networking.k8s.io"],
            "resources": ["grpcroutes/status", "httproutes/status", "tcproutes/status", "tlsroutes/status"],
            "verbs": ["patch"],
        },
        {
            "apiGroups": ["security.istio.io", "tulle.dev"],
            "resources": ["peerauthentications"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["tulle.dev"],
            "resources": ["peerauthentications/status"],
            "verbs": ["patch"],
        },
        // Good versions of what an edit has broken. Each is called for its object.
        {
            "apiGroups": ["tulle.dev"],
            "resources": ["configsnapshots"],
            "verbs": ["get", "list", "watch", "create", "delete"],
        },
        {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["tokenreviews"],
            "verbs": ["create"],
        },
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [CA_CONFIG_MAP],
            "verbs": ["get", "list", "watch", "create", "patch", "delete"],
        },
        // They tell a namespace that it could not be written.
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"] },
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "verbs": ["get", "list", "watch"],
        },
    ])
}

/// Who may keep the roots of webhooks true: whichever control plane is elected, of whatever revision, those of all revisions and
/// no others'. So each revision brings the right to its own, and Kubernetes gathers them for each control plane.
fn webhooks(install: &Install<'_>) -> [Value; 3] {
    let version = format!("{RBAC}/v1");
    let all = format!("{}-webhooks", install.control);
    let mut own = install.metadata(&format!("{}-webhook", install.injector), false);
    own["labels"][GATHERED] = json!("true");
    [
        json!({
            "apiVersion": version,
            "kind": "ClusterRole",
            "metadata": install.metadata(&all, false),
            "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { GATHERED: "true" } }] },
        }),
        json!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": install.metadata(&all, false),
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": all },
            "subjects": [{ "kind": "ServiceAccount", "name": install.control, "namespace": CONTROL_NAMESPACE }],
        }),
        json!({
            "apiVersion": version,
            "kind": "ClusterRole",
            "metadata": own,
            "rules": [{
                "apiGroups": ["admissionregistration.k8s.io"],
                "resources": ["mutatingwebhookconfigurations"],
                "resourceNames": [install.injector],
                "verbs": ["patch"],
            }],
        }),
    ]
}

/// What it reads and writes beside itself.
fn control_own(install: &Install<'_>) -> Value {
    let secret = |name: &str, verbs: &[&str]| json!({ "apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": verbs });
    let mut rules = vec![
        secret(CA_SECRET, &["get", "list", "watch", "update"]),
        // What is created has no name yet that a rule could name.
        json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["create"] }),
        json!({
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [LEASE],
            "verbs": ["get", "update"],
        }),
        json!({ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] }),
    ];
    let issuer = install.values.control.ca_issuer_secret.as_str();
    if !issuer.is_empty() {
        rules.push(secret(issuer, &["get", "list", "watch"]));
    }
    json!(rules)
}

/// What the injector reads everywhere, and the events that it writes.
fn injector_cluster() -> Value {
    json!([
        { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"] },
        // What a review says of them is seen for oneself, and whose they are in turn: an Event is about a Deployment or a CronJob.
        { "apiGroups": ["apps"], "resources": ["daemonsets", "replicasets", "statefulsets"], "verbs": ["get"] },
        { "apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"] },
    ])
}

fn injector_own() -> Value {
    json!([])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::values::{Layered, Profile};

    #[test]
    fn nobody_may_write_a_webhook_that_is_not_of_the_mesh() {
        let values = Layered::new(Profile::Default).set("revision=next");
        let values = values.and_then(Layered::values).expect("a good value");
        let objects = objects(&Install::new(&values));
        let rules = objects
            .iter()
            .flat_map(|it| it["rules"].as_array().into_iter().flatten());
        let writes = |rule: &&Value| {
            let reads = ["get", "list", "watch"].map(Value::from);
            let verbs = rule["verbs"].as_array().into_iter().flatten();
            rule["resources"] == json!(["mutatingwebhookconfigurations"])
                && !verbs.into_iter().all(|verb| reads.contains(verb))
        };
        let writing: Vec<_> = rules.filter(writes).collect();
        assert_eq!(writing.len(), 1, "{writing:?}");
        assert_eq!(writing[0]["resourceNames"], json!(["tulle-injector-next"]));
    }
}
