//! Whose a pod is.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};

use super::Unanswered;

/// How long the API server may take to say what an object is.
const ASK: Duration = Duration::from_secs(5);
/// Kinds of owners that are in no namespace, where an Event could not be about them.
const CLUSTER_KINDS: [&str; 1] = ["Node"];

/// The controller of an object of a namespace, if it has one.
pub(crate) fn controller(meta: &ObjectMeta, namespace: &str) -> Option<ObjectReference> {
    let mut owners = meta.owner_references.iter().flatten();
    let owner = owners.find(|owner| {
        owner.controller == Some(true) && !CLUSTER_KINDS.contains(&owner.kind.as_str())
    })?;
    Some(ObjectReference {
        api_version: Some(owner.api_version.clone()),
        kind: Some(owner.kind.clone()),
        name: Some(owner.name.clone()),
        namespace: Some(namespace.to_owned()),
        uid: Some(owner.uid.clone()),
        ..ObjectReference::default()
    })
}

/// The controller of a controller, where that is made by another; itself where it is not, or nobody says so.
pub(crate) async fn top(client: &Client, object: ObjectReference) -> ObjectReference {
    match above(client, &object).await {
        Ok(above) => above.unwrap_or(object),
        Err(error) => {
            let error = tulle_runtime::causes::chain(&error);
            tracing::debug!(
                error,
                kind = object.kind,
                name = object.name,
                "whose an object is, is not known"
            );
            object
        }
    }
}

async fn above(
    client: &Client,
    object: &ObjectReference,
) -> Result<Option<ObjectReference>, Unanswered> {
    let named = [&object.namespace, &object.name].map(|it| it.as_deref().unwrap_or_default());
    let [namespace, name] = named;
    let (version, kind) = (object.api_version.as_deref(), object.kind.as_deref());
    let client = client.clone();
    let asking = async {
        match (version, kind) {
            (Some("apps/v1"), Some("ReplicaSet")) => {
                let api = Api::<ReplicaSet>::namespaced(client, namespace);
                Ok::<_, kube::Error>(api.get_metadata_opt(name).await?.map(|it| it.metadata))
            }
            (Some("batch/v1"), Some("Job")) => {
                let api = Api::<Job>::namespaced(client, namespace);
                Ok(api.get_metadata_opt(name).await?.map(|it| it.metadata))
            }
            _ => Ok(None),
        }
    };
    let meta = tokio::time::timeout(ASK, asking).await??;
    // Another of the same name is none of the pod's.
    let meta = meta.filter(|meta| meta.uid == object.uid);
    Ok(meta.and_then(|meta| controller(&meta, namespace)))
}
