//! Tulle's own Kubernetes API, group `tulle.dev`, version `v1alpha1`.
//!
//! These types are what manifests look like; [`crate::source`] makes room types of them. Unknown fields are refused: a
//! misspelt field of a policy must not silently mean "no policy".

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// Group of Tulle's API.
pub const GROUP: &str = "tulle.dev";
/// Version of it.
pub const VERSION: &str = "v1alpha1";
/// Group of Istio's API, whose PeerAuthentication has the same shape.
pub const ISTIO_GROUP: &str = "security.istio.io";

/// What the inbound side of workloads accepts.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerAuthentication {
    /// Standard metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is demanded, and of whom.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
}

/// Specification of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Pods of the namespace that it applies to. Without selector and targets: all of them; in the control plane's
    /// namespace: the whole mesh.
    pub selector: Option<LabelSelector>,
    /// Services of the namespace whose pods it applies to.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Mode of every port.
    pub mtls: Option<Mtls>,
    /// Modes of single container ports.
    #[serde(default)]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// Labels that a pod must have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// All of them.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// A mode, wrapped as in Istio's API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// The mode; absent or `UNSET`: whatever the wider scope says.
    #[serde(default)]
    pub mode: Mode,
}

/// What is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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
