//! A container of the user's named like the sidecar, with `image: auto`: what it says of the sidecar wins over what we say.
//!
//! It is taken out of its list and put where the sidecar belongs. Lists whose items have a key are merged by that, others are
//! the user's; what the mesh depends on cannot be changed: see the guard.

use json_patch::PatchError;
use k8s_openapi::api::core::v1::Container;
use serde_json::{Map, Value};
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
/// Where LimitRanger says which resources of which containers it has set, and how that begins.
const RANGER: &str = "kubernetes.io/limit-ranger";
const SET: &str = "LimitRanger plugin set: ";
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
            let whose = match list {
                "containers" => "container",
                _ => "init container",
            };
            let annotations = pod.meta.annotations.as_ref();
            if let Some(said) = annotations.and_then(|it| it.get(RANGER)) {
                forget(&mut own, said, whose);
            }
            return Ok(Some(own));
        }
    }
    Ok(None)
}

/// Takes out what LimitRanger has set where the user says nothing: `cpu, memory limit for container NAME`, divided by semicolons.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/plugin/pkg/admission/limitranger/admission.go>
fn forget(own: &mut Value, ranger: &str, whose: &str) {
    let said = ranger.strip_prefix(SET).unwrap_or_default();
    for (list, word) in [("requests", "request"), ("limits", "limit")] {
        let ending = format!(" {word} for {whose} {}", names::PROXY);
        let mut parts = said.split("; ");
        let set = parts.find_map(|part| part.strip_suffix(ending.as_str()));
        let of = own.get_mut("resources").and_then(|it| it.get_mut(list));
        let Some(of) = of.and_then(Value::as_object_mut) else {
            continue;
        };
        let set: Vec<_> = set.into_iter().flat_map(|it| it.split(", ")).collect();
        of.retain(|resource, _| !set.contains(&resource.as_str()));
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
