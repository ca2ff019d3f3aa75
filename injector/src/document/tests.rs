//! Documents of a manifest, injected or passed on as they are.

use proptest::prelude::*;
use serde_json::json;

use super::*;

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

/// JSON that resembles a pod often enough to get past the types, with oddities everywhere else.
fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!("enabled")),
        Just(json!("tulle-proxy")),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let key = prop_oneof![
            Just("metadata".to_owned()),
            Just("spec".to_owned()),
            Just("containers".to_owned()),
            Just("initContainers".to_owned()),
            Just("name".to_owned()),
            Just("labels".to_owned()),
            Just("annotations".to_owned()),
            Just("readinessProbe".to_owned()),
            Just("httpGet".to_owned()),
            Just("port".to_owned()),
            "[a-z/~.$]{0,8}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn containers() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!(8080)),
        Just(json!("http")),
        Just(json!("nowhere")),
        Just(json!(-1)),
        Just(json!(9000))
    ];
    let handler = prop_oneof![
        Just("httpGet"),
        Just("tcpSocket"),
        Just("grpc"),
        Just("exec")
    ];
    let probe = (handler, port, odd_json()).prop_map(|(handler, port, odd)| match handler {
        "exec" => json!({ "exec": { "command": ["true"] } }),
        "grpc" => json!({ "grpc": { "port": port.as_i64().unwrap_or(1) }, "x": odd }),
        _ => json!({ handler: { "port": port, "x": odd }, "periodSeconds": 3 }),
    });
    let probe = probe.boxed();
    let container = (
        "[a-z]{1,5}",
        prop::option::of(probe.clone()),
        prop::option::of(probe),
        odd_json(),
    )
        .prop_map(|(name, ready, live, odd)| {
            json!({
                "name": name,
                "readinessProbe": ready,
                "livenessProbe": live,
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "unknown": odd,
            })
        });
    prop::collection::vec(container, 0..20).prop_map(Value::from)
}

fn pod() -> impl Strategy<Value = Value> {
    let annotation = prop_oneof![
        Just("9000"),
        Just("true"),
        Just("false"),
        Just("info"),
        Just("json"),
        Just("10.0.0.0/8"),
        Just("odd")
    ];
    let name = prop::sample::select(vec![
        "tulle.dev/exclude-inbound-ports",
        "tulle.dev/exclude-outbound-cidrs",
        "tulle.dev/proxy-log-level",
        "tulle.dev/native-sidecar",
        "tulle.dev/access-log",
        "example.com/a~b",
    ]);
    let annotations = prop::option::of(prop::collection::hash_map(name, annotation, 0..3));
    (
        annotations,
        containers(),
        prop::option::of(containers()),
        odd_json(),
    )
        .prop_map(|(annotations, containers, init, odd)| {
            json!({
                "kind": "Pod",
                "metadata": { "name": "p", "annotations": annotations, "unknown": odd },
                "spec": { "containers": containers, "initContainers": init, "unknown": odd },
            })
        })
}

proptest! {
    #[test]
    fn injecting_twice_is_injecting_once_and_the_patch_says_all(pod in pod()) {
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
