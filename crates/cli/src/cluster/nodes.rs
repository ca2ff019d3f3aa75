//! Nodes that are away: whoever asks a pod of one waits in vain, for the way to it is by its kubelet.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::Api;

use super::answer;

/// Why the node of a pod is not ready, if it is not, and that is known.
pub(super) async fn of_pod(
    client: &Client,
    namespace: &str,
    pod: &str,
) -> Option<(String, String)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = answer("find the pod", api.get_opt(pod)).await.ok()??;
    let node = pod.spec?.node_name?;
    let why = away(client, &node).await?;
    Some((node, why))
}

/// Why a node is not ready, if it is not, and that is known.
pub(super) async fn away(client: &Client, node: &str) -> Option<String> {
    let api: Api<Node> = Api::all(client.clone());
    let node = answer("find the node", api.get_opt(node)).await.ok()??;
    unready(&node)
}

/// Since when a node is not ready, and the word for it; nothing of one that is, or says nothing.
pub(super) fn unready(node: &Node) -> Option<String> {
    let mut conditions = node.status.iter().flat_map(|it| &it.conditions).flatten();
    let ready = conditions.find(|it| it.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    let since = ready.last_transition_time.as_ref();
    let since = since.map_or_else(String::new, |it| format!("since {}, ", it.0));
    let reason = ready.reason.as_deref().unwrap_or("without a reason");
    Some(format!("{since}{reason}"))
}
