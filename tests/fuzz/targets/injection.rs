//! Injection.
//!
//! The input is a document, YAML or JSON. Injecting it gives an error, leaves it as it is but for the label that a copy of an
//! injected one may lack, or adds a sidecar: then the patch makes of the document what was returned, every other field is as
//! it was, injecting again changes nothing, and the sidecar can read the environment that it is given.

#![no_main]

use serde_json::Value;
use tulle_fuzz::pods::{environment, same_but_for_label, sidecar};
use tulle_injector::{
    Decision, InjectorConfig, Namespace, Outcome, SkipReason, inject_document, inject_pod,
};
use tulle_proxy::settings::Startup;
use tulle_runtime::env::Env;

tulle_fuzz::target!(|data: &[u8]| {
    let Some(document) = read(data) else {
        return;
    };
    let namespace = Namespace::enabled("shop");
    for native_sidecar in [true, false] {
        let config = InjectorConfig {
            native_sidecar,
            ..InjectorConfig::default()
        };
        if let Ok(outcome) = inject_document(document.clone(), &namespace, &config) {
            let again = |injected| inject_document(injected, &namespace, &config);
            check(&document, &outcome, again);
        }
        if let Ok(outcome) = inject_pod(&document, &namespace, &config) {
            let again = |injected: Value| inject_pod(&injected, &namespace, &config);
            check(&document, &outcome, again);
        }
    }
});

fn read(data: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(data).ok()?;
    if text.starts_with('{') {
        return serde_json::from_str(text).ok();
    }
    serde_saphyr::from_str(text).ok()
}

fn check<E: std::fmt::Debug>(
    document: &Value,
    outcome: &Outcome,
    again: impl Fn(Value) -> Result<Outcome, E>,
) {
    let mut patched = document.clone();
    json_patch::patch(&mut patched, &outcome.patch).expect("the patch applies");
    assert_eq!(patched, outcome.document);
    if let Decision::Skip(reason) = outcome.decision {
        assert!(reason == SkipReason::AlreadyInjected || outcome.patch.0.is_empty());
        assert!(same_but_for_label(document, &patched));
        return;
    }
    let twice = again(patched.clone()).expect("what was injected can be read");
    assert!(
        matches!(twice.decision, Decision::Skip(_)),
        "{:?}",
        twice.decision
    );
    assert_eq!(twice.document, patched);
    kept(
        &without_pod_resources(document.clone()),
        &without_pod_resources(patched.clone()),
    );
    let sidecar = sidecar(&patched).expect("a sidecar");
    let variables = environment(sidecar);
    if let Err(error) = Startup::from_env(Env::from_pairs(variables)) {
        panic!("the sidecar cannot start: {error}");
    }
}

/// Without what pods say of all of their containers together: there is one more.
fn without_pod_resources(mut document: Value) -> Value {
    match &mut document {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                *member = without_pod_resources(member.take());
                if let (true, Some(spec)) = (name == "spec", member.as_object_mut()) {
                    spec.remove("resources");
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_pod_resources(item.take());
            }
        }
        _ => {}
    }
    document
}

/// What leads elsewhere afterwards.
const REWRITTEN: [&str; 5] = [
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "postStart",
    "preStop",
];

/// Nothing is lost: members stay, lists only grow, but for what a pod says of its sidecar. Probes and hooks lead elsewhere.
fn kept(before: &Value, after: &Value) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                if !REWRITTEN.contains(&name.as_str()) {
                    kept(
                        value,
                        after.get(name).unwrap_or_else(|| panic!("{name} is gone")),
                    );
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let is_own = |item: &Value| item["name"] == "tulle-proxy" && item["image"] == "auto";
            let before: Vec<_> = before.iter().filter(|item| !is_own(item)).collect();
            let added = after.len() - before.len();
            // In front, or behind: never between.
            let all = |from: usize| {
                before
                    .iter()
                    .zip(&after[from..])
                    .all(|(one, other)| same_name(one, other))
            };
            let from = if all(0) { 0 } else { added };
            for (one, other) in before.iter().zip(&after[from..]) {
                kept(one, other);
            }
        }
        (Value::Null, _) => {}
        (before, after) => assert_eq!(before, after),
    }
}

fn same_name(one: &Value, other: &Value) -> bool {
    one.get("name") == other.get("name")
}
