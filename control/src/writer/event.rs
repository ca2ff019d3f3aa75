//! The Event that tells a namespace that it has not got the trust bundle.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tulle_runtime::names::{CA_CONFIG_MAP, labels};

use super::places::Place;
use crate::election::Leadership;
use crate::platform::{CALL, FIELD_MANAGER, within};

/// Its reason.
const REASON: &str = "TrustBundleNotWritten";
/// Longest message of an Event.
const MESSAGE: usize = 1024;

/// Tells of a ConfigMap that could not be written; it need not exist for that.
pub(super) async fn tell(client: &Client, leadership: &Leadership, place: &Place, error: &str) {
    let Place::Namespace(namespace) = place else {
        return;
    };
    let mut message = format!(
        "the mesh cannot write the roots that its pods here trust: {error}; make room in the namespace's quota, or except \
         ConfigMap {CA_CONFIG_MAP} from its policies: new pods do not start without it, and after a rotation the old ones \
         cannot talk to those of other namespaces"
    );
    message.truncate(message.floor_char_boundary(MESSAGE));
    let now = Time(Timestamp::now());
    let name = format!("{CA_CONFIG_MAP}.not-written");
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.to_string()),
            labels: Some([(labels::PART_OF.to_owned(), labels::PART_OF_TULLE.to_owned())].into()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: Some(CA_CONFIG_MAP.to_owned()),
            namespace: Some(namespace.to_string()),
            ..ObjectReference::default()
        },
        action: Some("WriteTrustBundle".to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        message: Some(message),
        reason: Some(REASON.to_owned()),
        reporting_component: Some(FIELD_MANAGER.to_owned()),
        source: Some(EventSource {
            component: Some(FIELD_MANAGER.to_owned()),
            ..EventSource::default()
        }),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&event);
    let written = api.patch(&name, &params, &patch);
    if let Err(error) = within(CALL.min(leadership.left()), written).await {
        // The log and the metrics say it as well.
        tracing::debug!(%place, error = error.full(), "no Event tells of it");
    }
}
