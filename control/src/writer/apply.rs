//! One write. The ConfigMap is ours: server-side apply. A webhook configuration is the installation's, and what is written to it
//! must not stay ours: an entry with a field that somebody else manages cannot be taken out by server-side apply; it would be
//! left with that field alone, which is not valid, and so no upgrade could take an entry out.
//!
//! See <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
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
    Failed {
        /// What the API server said, or why it did not.
        error: String,
        /// This replica has no permission.
        forbidden: bool,
    },
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
        return Applied::Failed {
            error: "this replica is not elected any more".to_owned(),
            forbidden: false,
        };
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
        Place::Webhooks(name) => fill_in(client, limit, name, &webhooks, pem).await,
    };
    match result {
        Ok(()) => Applied::Done,
        Err(error) if error.is_missing() || error.is_terminating() => Applied::Gone,
        Err(error) => Applied::Failed {
            error: error.full(),
            forbidden: error.is_forbidden(),
        },
    }
}

/// Writes the bundle to the webhooks of a configuration, and gives up the management of what was written.
async fn fill_in(
    client: &Client,
    limit: Duration,
    name: &str,
    webhooks: &[String],
    pem: &str,
) -> Result<(), ApiError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let bundle = ByteString(pem.as_bytes().to_vec());
    let webhooks = webhooks
        .iter()
        .map(|name| json!({ "name": name, "clientConfig": { "caBundle": bundle } }));
    // Webhooks are merged by name. One that is gone by now would come without what it must have, and is refused.
    let patch = json!({ "webhooks": webhooks.collect::<Vec<_>>() });
    let both = async {
        let written = api.patch(name, &params, &Patch::Strategic(patch)).await?;
        let Some(managed) = released(&written.metadata) else {
            return Ok(());
        };
        let patch = json!({ "metadata": {
            "resourceVersion": written.metadata.resource_version,
            "managedFields": managed,
        } });
        api.patch(name, &params, &Patch::Merge(patch)).await?;
        Ok(())
    };
    within(limit, both).await
}

/// Who else manages fields of an object, if we do.
pub(super) fn released(metadata: &ObjectMeta) -> Option<Vec<ManagedFieldsEntry>> {
    let managed = metadata.managed_fields.as_ref()?;
    let is_ours = |it: &&ManagedFieldsEntry| it.manager.as_deref() == Some(FIELD_MANAGER);
    managed.iter().find(is_ours)?;
    let others = managed.iter().filter(|it| !is_ours(it)).cloned();
    Some(others.collect())
}
