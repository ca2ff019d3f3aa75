//! The Kubernetes API types of Tulle: group `tulle.dev`, version `v1alpha1`.
//!
//! These types are what manifests look like; [`crate::source`] makes room types of them. Unknown fields are refused: a
//! misspelt field of a policy must not silently mean "no policy". The CustomResourceDefinitions come from them, too, so that
//! API servers say the same.
#![expect(
    unreachable_pub,
    reason = "what derives the schema repeats the types inside of functions"
)]

mod snapshot;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use snapshot::{ConfigSnapshot, ConfigSnapshotSpec};

/// Group of Tulle's API.
pub const GROUP: &str = "tulle.dev";
/// Version of it.
pub const VERSION: &str = "v1alpha1";
/// Group of Istio's API, whose PeerAuthentication has the same shape.
pub const ISTIO_GROUP: &str = "security.istio.io";

/// What the inbound side of workloads accepts: mTLS only, or plaintext, too. Of several policies the one with the narrowest
/// scope counts: a port, a workload, a namespace, the mesh.
#[derive(Clone, Debug, Default, PartialEq, CustomResource, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "tulle.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    plural = "peerauthentications",
    namespaced,
    status = "PeerAuthenticationStatus",
    category = "tulle",
    label("app.kubernetes.io/part-of", "tulle"),
    doc = "What the inbound side of workloads accepts: mTLS only, or plaintext, too. In the namespace of the control plane \
           it is for the whole mesh.",
    derive = "PartialEq",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mtls.mode",
        description = "What is accepted at every port"
    ),
    printcolumn = r#"{
        "name": "Accepted",
        "type": "string",
        "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status",
        "description": "Whether it counts"
    }"#,
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(
    validation = Rule::new(
        "!(has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0 \
         && has(self.targetRefs) && size(self.targetRefs) > 0)"
    ).message("targetRefs excludes selector: use one of the two"),
    validation = Rule::new(
        "!has(self.portLevelMtls) || size(self.portLevelMtls) == 0 \
         || (has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) \
         || (has(self.targetRefs) && size(self.targetRefs) > 0)"
    ).message("portLevelMtls names container ports, which only a workload has: add selector or targetRefs"),
    validation = Rule::new(
        "!has(self.portLevelMtls) || self.portLevelMtls.all(port, port.matches('^[1-9][0-9]{0,4}$') && int(port) <= 65535)"
    ).message("portLevelMtls is by container port: use 1 to 65535")
)]
pub struct PeerAuthenticationSpec {
    /// Pods of the namespace that it applies to. Without selector and targets: all of them; in the control plane's
    /// namespace: the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Services of the namespace whose pods it applies to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Mode of every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Modes of single container ports, by their numbers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// What becomes of a policy, written by the control plane.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationStatus {
    /// `Accepted`: whether it counts. `ResolvedRefs`: whether what it names is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One thing that holds, or does not.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[schemars(length(min = 1, max = 316))]
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(min = 1, max = 16))]
    pub status: String,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// The generation of the policy that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When its status became another.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
}

/// Labels that a pod must have.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// All of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.kind == 'Service' && (!has(self.group) || self.group == '')")
        .message("only Services can be named: use kind Service with group \"\"")
)]
pub struct TargetRef {
    /// API group; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A mode, wrapped as in Istio's API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// What is accepted: `STRICT` is only mTLS, `PERMISSIVE` mTLS and plaintext, `DISABLE` the same, and peers send plaintext.
    /// Absent or `UNSET`: whatever the wider scope says.
    #[serde(default, skip_serializing_if = "Mode::is_unset")]
    pub mode: Mode,
}

/// What is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Whatever the wider scope says.
    #[default]
    Unset,
    /// Only mTLS.
    Strict,
    /// mTLS and plaintext.
    Permissive,
    /// mTLS and plaintext, and peers send plaintext.
    Disable,
}

impl Mode {
    fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
}

#[cfg(test)]
mod tests;
