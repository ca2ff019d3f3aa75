//! What the API server is answered: let in with a patch, let in without, kept out, or no review at all.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde_json::{Value, json};
use tulle_runtime::reasons::explained;

use super::*;
use crate::InjectReason;

mod malformed;
mod properties;

/// A review of a new pod, as the API server sends it.
fn review(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["a"] },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "generateName": "web-7d9f-", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": "web" }] },
    })
}

fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    let (path, key) = pointer.rsplit_once('/').expect("a pointer");
    document.pointer_mut(path).expect("an object")[key] = value;
    document
}

fn reviewer() -> Reviewer {
    Reviewer {
        config: InjectorConfig::default(),
    }
}

fn ask(review: &Value) -> (Reviewed, Value) {
    let known = |name: &str| (name == "shop").then(|| Namespace::enabled("shop"));
    let reviewed = reviewer().review(review.to_string().as_bytes(), known);
    let answer = serde_json::from_slice(&reviewed.response).expect("JSON");
    (reviewed, answer)
}

/// The patch of an answer, as the API server reads it.
fn patch(answer: &Value) -> Option<Patch> {
    let response = answer["response"].as_object().expect("a response");
    assert_eq!(
        response.contains_key("patch"),
        response.contains_key("patchType")
    );
    let patch = STANDARD
        .decode(response.get("patch")?.as_str()?)
        .expect("base64");
    Some(serde_json::from_slice(&patch).expect("a patch"))
}

fn patched(pod: &Value, answer: &Value) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch(answer).expect("a patch")).expect("it fits");
    pod
}

#[test]
fn a_pod_that_gets_a_sidecar_is_let_in_with_a_patch() {
    let (reviewed, answer) = ask(&review(&pod()));
    assert_eq!(
        reviewed.verdict,
        Verdict::Injected(InjectReason::NamespaceLabel)
    );
    assert_eq!((reviewed.status, reviewed.dry_run), (200, false));
    assert_eq!(reviewed.pod.as_deref(), Some("shop/web-7d9f-*"));
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(response.get("warnings"), None);
    assert_eq!(response["auditAnnotations"]["decision"], reviewed.message);
    let patched = patched(&pod(), &answer);
    assert_eq!(patched["spec"]["initContainers"][1]["name"], "tulle-proxy");
    assert_eq!(
        patched["metadata"]["labels"]["service.istio.io/canonical-name"],
        "web"
    );
}

#[test]
fn what_is_left_as_it_is_is_let_in_without_a_patch_for_its_reason() {
    let at = |pointer: &str, value: Value| with(review(&pod()), pointer, value);
    let opted_out = json!({ "tulle.dev/inject": "disabled" });
    let deployment = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    let rows = [
        (at("/request/operation", json!("UPDATE")), "not_created"),
        (at("/request/operation", json!("DELETE")), "not_created"),
        (at("/request/operation", json!("CONNECT")), "not_created"),
        (at("/request/operation", json!("")), "not_created"),
        (
            at("/request/subResource", json!("ephemeralcontainers")),
            "subresource",
        ),
        (at("/request/subResource", json!("binding")), "subresource"),
        (at("/request/kind", deployment), "not_a_workload"),
        (at("/request/kind", Value::Null), "not_a_workload"),
        (
            at("/request/object/metadata/labels", opted_out),
            "pod_label",
        ),
        (
            at("/request/object/spec/hostNetwork", json!(true)),
            "host_network",
        ),
        (
            at("/request/namespace", json!("kube-system")),
            "system_namespace",
        ),
    ];
    for (review, reason) in rows {
        let (reviewed, answer) = ask(&review);
        assert_eq!(reviewed.verdict.names(), ("skipped", reason));
        assert_eq!(answer["response"]["allowed"], true, "{reason}");
        assert_eq!(patch(&answer), None, "{reason}");
        assert!(reviewed.message.starts_with("skipped: "), "{reason}");
    }
}

#[test]
fn a_webhook_that_asks_about_other_kinds_is_told_what_to_correct() {
    let kind = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    let (reviewed, answer) = ask(&with(review(&pod()), "/request/kind", kind));
    assert_eq!(reviewed.pod, None);
    let expected = "only pods are injected, and this is apps/v1 Deployment: correct the rules of the webhook's configuration";
    assert_eq!(answer["response"]["warnings"], json!([expected]));
    let kind = json!({ "group": "", "version": "v2", "kind": "Pod" });
    let (reviewed, answer) = ask(&with(review(&pod()), "/request/kind", kind));
    assert_eq!(reviewed.verdict, Verdict::Refused(Refusal::PodVersion));
    assert_eq!(answer["response"]["status"]["code"], 400);
}

#[test]
fn what_would_run_half_injected_is_kept_out_with_object_field_value_and_remedy() {
    let at = |pointer: &str, value: Value| with(pod(), pointer, value);
    let annotated = |name: &str, value: &str| at("/metadata/annotations", json!({ name: value }));
    let container = |extra: &str, value: Value| {
        at("/spec/containers", json!([{ "name": "web", extra: value }]))
    };
    let rows = [
        (
            annotated("tulle.dev/exclude-inbound-ports", "http"),
            "annotation",
            "metadata.annotations[tulle.dev/exclude-inbound-ports]",
            ["\"http\"", "write ports from 1"],
        ),
        (
            annotated("limits.tulle.dev/max-head", "1"),
            "annotation",
            "metadata.annotations[limits.tulle.dev/max-head]",
            ["\"1\"", "use a number of bytes"],
        ),
        (
            annotated("limits.tulle.dev/x", "1"),
            "annotation",
            "metadata.annotations[limits.tulle.dev/x]",
            ["limits.tulle.dev/x", "after the slash comes one of"],
        ),
        (
            at("/metadata/labels", json!({ "tulle.dev/inject": "yes" })),
            "label",
            "metadata.labels[tulle.dev/inject]",
            ["\"yes\"", "write `enabled` or `disabled`"],
        ),
        (
            at("/spec/containers", json!([{ "name": "tulle-proxy" }])),
            "reserved_name",
            "spec.containers[tulle-proxy].name",
            ["tulle-proxy", "rename it"],
        ),
        (
            at("/spec/initContainers", json!([{ "name": "tulle-capture" }])),
            "reserved_name",
            "spec.initContainers[tulle-capture].name",
            ["tulle-capture", "rename it"],
        ),
        (
            at("/spec/volumes", json!([{ "name": "tulle-token" }])),
            "reserved_name",
            "spec.volumes[tulle-token].name",
            ["tulle-token", "rename it"],
        ),
        (
            container("securityContext", json!({ "runAsUser": 1337 })),
            "reserved_id",
            "spec.containers[web].securityContext.runAsUser",
            ["1337", "choose another id"],
        ),
        (
            container("ports", json!([{ "containerPort": 15020 }])),
            "reserved_port",
            "spec.containers[web].ports",
            ["15020", "move the app"],
        ),
        (
            at("/spec/containers", json!("web")),
            "shape",
            "spec",
            ["string \"web\"", "correct it"],
        ),
        (
            json!({ "metadata": { "name": "web-7d9f-" } }),
            "shape",
            "spec",
            ["no spec", "add it"],
        ),
        (Value::Null, "shape", "spec", ["no spec", "add it"]),
    ];
    for (pod, reason, field, words) in rows {
        let (reviewed, answer) = ask(&review(&pod));
        assert_eq!(reviewed.verdict.names(), ("refused", reason), "{pod}");
        let response = &answer["response"];
        assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        assert_eq!(response["allowed"], false, "{field}");
        assert_eq!(patch(&answer), None, "{field}");
        let status = &response["status"];
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(422), &json!("Invalid"))
        );
        assert_eq!(status["details"]["causes"][0]["field"], field);
        let message = status["message"].as_str().expect("a message");
        assert_eq!(message, reviewed.message);
        let start = if pod.is_null() {
            "pod shop/*: "
        } else {
            "pod shop/web-7d9f-"
        };
        assert!(message.starts_with(start), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn a_bad_value_that_can_be_ignored_is_a_warning_and_the_pod_is_let_in() {
    let annotations = json!({
        "tulle.dev/proxy-log-level": "loud",
        "tulle.dev/exclude-port": "1",
        "tulle.dev/a\nb": "1",
    });
    let (reviewed, answer) = ask(&review(&with(pod(), "/metadata/annotations", annotations)));
    assert_eq!(reviewed.verdict.names(), ("injected", "namespace_label"));
    let warnings: Vec<String> =
        serde_json::from_value(answer["response"]["warnings"].clone()).expect("lines");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("tulle.dev/proxy-log-level has the value \"loud\""));
    assert!(
        warnings[1].starts_with("annotation tulle.dev/a b is not known"),
        "{warnings:?}"
    );
    assert!(warnings[2].starts_with("annotation tulle.dev/exclude-port is not known"));
}

#[test]
fn as_many_warnings_and_as_long_ones_as_the_api_server_passes_on() {
    let annotations: serde_json::Map<_, _> = (0..40)
        .map(|number| (format!("tulle.dev/{number}{}", "x".repeat(400)), json!("")))
        .collect();
    let (_, answer) = ask(&review(&with(
        pod(),
        "/metadata/annotations",
        Value::Object(annotations),
    )));
    let warnings: Vec<String> =
        serde_json::from_value(answer["response"]["warnings"].clone()).expect("lines");
    assert_eq!(warnings.len(), 16);
    for line in warnings {
        assert!(
            line.len() <= 256 && line.ends_with("check its spelling"),
            "{line}"
        );
    }
    let long = json!({ "tulle.dev/native-sidecar": "ü".repeat(9_999) });
    let (reviewed, _) = ask(&review(&with(pod(), "/metadata/annotations", long)));
    assert!(
        reviewed.message.len() <= 1024 && reviewed.message.ends_with("write `true` or `false`")
    );
}

#[test]
fn the_namespace_is_that_of_the_request() {
    let foreign = with(pod(), "/metadata/namespace", json!("kube-system"));
    assert_eq!(ask(&review(&foreign)).0.verdict.names().0, "injected");
    // What no namespace can be called is neither asked for nor logged.
    for none in ["", "Shop", "../shop", &"s".repeat(1 << 20)] {
        let (reviewed, answer) = ask(&with(review(&pod()), "/request/namespace", json!(none)));
        assert_eq!(reviewed.verdict, Verdict::Refused(Refusal::NoNamespace));
        assert_eq!(answer["response"]["allowed"], false);
    }
}

#[test]
fn a_namespace_that_is_not_known_yet_is_asked_for_again_where_it_has_a_say() {
    let labelled = |value: &str| {
        with(
            pod(),
            "/metadata/labels",
            json!({ "tulle.dev/inject": value }),
        )
    };
    let of = |revision: &str| {
        with(
            pod(),
            "/metadata/labels",
            json!({ "tulle.dev/rev": revision }),
        )
    };
    let rows = [
        (pod(), ("refused", "unknown_namespace")),
        // It may name another revision.
        (labelled("enabled"), ("refused", "unknown_namespace")),
        (labelled("disabled"), ("skipped", "pod_label")),
        (of("default"), ("injected", "pod_revision")),
        (of("canary"), ("skipped", "other_revision")),
    ];
    for (pod, expected) in rows {
        let (reviewed, answer) = ask(&with(review(&pod), "/request/namespace", json!("new")));
        assert_eq!(reviewed.verdict.names(), expected);
        if expected.0 == "refused" {
            assert_eq!(answer["response"]["status"]["code"], 503);
            assert_eq!(answer["response"]["status"]["reason"], "ServiceUnavailable");
            assert!(
                reviewed.message.ends_with("try again"),
                "{}",
                reviewed.message
            );
        }
    }
}

#[test]
fn a_dry_run_is_answered_alike_and_said_to_be_one() {
    let dry = with(review(&pod()), "/request/dryRun", json!(true));
    let ((dry, answer), (_, expected)) = (ask(&dry), ask(&review(&pod())));
    assert!(dry.dry_run);
    assert_eq!(answer, expected);
}

#[test]
fn a_pod_that_was_patched_is_let_in_without_another_patch() {
    let (_, first) = ask(&review(&pod()));
    let again = patched(&pod(), &first);
    let (reviewed, answer) = ask(&review(&again));
    assert_eq!(
        reviewed.verdict,
        Verdict::Skipped(SkipReason::AlreadyInjected)
    );
    assert_eq!(patch(&answer), None);
}

#[test]
fn names_of_pods_are_those_of_the_request_then_the_objects() {
    let named = with(pod(), "/metadata/name", json!("web-0"));
    assert_eq!(ask(&review(&named)).0.pod.as_deref(), Some("shop/web-0"));
    let asked = with(review(&named), "/request/name", json!("web-1"));
    assert_eq!(ask(&asked).0.pod.as_deref(), Some("shop/web-1"));
}

#[test]
fn every_verdict_has_a_name_of_its_own() {
    let injected = InjectReason::ALL
        .iter()
        .map(|&reason| Verdict::Injected(reason));
    let skipped = SkipReason::ALL
        .iter()
        .map(|&reason| Verdict::Skipped(reason));
    let refused = Refusal::ALL.iter().map(|&reason| Verdict::Refused(reason));
    let malformed = Flaw::ALL.iter().map(|&flaw| Verdict::Malformed(flaw));
    let all: Vec<_> = injected
        .chain(skipped)
        .chain(refused)
        .chain(malformed)
        .collect();
    let names: BTreeSet<_> = all.iter().map(|verdict| verdict.names()).collect();
    assert_eq!(names.len(), all.len());
}

#[test]
fn readme_explains_every_reason_of_every_verdict() {
    const README: &str = include_str!("../../../README.md");
    fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> BTreeSet<&'static str> {
        all.iter().map(|it| name(*it)).collect()
    }
    for (head, named) in [
        ("Of `skipped`, ", names(SkipReason::ALL, SkipReason::name)),
        (
            "Of `injected`:",
            names(InjectReason::ALL, InjectReason::name),
        ),
        ("Of `refused`, ", names(Refusal::ALL, Refusal::name)),
        ("Of `malformed`, ", names(Flaw::ALL, Flaw::name)),
    ] {
        let said = explained(README, head).expect("a table of each once");
        assert_eq!(said, named, "{head}");
    }
}
