//! The Event that tells the author of a pod that it has no sidecar: what is known of it, and no guess at what was.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use tulle_runtime::names::labels;

use super::Why;
use crate::Decision;
use crate::events::{Words, about, controller};

/// Its reason.
const REASON: &str = "NotInjected";
const NAME: &str = "tulle-not-injected";
/// Labels that decide.
const DECIDING: [&str; 2] = [labels::INJECT, labels::REVISION];

/// What the Event is about as far as the pod says: its controller, or itself if it has none.
pub(super) fn object(pod: &Pod) -> Option<ObjectReference> {
    let meta = &pod.metadata;
    let itself = || {
        Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(meta.name.clone()?),
            namespace: meta.namespace.clone(),
            uid: Some(meta.uid.clone()?),
            ..ObjectReference::default()
        })
    };
    controller(meta, meta.namespace.as_deref()?).or_else(itself)
}

/// The Event about an object, with one of its pods by name.
pub(super) fn not_injected(object: ObjectReference, pod: &Pod, why: &Why, pods: usize) -> Event {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let who = match pods {
        1 => format!("pod {name} runs"),
        _ => format!("pod {name} and {} more run", pods - 1),
    };
    let now = match &why.now {
        Ok(reason) => format!("made now it would be {}", Decision::Inject(*reason)),
        Err(error) => format!("made now it would be refused: {error}"),
    };
    let (of_namespace, of_pod) = (
        said(Some(&why.namespace)),
        said(pod.metadata.labels.as_ref()),
    );
    let message = format!(
        "{who} without a sidecar of the mesh; {now} (labels that decide: of its namespace {of_namespace}, its own {of_pod}). To have one: {}; to \
         have none: label it {}=disabled",
        remedy(&object),
        labels::INJECT,
    );
    let words = Words {
        reason: REASON,
        name: NAME,
        message: &message,
    };
    about(object, words)
}

/// What labels say that decide.
fn said(all: Option<&BTreeMap<String, String>>) -> String {
    let said = |name: &&str| Some(format!("{name}={}", all?.get(*name)?));
    let said: Vec<_> = DECIDING.iter().filter_map(said).collect();
    if said.is_empty() {
        "none".to_owned()
    } else {
        said.join(", ")
    }
}

fn remedy(object: &ObjectReference) -> String {
    let [kind, name] = [&object.kind, &object.name].map(|it| it.as_deref().unwrap_or_default());
    match kind {
        "Pod" => "delete it and make it anew".to_owned(),
        "Deployment" | "StatefulSet" | "DaemonSet" => {
            let kind = kind.to_lowercase();
            format!("run `kubectl rollout restart {kind}/{name}`")
        }
        _ => "delete it, so that it is made anew".to_owned(),
    }
}
