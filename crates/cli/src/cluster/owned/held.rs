//! Why something that is being deleted stays for now, though nobody refuses to let it go.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use crate::cluster::answer;
use crate::cluster::check::some;

/// Why a namespace stays through no fault of what is in it: Kubernetes does not know all kinds that may be in it.
pub(super) fn by_kinds(namespace: &Value) -> Option<String> {
    let conditions = namespace["status"]["conditions"].as_array()?;
    let failed = conditions.iter().find(|condition| {
        condition["type"] == "NamespaceDeletionDiscoveryFailure" && condition["status"] == "True"
    })?;
    let message = failed["message"].as_str().unwrap_or_default();
    Some(format!(
        "it goes once the API server knows all kinds again: {message}"
    ))
}

/// The labels of a Deployment's pods.
pub(super) fn selector(deployment: &Value) -> Option<BTreeMap<String, String>> {
    serde_json::from_value(deployment["spec"]["selector"]["matchLabels"].clone()).ok()
}

/// Why pods stay that were told to go: all that are left are on nodes that are not ready, where nobody can end them. `None`
/// also if it cannot be told.
pub(super) async fn by_nodes(
    client: &Client,
    namespace: &str,
    selector: &BTreeMap<String, String>,
) -> Option<String> {
    let pairs: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = ListParams::default().labels(&pairs.join(","));
    let pods = answer("see what is left", pods.list(&list))
        .await
        .ok()?
        .items;
    let mut names = BTreeSet::new();
    for pod in &pods {
        pod.metadata.deletion_timestamp.as_ref()?;
        names.insert(pod.spec.as_ref()?.node_name.as_deref()?);
    }
    let nodes: Api<Node> = Api::all(client.clone());
    for name in &names {
        let node = answer("see how its node is", nodes.get_opt(name)).await;
        if is_ready(&node.ok()??) {
            return None;
        }
    }
    let pods: Vec<_> = pods.iter().map(Pod::name_any).collect();
    stranded(&pods, &names.into_iter().collect::<Vec<_>>())
}

fn stranded(pods: &[String], nodes: &[&str]) -> Option<String> {
    let first = nodes.first()?;
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    Some(format!(
        "it goes with its pods {}, which nobody can end while node {} is not ready: once it is back, or was taken out (kubectl \
         delete node {first})",
        some(&pods),
        some(nodes)
    ))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|it| &it.conditions);
    let mut conditions = conditions.flatten();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_is_held_by_those_who_do_not_say_what_is_in_it() {
        let namespace = |kind: &str, status: &str| {
            let condition = json!({ "type": kind, "status": status, "message": "why" });
            json!({ "status": { "phase": "Terminating", "conditions": [condition] } })
        };
        let failure = "NamespaceDeletionDiscoveryFailure";
        for (object, expected) in [
            (namespace(failure, "True"), Some("why")),
            (namespace(failure, "False"), None),
            (namespace("NamespaceContentRemaining", "True"), None),
            (json!({ "status": { "phase": "Terminating" } }), None),
            (json!({}), None),
        ] {
            let said = by_kinds(&object);
            assert_eq!(said.is_some(), expected.is_some(), "{object}");
            assert!(
                said.unwrap_or_default()
                    .contains(expected.unwrap_or_default())
            );
        }
    }

    #[test]
    fn what_nobody_can_end_is_named_with_its_node() {
        assert_eq!(stranded(&[], &[]), None);
        let said = stranded(&["web-1".to_owned()], &["far"]).expect("there are pods");
        assert!(
            said.contains("web-1") && said.contains("node far"),
            "{said}"
        );
        let node = |status: &str| -> Node {
            let condition = json!({ "type": "Ready", "status": status });
            serde_json::from_value(
                json!({ "metadata": {}, "status": { "conditions": [condition] } }),
            )
            .expect("a node")
        };
        assert!(is_ready(&node("True")));
        for status in ["False", "Unknown"] {
            assert!(!is_ready(&node(status)), "{status}");
        }
    }

    #[test]
    fn the_pods_of_a_deployment_are_found_by_its_selector() {
        let deployment = json!({ "spec": { "selector": { "matchLabels": { "app": "web" } } } });
        let expected = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        assert_eq!(selector(&deployment), Some(expected));
        assert_eq!(selector(&json!({})), None);
    }
}
