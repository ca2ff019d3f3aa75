//! What an Event goes by. The webhook takes reviews of whoever reaches it, so what one says of a pod and its owner is a hint alone:
//! an Event is written about an owner that the API server has, in words that are made anew of the template of its pods.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ObjectReference, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::Unanswered;
use super::owner::controller;

/// How long the API server may take to say what an owner is.
const ASK: Duration = Duration::from_secs(5);
/// Kinds that the injector's ClusterRole names.
const READABLE: [(&str, &str); 4] = [
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "Job"),
];

/// An owner that the API server has.
#[derive(Debug)]
pub(crate) struct Proven {
    /// What an Event of it is about: the owner, or what made that.
    pub(crate) about: ObjectReference,
    /// A pod as it makes them.
    pub(crate) pod: Value,
}

/// Whether owners of that kind may be read.
pub(crate) fn is_readable(owner: &ObjectReference) -> bool {
    let kind = (owner.api_version.as_deref(), owner.kind.as_deref());
    let (Some(version), Some(kind)) = kind else {
        return false;
    };
    READABLE.contains(&(version, kind))
}

/// The owner with that name and id; nothing where the API server has none, or it is of a kind that is not known here.
pub(crate) async fn proven(
    client: &Client,
    owner: &ObjectReference,
) -> Result<Option<Proven>, Unanswered> {
    let named = [&owner.namespace, &owner.name].map(|it| it.as_deref().unwrap_or_default());
    let [namespace, name] = named;
    let (version, kind) = (owner.api_version.as_deref(), owner.kind.as_deref());
    let client = client.clone();
    let asking = async {
        let found = match (version, kind) {
            (Some("apps/v1"), Some("ReplicaSet")) => {
                let found = Api::<ReplicaSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template?)))
            }
            (Some("apps/v1"), Some("StatefulSet")) => {
                let found = Api::<StatefulSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            (Some("apps/v1"), Some("DaemonSet")) => {
                let found = Api::<DaemonSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            (Some("batch/v1"), Some("Job")) => {
                let found = Api::<Job>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            _ => None,
        };
        Ok::<Option<(ObjectMeta, PodTemplateSpec)>, kube::Error>(found)
    };
    let found = tokio::time::timeout(ASK, asking).await??;
    let is_it = |meta: &ObjectMeta| meta.uid.is_some() && meta.uid == owner.uid;
    let found = found.filter(|(meta, _)| is_it(meta));
    Ok(found.map(|(meta, template)| Proven {
        about: controller(&meta, namespace).unwrap_or_else(|| owner.clone()),
        pod: pod(owner, &template),
    }))
}

/// What a controller makes of a template, as far as words are made of it.
fn pod(owner: &ObjectReference, template: &PodTemplateSpec) -> Value {
    let mut pod = json!({ "metadata": template.metadata, "spec": template.spec });
    if pod["metadata"].is_null() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["namespace"] = json!(owner.namespace);
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": true,
    }]);
    pod
}
