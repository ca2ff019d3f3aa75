//! The Event that tells the author of a pod that it has no sidecar: what is known of it, and no guess at what was.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_runtime::names::labels;

use super::Lacking;
use crate::events::{MAX_MESSAGE, Words, about, controller};
use crate::review::tidy;
use crate::{Decision, InjectError, InjectReason, Namespace};

/// Its reason.
const REASON: &str = "NotInjected";
const NAME: &str = "tulle-not-injected";
/// Labels that decide.
const DECIDING: [&str; 2] = [labels::INJECT, labels::REVISION];

/// What the Event is about as far as the pod says: its controller, or itself if it has none.
pub(super) fn object(meta: &ObjectMeta) -> Option<ObjectReference> {
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

/// Why a pod should have a sidecar: the decision that would be made now, or why none could be, and the labels that decide.
pub(super) fn why(
    now: &Result<InjectReason, InjectError>,
    namespace: &Namespace,
    pod: &ObjectMeta,
) -> String {
    let now = match now {
        Ok(reason) => Decision::Inject(*reason).to_string(),
        Err(error) => format!("refused: {error}"),
    };
    let (of_namespace, of_pod) = (said(Some(&namespace.labels)), said(pod.labels.as_ref()));
    let words = format!(
        "made now it would be {now} (labels that decide: of its namespace {of_namespace}, its own {of_pod})"
    );
    tidy(&words, MAX_MESSAGE)
}

/// The Event about an object, with one of its pods by name.
pub(super) fn not_injected(lacking: &Lacking) -> Event {
    let (pod, object) = (&lacking.pod, &lacking.object);
    let who = match lacking.pods {
        1 => format!("pod {pod} runs"),
        pods => format!("pod {pod} and {} more run", pods - 1),
    };
    let message = format!(
        "{who} without a sidecar of the mesh; {}. To have one: {}; to have none: label it {}=disabled",
        lacking.why,
        remedy(object),
        labels::INJECT,
    );
    let words = Words {
        reason: REASON,
        name: NAME,
        message: &message,
    };
    about(object.clone(), words)
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
