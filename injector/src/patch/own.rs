//! A container of the user's named like the sidecar, with `image: auto`: what it says of the sidecar wins over what we say.
//!
//! It is taken out of its list and put where the sidecar belongs. Lists whose items have a key are merged by that, others are
//! the user's; what the mesh depends on cannot be changed: see the guard.

use json_patch::PatchError;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value, json};
use tulle_runtime::names::containers as names;

use super::Pod;
use super::editor::Editor;

/// The image that means ours.
pub(crate) const AUTO: &str = "auto";
/// What stays ours.
const OURS: [&str; 3] = ["name", "image", "restartPolicy"];
/// What the API server puts where the user says nothing: it does so before it asks a webhook, and for an image without a tag.
/// None of it is the user's word. <https://kubernetes.io/docs/concepts/containers/images/#imagepullpolicy-defaulting>
const DEFAULTS: [(&str, &str); 3] = [
    ("imagePullPolicy", "Always"),
    ("terminationMessagePath", "/dev/termination-log"),
    ("terminationMessagePolicy", "File"),
];
/// Where LimitRanger says that it has set resources. What it says of one LimitRange takes the place of what it said of another.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/plugin/pkg/admission/limitranger/admission.go>
const RANGER: &str = "kubernetes.io/limit-ranger";
/// Lists that are merged, by the field that tells their items apart.
const KEYS: [(&str, &str); 4] = [
    ("env", "name"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
];

/// Whether a container is the user's word on the sidecar.
pub(crate) fn is_own(container: &Container) -> bool {
    container.name == names::PROXY && container.image.as_deref() == Some(AUTO)
}

/// Takes it out of the pod; absent if there is none.
pub(crate) fn take(editor: &mut Editor, pod: &Pod<'_>) -> Result<Option<Value>, PatchError> {
    let spec = pod.spec;
    let lists = [
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
        ("containers", spec.containers.as_slice()),
    ];
    for (list, containers) in lists {
        if let Some(index) = containers.iter().position(is_own) {
            let at = ["spec", list, &index.to_string()];
            let mut own = editor.get(&at).clone();
            editor.remove(&at)?;
            let annotations = pod.meta.annotations.as_ref();
            if annotations.is_some_and(|it| it.contains_key(RANGER)) {
                forget(&mut own, list, pod.meta.managed_fields.as_deref());
            }
            return Ok(Some(own));
        }
    }
    Ok(None)
}

/// Takes out the resources that LimitRanger has set where the user says nothing: the API server notes whose the fields of an
/// object are before anybody changes it, so these are nobody's.
/// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management>
fn forget(own: &mut Value, list: &str, noted: Option<&[ManagedFieldsEntry]>) {
    let Some(noted) = noted else { return };
    let whose = format!("k:{}", json!({ "name": names::PROXY }));
    let said = |of: &str, resource: &str| {
        let [list, of, resource] = [list, of, resource].map(|it| format!("f:{it}"));
        let path = ["f:spec", &list, &whose, "f:resources", &of, &resource];
        let mut noted = noted.iter().filter_map(|it| it.fields_v1.as_ref());
        noted.any(|fields| {
            path.iter()
                .try_fold(&fields.0, |at, it| at.get(it))
                .is_some()
        })
    };
    for of in ["requests", "limits"] {
        let set = own.get_mut("resources").and_then(|it| it.get_mut(of));
        if let Some(set) = set.and_then(Value::as_object_mut) {
            set.retain(|resource, _| said(of, resource));
        }
    }
}

/// The sidecar with what the user says of it.
pub(crate) fn merge(mut sidecar: Value, own: Value) -> Value {
    if let (Value::Object(sidecar), Value::Object(mut own)) = (&mut sidecar, own) {
        for ours in OURS {
            own.remove(ours);
        }
        own.retain(|name, value| {
            !DEFAULTS
                .iter()
                .any(|(of, default)| of == name && value == default)
        });
        members(sidecar, own);
    }
    sidecar
}

fn members(ours: &mut Map<String, Value>, own: Map<String, Value>) {
    for (name, value) in own {
        let key = KEYS.iter().find(|(list, _)| *list == name);
        match (ours.get_mut(&name), value) {
            // Absent, as everywhere in Kubernetes.
            (_, Value::Null) => {}
            (Some(Value::Object(ours)), Value::Object(own)) if !is_choice(&name) => {
                members(ours, own)
            }
            (Some(Value::Array(ours)), Value::Array(own)) if key.is_some() => {
                items(ours, own, key.map_or("", |(_, key)| key));
            }
            (_, value) => {
                ours.insert(name, value);
            }
        }
    }
}

/// Of which the API server takes one member only.
fn is_choice(name: &str) -> bool {
    name.ends_with("Probe") || ["postStart", "preStop", "seccompProfile"].contains(&name)
}

fn items(ours: &mut Vec<Value>, own: Vec<Value>, key: &str) {
    for item in own {
        match ours.iter_mut().find(|ours| ours[key] == item[key]) {
            Some(ours) => *ours = item,
            None => ours.push(item),
        }
    }
}
