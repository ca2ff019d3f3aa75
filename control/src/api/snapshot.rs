//! What the control plane stores of objects that an edit has broken.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A version of the object that it belongs to, before an edit that cannot be used.
#[derive(Clone, Debug, PartialEq, CustomResource, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "tulle.dev",
    version = "v1alpha1",
    kind = "ConfigSnapshot",
    plural = "configsnapshots",
    namespaced,
    label("app.kubernetes.io/part-of", "tulle"),
    doc = "What stays in force of a route or a policy that an edit has broken: its last good version. Control planes write it, and \
           delete it once the object can be used again.",
    derive = "PartialEq",
    printcolumn(
        name = "Kind",
        type_ = "string",
        json_path = ".metadata.ownerReferences[0].kind"
    ),
    printcolumn = r#"{ "name": "Object", "type": "string", "jsonPath": ".metadata.ownerReferences[0].name" }"#,
    printcolumn(name = "Generation", type_ = "integer", json_path = ".spec.generation"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct ConfigSnapshotSpec {
    /// The `metadata.generation` that its object had.
    #[schemars(range(min = 1))]
    pub generation: i64,
    /// The spec that it had, as it was written.
    #[schemars(schema_with = "anything")]
    pub content: Value,
}

/// An object that the API server keeps as it is.
fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
