//! One write: server-side apply of the fields that are ours.
//!
//! See <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tulle_runtime::names::files::CA_BUNDLE_KEY;
use tulle_runtime::names::{CA_CONFIG_MAP, labels};

use super::places::Place;
use crate::election::Leadership;
use crate::platform::{ApiError, CALL, FIELD_MANAGER, within};

/// What became of a write.
#[derive(Debug)]
pub(super) enum Applied {
    /// It is there.
    Done,
    /// There is nothing any more to write it to.
    Gone,
    /// It did not succeed, and why.
    Failed(String),
}

/// Writes the bundle to a place, while this replica may.
pub(super) async fn apply(
    client: &Client,
    leadership: &Leadership,
    place: &Place,
    webhooks: Vec<String>,
    pem: &str,
) -> Applied {
    let limit = CALL.min(leadership.left());
    if limit.is_zero() {
        return Applied::Failed("this replica is not elected any more".to_owned());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let result = match place {
        Place::Namespace(namespace) => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let patch = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": CA_CONFIG_MAP,
                    "labels": { labels::PART_OF: labels::PART_OF_TULLE },
                },
                "data": { CA_BUNDLE_KEY: pem },
            });
            let patch = Patch::Apply(patch);
            let result = within(limit, api.patch(CA_CONFIG_MAP, &params, &patch)).await;
            if result.as_ref().is_err_and(ApiError::is_invalid) {
                // One that was made immutable can only be replaced.
                let params = DeleteParams::default();
                let delete = api.delete(CA_CONFIG_MAP, &params);
                let _ = within(CALL.min(leadership.left()), delete).await;
            }
            result.map(drop)
        }
        Place::Webhooks(name) => {
            let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
            let bundle = ByteString(pem.as_bytes().to_vec());
            let webhooks = webhooks
                .iter()
                .map(|name| json!({ "name": name, "clientConfig": { "caBundle": bundle } }));
            let patch = json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": { "name": name },
                "webhooks": webhooks.collect::<Vec<_>>(),
            });
            let patch = Patch::Apply(patch);
            within(limit, api.patch(name, &params, &patch))
                .await
                .map(drop)
        }
    };
    match result {
        Ok(()) => Applied::Done,
        Err(error) if error.is_missing() || error.is_terminating() => Applied::Gone,
        Err(error) => Applied::Failed(error.full()),
    }
}
