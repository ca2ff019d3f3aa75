//! Policies that cannot be used: whether what they were before is in force, or nothing of them.
//!
//! The control plane says so in the status of its own kind, and keeps what is in force of both kinds as a ConfigSnapshot. Where
//! nobody says it, nothing is claimed.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use crate::cluster::answer;

const KIND: &str = "PeerAuthentication";
/// As the control plane names that of Istio.
const OF_ISTIO: &str = "PeerAuthentication.security.istio.io";
const GROUP: &str = "tulle.dev";
const VERSION: &str = "v1alpha1";
/// How the message of `Accepted` ends if so.
const NOTHING: &str = "nothing of it is in force";
/// What is known of one that has no status of ours.
const NOT_STORED: &str = "no good version of it is stored, so nothing of it is in force, or until the control plane restarts at most";

/// A policy, as it is named in what the control plane says.
#[derive(Debug, PartialEq, Eq)]
struct Policy<'a> {
    of_istio: bool,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Policy<'a> {
    fn read(object: &'a str) -> Option<Self> {
        let (kind, key) = object.split_once(' ')?;
        let (namespace, name) = key.split_once('/')?;
        [KIND, OF_ISTIO].contains(&kind).then_some(Self {
            of_istio: kind == OF_ISTIO,
            namespace,
            name,
        })
    }
}

/// Those of the objects that are policies of which nothing is in force, or only for now, and how it is.
pub(super) async fn without_effect(
    client: &Client,
    broken: BTreeSet<String>,
) -> BTreeMap<String, &'static str> {
    let judged = broken.into_iter().map(|object| async move {
        let policy = Policy::read(&object)?;
        let (nothing, state) = match policy.of_istio {
            true => (is_not_stored(client, &policy).await, NOT_STORED),
            false => (is_told(client, &policy).await, NOTHING),
        };
        nothing.then_some((object, state))
    });
    future::join_all(judged)
        .await
        .into_iter()
        .flatten()
        .collect()
}

fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, kind))
}

async fn is_told(client: &Client, policy: &Policy<'_>) -> bool {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), policy.namespace, &resource(KIND));
    let object = answer("see what a policy is told", api.get_opt(policy.name)).await;
    let object = object.ok().flatten();
    object.is_some_and(|it| says_nothing(it.metadata.generation, &it.data["status"]))
}

/// Whether a status says so of this generation.
fn says_nothing(generation: Option<i64>, status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|it| {
        let message = it["message"].as_str().unwrap_or_default();
        it["type"] == "Accepted"
            && it["status"] == "False"
            && it["reason"] == "Invalid"
            && it["observedGeneration"].as_i64() == generation
            && message.ends_with(NOTHING)
    })
}

async fn is_not_stored(client: &Client, policy: &Policy<'_>) -> bool {
    let kind = resource("ConfigSnapshot");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), policy.namespace, &kind);
    let every = ListParams::default();
    let stored = answer("see what is stored", api.list_metadata(&every)).await;
    stored.is_ok_and(|stored| !stored.iter().any(|it| belongs(it, policy.name)))
}

/// Whether a snapshot is of that policy of Istio's.
fn belongs(snapshot: &PartialObjectMeta<DynamicObject>, name: &str) -> bool {
    let mut owners = snapshot.owner_references().iter();
    owners.any(|it| {
        it.kind == KIND && it.name == name && it.api_version.starts_with("security.istio.io/")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_are_read_as_the_control_plane_names_them() {
        for (object, expected) in [
            ("PeerAuthentication shop/web", Some(false)),
            ("PeerAuthentication.security.istio.io shop/web", Some(true)),
            ("HTTPRoute shop/web", None),
            ("PeerAuthentication", None),
        ] {
            let read = Policy::read(object);
            assert_eq!(read.as_ref().map(|it| it.of_istio), expected, "{object}");
            let named = read.map(|it| (it.namespace, it.name));
            assert_eq!(named, expected.map(|_| ("shop", "web")), "{object}");
        }
    }

    #[test]
    fn nothing_is_in_force_of_a_policy_if_its_status_says_so_of_what_it_is_now() {
        let nothing = "spec: bad; nothing of it is in force";
        for (name, reason, observed, message, expected) in [
            ("never good", "Invalid", 3, nothing, true),
            ("of before", "Invalid", 2, nothing, false),
            (
                "a good one is stored",
                "Invalid",
                3,
                "spec: bad; generation 1 stays in force",
                false,
            ),
            ("another comes first", "Conflicted", 3, nothing, false),
        ] {
            let condition = json!({
                "type": "Accepted", "status": "False", "reason": reason, "observedGeneration": observed, "message": message,
            });
            let status = json!({ "conditions": [condition] });
            assert_eq!(says_nothing(Some(3), &status), expected, "{name}");
        }
        assert!(!says_nothing(Some(1), &Value::Null));
    }

    #[test]
    fn a_snapshot_is_of_the_policy_that_owns_it() {
        for (api, kind, name, expected) in [
            ("security.istio.io/v1", KIND, "web", true),
            ("security.istio.io/v1beta1", KIND, "web", true),
            ("security.istio.io/v1", KIND, "other", false),
            ("tulle.dev/v1alpha1", KIND, "web", false),
            ("gateway.networking.k8s.io/v1", "HTTPRoute", "web", false),
        ] {
            let owner = json!({ "apiVersion": api, "kind": kind, "name": name, "uid": "1" });
            let metadata = json!({ "name": "1-1", "ownerReferences": [owner] });
            let snapshot = serde_json::from_value(json!({ "metadata": metadata }));
            let snapshot = snapshot.expect("metadata");
            assert_eq!(belongs(&snapshot, "web"), expected, "{api} {kind} {name}");
        }
    }
}
