//! Documents of a manifest, injected or passed on as they are.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pods::{odd_json, pod};

fn config() -> InjectorConfig {
    InjectorConfig::default()
}

#[test]
fn the_pod_template_of_every_workload_is_found() {
    let pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "web" }] } });
    let template = json!({ "template": pod });
    let rows = [
        ("Pod", None, "/spec/initContainers/1/name"),
        (
            "Deployment",
            Some(template.clone()),
            "/spec/template/spec/initContainers/1/name",
        ),
        (
            "StatefulSet",
            Some(template.clone()),
            "/spec/template/spec/initContainers/1/name",
        ),
        (
            "DaemonSet",
            Some(template.clone()),
            "/spec/template/spec/initContainers/1/name",
        ),
        (
            "ReplicaSet",
            Some(template.clone()),
            "/spec/template/spec/initContainers/1/name",
        ),
        (
            "Job",
            Some(template.clone()),
            "/spec/template/spec/initContainers/1/name",
        ),
        (
            "CronJob",
            Some(json!({ "jobTemplate": { "spec": template } })),
            "/spec/jobTemplate/spec/template/spec/initContainers/1/name",
        ),
    ];
    for (kind, spec, pointer) in rows {
        let spec = spec.unwrap_or_else(|| pod["spec"].clone());
        let document = json!({ "kind": kind, "metadata": { "name": "w" }, "spec": spec });
        let outcome =
            inject_document(document, &Namespace::enabled("shop"), &config()).expect(kind);
        assert_eq!(
            outcome.document.pointer(pointer),
            Some(&json!("tulle-proxy")),
            "{kind}"
        );
    }
}

#[test]
fn a_document_without_pods_comes_back_untouched() {
    for document in [
        json!({ "kind": "Service", "spec": {} }),
        json!("text"),
        json!(null),
        json!([1]),
    ] {
        let outcome = inject_document(document.clone(), &Namespace::enabled("shop"), &config())
            .expect("skipped");
        assert_eq!(outcome.decision, Decision::Skip(SkipReason::NotAWorkload));
        assert_eq!(outcome.document, document);
        assert!(outcome.patch.0.is_empty());
    }
}

#[test]
fn a_misshapen_workload_is_refused_by_kind_and_field() {
    let rows = [
        (
            json!({ "kind": "Deployment" }),
            "Deployment has no spec.template.spec: add it",
        ),
        (
            json!({ "kind": "Pod", "spec": { "containers": "web" } }),
            "spec of Pod is not valid: correct it, or check it with `kubectl apply --dry-run=server`",
        ),
        (
            json!({ "kind": "Job", "spec": { "template": { "metadata": [], "spec": {} } } }),
            "spec.template.metadata of Job is not valid: correct it, or check it with `kubectl apply --dry-run=server`",
        ),
    ];
    for (document, expected) in rows {
        let error =
            inject_document(document, &Namespace::enabled("shop"), &config()).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

proptest! {
    #[test]
    fn row_53_injecting_twice_is_injecting_once_and_the_patch_says_all(pod in pod()) {
        let namespace = Namespace::enabled("shop");
        let Ok(once) = inject_document(pod.clone(), &namespace, &config()) else { return Ok(()) };
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &once.patch.0).expect("the patch fits");
        prop_assert_eq!(&patched, &once.document);
        prop_assert_eq!(&once.document["spec"]["unknown"], &pod["spec"]["unknown"]);
        let twice = inject_document(once.document.clone(), &namespace, &config()).expect("still valid");
        prop_assert_eq!(twice.decision, Decision::Skip(SkipReason::AlreadyInjected));
        prop_assert!(twice.patch.0.is_empty());
        prop_assert_eq!(twice.document, once.document);
    }

    #[test]
    fn odd_documents_never_panic(document in odd_json(), kind in "Pod|Deployment|CronJob|List") {
        let namespace = Namespace::enabled("shop");
        let _ = inject_pod(&document, &namespace, &config());
        let _ = inject_pod(&json!({ "spec": document.clone() }), &namespace, &config());
        let _ = inject_pod(&json!({ "metadata": document, "spec": { "containers": [] } }), &namespace, &config());
        let mut document = document;
        if let Some(object) = document.as_object_mut() {
            object.insert("kind".to_owned(), json!(kind));
        }
        let _ = inject_document(document, &namespace, &config());
    }
}
