//! What was injected into a pod.

use serde_json::Value;
use tulle_runtime::names::{containers, labels};

/// The sidecar's container, wherever the pod lies in the document.
#[must_use]
pub fn sidecar(document: &Value) -> Option<&Value> {
    match document {
        Value::Object(members)
            if members
                .get("name")
                .is_some_and(|name| name == containers::PROXY) =>
        {
            members.contains_key("env").then_some(document)
        }
        Value::Object(members) => members.values().find_map(sidecar),
        Value::Array(items) => items.iter().find_map(sidecar),
        _ => None,
    }
}

/// As kubelet gives it: `$$` is a dollar sign, and what the pod's fields say is something good.
#[must_use]
pub fn environment(container: &Value) -> Vec<(String, String)> {
    let variables = container["env"].as_array().expect("a list");
    let pair = |variable: &Value| {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let value = match variable["value"].as_str() {
            Some(value) => value.replace("$$", "$"),
            None => match variable["valueFrom"]["fieldRef"]["fieldPath"]
                .as_str()
                .expect("a field")
            {
                "status.podIP" => "10.1.2.3".to_owned(),
                _ => "it".to_owned(),
            },
        };
        (name, value)
    };
    variables.iter().map(pair).collect()
}

/// Whether both are the same but for the label of pods with a sidecar, which a copy of one may lack.
#[must_use]
pub fn same_but_for_label(before: &Value, after: &Value) -> bool {
    without_label(before.clone()) == without_label(after.clone())
}

/// A list of labels that has no other one may be absent, as may what is around it.
fn without_label(mut document: Value) -> Value {
    if let Value::Object(members) = &mut document {
        members.retain(|name, member| {
            *member = without_label(member.take());
            let is_empty = member.is_null() || member.as_object().is_some_and(|all| all.is_empty());
            name != labels::PROXIED
                && !(is_empty && ["labels", "metadata"].contains(&name.as_str()))
        });
    }
    document
}
