//! How many replicas there are when autoscaling takes over.
//!
//! An applied field that is applied no more goes, unless somebody else owns it, too; for `replicas` that means one, until
//! autoscaling acts. So where we do not say how many there are, what there is has to have another owner first.

use serde_json::{Value, json};

/// Who owns what nobody else says.
pub(super) const KEEPER: &str = "tulle-keeps-replicas";

/// How many replicas there are that would not stay if `object` were applied by `manager`.
pub(super) fn at_stake(object: &Value, live: &Value, manager: &str) -> Option<u64> {
    if object["kind"] != "Deployment" || !object["spec"]["replicas"].is_null() {
        return None;
    }
    let owners = live["metadata"]["managedFields"].as_array()?;
    let owns = |owner: &&Value| !owner["fieldsV1"]["f:spec"]["f:replicas"].is_null();
    let mut owners = owners.iter().filter(owns).peekable();
    owners.peek()?;
    let ours = |owner: &Value| owner["manager"] == manager && owner["operation"] == "Apply";
    owners
        .all(ours)
        .then(|| live["spec"]["replicas"].as_u64())
        .flatten()
}

/// What has to be applied by [`KEEPER`] first.
pub(super) fn kept(object: &Value, replicas: u64) -> Value {
    json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": { "name": object["metadata"]["name"], "namespace": object["metadata"]["namespace"] },
        "spec": { "replicas": replicas },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_at_stake_where_nobody_else_says_how_many_there_are() {
        let wanted =
            |kind: &str, replicas: Value| json!({ "kind": kind, "spec": { "replicas": replicas } });
        let owner = |manager: &str, operation: &str, field: &str| json!({ "manager": manager, "operation": operation, "fieldsV1": { "f:spec": { field: {} } } });
        let ours = || owner("kubectl", "Apply", "f:replicas");
        let live = |owners: Vec<Value>| json!({ "metadata": { "managedFields": owners }, "spec": { "replicas": 2 } });
        for (object, live, expected) in [
            (
                wanted("Deployment", Value::Null),
                live(vec![ours()]),
                Some(2),
            ),
            (wanted("Deployment", json!(3)), live(vec![ours()]), None),
            (wanted("Service", Value::Null), live(vec![ours()]), None),
            // Autoscaling has acted, or somebody has scaled it.
            (
                wanted("Deployment", Value::Null),
                live(vec![owner(
                    "kube-controller-manager",
                    "Update",
                    "f:replicas",
                )]),
                None,
            ),
            (
                wanted("Deployment", Value::Null),
                live(vec![ours(), owner(KEEPER, "Apply", "f:replicas")]),
                None,
            ),
            (
                wanted("Deployment", Value::Null),
                live(vec![owner("kubectl", "Update", "f:replicas")]),
                None,
            ),
            (
                wanted("Deployment", Value::Null),
                live(vec![ours(), owner("kubectl-scale", "Update", "f:paused")]),
                Some(2),
            ),
            (wanted("Deployment", Value::Null), live(vec![]), None),
            (wanted("Deployment", Value::Null), Value::Null, None),
        ] {
            assert_eq!(
                at_stake(&object, &live, "kubectl"),
                expected,
                "{object} {live}"
            );
        }
    }
}
