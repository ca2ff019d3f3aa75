//! Resources of the pod as a whole: they have to have room for the sidecar.
//!
//! Where a pod says what all of its containers may have together, that is what its author has counted for them, and the API
//! server refuses it if they ask for more. So what the sidecar asks for, and may use, comes on top.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/assign-pod-level-resources/>

use json_patch::PatchError;
use serde_json::{Value, json};

use super::editor::Editor;
use crate::quantity;

/// Adds what this sidecar has to what the pod has. What is no quantity is left to the API server.
pub(super) fn widen(editor: &mut Editor, sidecar: &Value) -> Result<(), PatchError> {
    for resource in ["cpu", "memory"] {
        let of = |list: &str| text(&sidecar["resources"][list][resource]);
        let (request, limit) = (of("requests"), of("limits"));
        for (list, more) in [
            ("requests", &request),
            ("limits", limit.as_ref().map_or(&request, |_| &limit)),
        ] {
            let at = ["spec", "resources", list, resource];
            let (Some(now), Some(more)) = (text(editor.get(&at)), more) else {
                continue;
            };
            if let Some(sum) = sum(resource, &now, more) {
                editor.set(&at[..3], resource, json!(sum))?;
            }
        }
    }
    Ok(())
}

/// A quantity, which may be a number in a file.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn sum(resource: &str, one: &str, other: &str) -> Option<String> {
    if resource == "cpu" {
        let thousandths = quantity::cpu(one)?.checked_add(quantity::cpu(other)?)?;
        return Some(format!("{thousandths}m"));
    }
    let bytes = quantity::memory(one)?.checked_add(quantity::memory(other)?)?;
    Some(match bytes % (1 << 20) {
        0 => format!("{}Mi", bytes >> 20),
        _ => bytes.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_add_up() {
        for (resource, one, other, expected) in [
            ("cpu", "1", "10m", Some("1010m")),
            ("cpu", "0.5", "2", Some("2500m")),
            ("memory", "512Mi", "16Mi", Some("528Mi")),
            ("memory", "100M", "16Mi", Some("116777216")),
            ("memory", "1e8", "16Mi", Some("116777216")),
            ("cpu", "many", "1", None),
        ] {
            let sum = sum(resource, one, other);
            assert_eq!(sum.as_deref(), expected, "{one} and {other}");
        }
    }

    #[test]
    fn what_a_pod_says_of_all_of_its_containers_has_room_for_one_more() {
        let sidecar = json!({ "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "256Mi" },
        } });
        let widened = |resources: Value| {
            let mut editor = Editor::new(json!({ "spec": { "resources": resources } }), &[]);
            widen(&mut editor, &sidecar).expect("it fits");
            editor.finish().1["spec"]["resources"].clone()
        };
        assert_eq!(
            widened(json!({ "requests": { "cpu": "100m", "memory": "512Mi" } })),
            json!({ "requests": { "cpu": "110m", "memory": "528Mi" } })
        );
        // Without a limit of its own it may use what it asks for.
        assert_eq!(
            widened(json!({ "limits": { "cpu": 1, "memory": "64Mi", "hugepages-2Mi": "4Mi" } })),
            json!({ "limits": { "cpu": "1010m", "memory": "320Mi", "hugepages-2Mi": "4Mi" } })
        );
        for other in [
            json!(null),
            json!({}),
            json!({ "requests": { "cpu": "odd" } }),
        ] {
            assert_eq!(widened(other.clone()), other);
        }
    }
}
