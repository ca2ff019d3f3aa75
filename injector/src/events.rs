//! Events: what the author of a pod finds at the workload that the pod is of.
//!
//! An Event is about the top of the pod's owners, as far as Kubernetes' own controllers go: the Deployment of a ReplicaSet, the
//! CronJob of a Job. `kubectl describe` finds Events by the id of their object, so owners are asked for theirs. An Event has one name an
//! object, so that replicas of the injector write the same one.
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>

mod evidence;
mod owner;
mod teller;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tulle_runtime::names::{INJECTOR, labels};

use crate::review::tidy;

pub(crate) use owner::{controller, top};
pub(crate) use teller::{Complaint, Metrics, Teller};

/// How long the API server may take for one.
const WRITE: Duration = Duration::from_secs(5);
/// How long until an Event is written again, before the API server forgets it.
pub(crate) const AGAIN: Duration = Duration::from_secs(45 * 60);
/// Longest message that Kubernetes' newer API of Events takes.
pub(crate) const MAX_MESSAGE: usize = 1024;

/// Why the API server was asked in vain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the API server refused")]
    Refused(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Late(#[from] tokio::time::error::Elapsed),
}

/// What an Event says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub(crate) reason: &'static str,
    /// What its name begins with, before the id of its object.
    pub(crate) name: &'static str,
    pub(crate) message: &'a str,
}

/// An Event about an object.
pub(crate) fn about(object: ObjectReference, words: Words<'_>) -> Event {
    let now = Time(Timestamp::now());
    let uid = object.uid.as_ref();
    Event {
        metadata: ObjectMeta {
            name: uid.map(|uid| format!("{}.{uid}", words.name)),
            namespace: object.namespace.clone(),
            labels: Some([(labels::PART_OF.to_owned(), labels::PART_OF_TULLE.to_owned())].into()),
            ..ObjectMeta::default()
        },
        involved_object: object,
        action: Some("Inject".to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        message: Some(tidy(words.message, MAX_MESSAGE)),
        reason: Some(words.reason.to_owned()),
        reporting_component: Some(INJECTOR.to_owned()),
        source: Some(EventSource {
            component: Some(INJECTOR.to_owned()),
            ..EventSource::default()
        }),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// Writes an Event, or the newer words of one that is there.
pub(crate) async fn write(client: &Client, event: &Event) -> Result<(), Unanswered> {
    let meta = &event.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    // The other replicas are the same manager.
    let params = PatchParams::apply(INJECTOR).force();
    tokio::time::timeout(WRITE, api.patch(name, &params, &Patch::Apply(event))).await??;
    Ok(())
}
