//! Why a pod is refused: each error names the thing, its value and the remedy.

use serde_json::Value;
use tulle_runtime::names::containers;

/// A pod that cannot be injected as it is.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The document does not have the shape of its kind.
    #[error(
        "{field} of {kind} is not valid: correct it, or check it with `kubectl apply --dry-run=server`"
    )]
    Malformed {
        /// Kind of the document.
        kind: String,
        /// Path of the part that could not be read.
        field: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The document lacks a part that its kind always has.
    #[error("{kind} has no {field}: add it")]
    Missing {
        /// Kind of the document.
        kind: String,
        /// Path of the absent part.
        field: String,
    },
    /// A part of the document that our types do not look at is in the way of the patch.
    #[error("the patch does not fit {kind}: check it with `kubectl apply --dry-run=server`")]
    Patch {
        /// Kind of the document.
        kind: String,
        /// Which operation failed, and how.
        #[source]
        source: json_patch::PatchError,
    },
    /// An annotation that tunes the sidecar cannot be read.
    #[error("annotation {name} has the value {value:?}: {problem}; {remedy}")]
    Annotation {
        /// Name of the annotation.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// An annotation sets a limit to what the sidecar could not read.
    #[error("annotation {name} has the value {value:?}: {problem}")]
    Limit {
        /// Name of the annotation.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// An annotation sets a limit that does not exist.
    #[error(
        "annotation {name} names no limit of the sidecar: after the slash comes one of {known}"
    )]
    UnknownLimit {
        /// Name of the annotation.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The pod's `tulle.dev/inject` label is neither of its two values.
    #[error(
        "label {name} has the value {value:?}: write `enabled` or `disabled`, or remove the label"
    )]
    Label {
        /// Name of the label.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A container would run with the sidecar's user or group, and its traffic would bypass the mesh.
    #[error(
        "container {container} would run with {field} {id}, which is the sidecar's own and exempt from capture: \
         choose another id"
    )]
    ReservedId {
        /// Name of the container.
        container: String,
        /// `runAsUser` or `runAsGroup`.
        field: &'static str,
        /// The reserved id.
        id: u32,
    },
    /// The pod already uses a name that the injector needs.
    #[error(
        "{what} is named {name}, which the injector needs: rename it, remove it if it is left of an earlier sidecar, or opt the pod \
         out with the label {label}=disabled"
    )]
    ReservedName {
        /// `a container` or `a volume`.
        what: &'static str,
        /// The name.
        name: String,
        /// Label that opts out.
        label: &'static str,
    },
    /// The pod says of the sidecar what cannot be.
    #[error(
        "container tulle-proxy with `image: auto` says of the sidecar what cannot be: {field}: {problem}"
    )]
    Override {
        /// Path of the field in the container.
        field: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A container declares a port that the sidecar listens on.
    #[error(
        "container {container} declares port {port}, which the sidecar listens on: move the app to another port"
    )]
    ReservedPort {
        /// Name of the container.
        container: String,
        /// The port.
        port: u16,
    },
}

impl InjectError {
    /// Where in the pod it lies; absent where that is not one field.
    pub(crate) fn field(&self, pod: &Value) -> Option<String> {
        let annotation = |name: &str| format!("metadata.annotations[{name}]");
        let field = match self {
            Self::Malformed { field, .. } | Self::Missing { field, .. } => field.clone(),
            Self::Patch { .. } => return None,
            Self::Annotation { name, .. } => annotation(name),
            Self::Limit { name, .. } | Self::UnknownLimit { name, .. } => annotation(name),
            Self::Label { name, .. } => format!("metadata.labels[{name}]"),
            Self::ReservedId {
                container, field, ..
            } => format!("{}.securityContext.{field}", item(pod, container)),
            Self::ReservedName {
                what: "a volume",
                name,
                ..
            } => format!("spec.volumes[{name}].name"),
            Self::ReservedName { name, .. } => format!("{}.name", item(pod, name)),
            Self::Override { field, .. } => format!("{}.{field}", item(pod, containers::PROXY)),
            Self::ReservedPort { container, .. } => format!("{}.ports", item(pod, container)),
        };
        Some(field)
    }
}

/// A container of the pod, in the list that has it.
fn item(pod: &Value, name: &str) -> String {
    let initial = pod["spec"]["initContainers"].as_array();
    let is_initial = (initial.into_iter().flatten()).any(|container| container["name"] == name);
    let list = if is_initial {
        "initContainers"
    } else {
        "containers"
    };
    format!("spec.{list}[{name}]")
}
