//! The Event that tells the author of a pod that it has no sidecar.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use tulle_runtime::names::{INJECTOR, labels};

/// Its reason.
pub(super) const REASON: &str = "NotInjected";
/// Kinds of owners that are in no namespace, where an Event could not be about them.
const CLUSTER_KINDS: [&str; 1] = ["Node"];

/// What the Event is about: the controller of the pod, or the pod if it has none.
pub(super) fn object(pod: &Pod) -> Option<ObjectReference> {
    let meta = &pod.metadata;
    let owners = meta.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| {
        owner.controller == Some(true) && !CLUSTER_KINDS.contains(&owner.kind.as_str())
    });
    let (api_version, kind, name, uid) = match controllers.next() {
        Some(owner) => (
            owner.api_version.clone(),
            owner.kind.clone(),
            owner.name.clone(),
            owner.uid.clone(),
        ),
        None => (
            "v1".to_owned(),
            "Pod".to_owned(),
            meta.name.clone()?,
            meta.uid.clone()?,
        ),
    };
    Some(ObjectReference {
        api_version: Some(api_version),
        kind: Some(kind),
        name: Some(name),
        namespace: meta.namespace.clone(),
        uid: Some(uid),
        ..ObjectReference::default()
    })
}

/// The Event about an object, with one of its pods by name.
pub(super) fn not_injected(object: ObjectReference, pod: &Pod, why: &str, pods: usize) -> Event {
    let others = match pods - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let kind = object.kind.as_deref().unwrap_or_default();
    let remedy = match kind {
        "Pod" => "delete it and make it anew".to_owned(),
        "ReplicaSet" => "restart its Deployment with `kubectl rollout restart`".to_owned(),
        "StatefulSet" | "DaemonSet" => {
            let name = object.name.as_deref().unwrap_or_default();
            format!(
                "run `kubectl rollout restart {}/{name}`",
                kind.to_lowercase()
            )
        }
        _ => "delete it, so that it is made anew".to_owned(),
    };
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "pod {pod}{others} should have a sidecar of the mesh ({why}) and runs without: it was made before its namespace was \
         labelled, or while the injector was away; {remedy}, or opt out with the label {}=disabled",
        labels::INJECT,
    );
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: object
                .uid
                .as_ref()
                .map(|uid| format!("tulle-not-injected.{uid}")),
            namespace: object.namespace.clone(),
            labels: Some([(labels::PART_OF.to_owned(), labels::PART_OF_TULLE.to_owned())].into()),
            ..ObjectMeta::default()
        },
        involved_object: object,
        action: Some("Inject".to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        message: Some(message),
        reason: Some(REASON.to_owned()),
        reporting_component: Some(INJECTOR.to_owned()),
        source: Some(EventSource {
            component: Some(INJECTOR.to_owned()),
            ..EventSource::default()
        }),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}
