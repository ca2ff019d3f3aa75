//! Who gets a sidecar: every rule with both outcomes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::*;
use crate::inject_pod;

fn decision(pod: &Value, namespace: &Namespace) -> Result<Decision, String> {
    match inject_pod(pod, namespace, &InjectorConfig::default()) {
        Ok(outcome) => Ok(outcome.decision),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn each_row_of_the_table_decides_with_its_reason() {
    use Decision::{Inject, Skip};
    let enabled = || Namespace::enabled("shop");
    let plain = || Namespace {
        name: "shop".to_owned(),
        ..Namespace::default()
    };
    let named = |name: &str| Namespace::enabled(name);
    let pod = |metadata: Value, mut spec: Value| {
        spec["containers"] = json!([{ "name": "web" }]);
        json!({ "metadata": metadata, "spec": spec })
    };
    let injected = json!({
        "metadata": { "annotations": { "tulle.dev/status": "{}" } },
        "spec": {
            "initContainers": [{ "name": "tulle-capture" }, { "name": "tulle-proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "web" }],
            "volumes": [{ "name": "tulle-token" }, { "name": "tulle-state" }],
        },
    });
    let rows = [
        (
            "namespace label",
            pod(json!({}), json!({})),
            enabled(),
            Inject(InjectReason::NamespaceLabel),
        ),
        (
            "nothing asks",
            pod(json!({}), json!({})),
            plain(),
            Skip(SkipReason::NotSelected),
        ),
        (
            "pod label opts in without the namespace",
            pod(
                json!({ "labels": { "tulle.dev/inject": "enabled" } }),
                json!({}),
            ),
            plain(),
            Inject(InjectReason::PodLabel),
        ),
        (
            "pod label opts out",
            pod(
                json!({ "labels": { "tulle.dev/inject": "disabled" } }),
                json!({}),
            ),
            enabled(),
            Skip(SkipReason::PodLabel),
        ),
        (
            "annotation opts out of a selected namespace",
            pod(
                json!({ "annotations": { "tulle.dev/inject": "disabled" } }),
                json!({}),
            ),
            enabled(),
            Skip(SkipReason::PodAnnotation),
        ),
        (
            "annotation cannot opt in",
            pod(
                json!({ "annotations": { "tulle.dev/inject": "enabled" } }),
                json!({}),
            ),
            plain(),
            Skip(SkipReason::NotSelected),
        ),
        (
            "label beats annotation",
            pod(
                json!({ "labels": { "tulle.dev/inject": "enabled" }, "annotations": { "tulle.dev/inject": "disabled" } }),
                json!({}),
            ),
            enabled(),
            Inject(InjectReason::PodLabel),
        ),
        (
            "host network even when the pod asks",
            pod(
                json!({ "labels": { "tulle.dev/inject": "enabled" } }),
                json!({ "hostNetwork": true }),
            ),
            enabled(),
            Skip(SkipReason::HostNetwork),
        ),
        (
            "no host network",
            pod(json!({}), json!({ "hostNetwork": false })),
            enabled(),
            Inject(InjectReason::NamespaceLabel),
        ),
        (
            "kube-system",
            pod(json!({}), json!({})),
            named("kube-system"),
            Skip(SkipReason::SystemNamespace),
        ),
        (
            "control plane",
            pod(json!({}), json!({})),
            named("tulle-system"),
            Skip(SkipReason::SystemNamespace),
        ),
        (
            "mirror pod",
            pod(
                json!({ "annotations": { "kubernetes.io/config.mirror": "ab" } }),
                json!({}),
            ),
            enabled(),
            Skip(SkipReason::MirrorPod),
        ),
        (
            "windows by name",
            pod(json!({}), json!({ "os": { "name": "windows" } })),
            enabled(),
            Skip(SkipReason::Windows),
        ),
        (
            "linux by name",
            pod(json!({}), json!({ "os": { "name": "linux" } })),
            enabled(),
            Inject(InjectReason::NamespaceLabel),
        ),
        (
            "windows by node selector",
            pod(
                json!({}),
                json!({ "nodeSelector": { "kubernetes.io/os": "windows" } }),
            ),
            enabled(),
            Skip(SkipReason::Windows),
        ),
        (
            "already injected",
            injected,
            enabled(),
            Skip(SkipReason::AlreadyInjected),
        ),
        (
            "what the pod says of its sidecar is none yet",
            json!({
                "metadata": { "annotations": { "tulle.dev/status": "{}" } },
                "spec": { "containers": [{ "name": "web" }, { "name": "tulle-proxy", "image": "auto" }] },
            }),
            enabled(),
            Inject(InjectReason::NamespaceLabel),
        ),
        (
            "a copied status annotation is no sidecar",
            pod(
                json!({ "annotations": { "tulle.dev/status": "{}" } }),
                json!({}),
            ),
            enabled(),
            Inject(InjectReason::NamespaceLabel),
        ),
    ];
    for (name, pod, namespace, expected) in rows {
        assert_eq!(decision(&pod, &namespace), Ok(expected), "{name}");
    }
}

#[test]
fn each_revision_has_its_own_pods_and_no_other_injector_touches_them() {
    let namespace = |labels: &[(&str, &str)]| Namespace {
        name: "shop".to_owned(),
        labels: (labels.iter())
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let (inject, rev) = (labels::INJECT, labels::REVISION);
    let asks = namespace(&[(inject, "enabled")]);
    let of_canary = namespace(&[(rev, "canary")]);
    let both = namespace(&[(inject, "enabled"), (rev, "canary")]);
    let names_only = namespace(&[(inject, "disabled"), (rev, "canary")]);
    let of_default = namespace(&[(rev, "default")]);
    let empty = namespace(&[(inject, "enabled"), (rev, "")]);
    let plain = namespace(&[]);
    let none = json!({});
    let pod_of = |revision: &str| json!({ rev: revision });
    let opted = |value: &str| json!({ inject: value });
    let opted_of = |value: &str, revision: &str| json!({ inject: value, rev: revision });
    let other = ("skipped", "other_revision");
    // Labels of the pod, its namespace, what the default revision says of it, and what canary says.
    let rows = [
        (
            "asked for without a revision",
            &none,
            &asks,
            ("injected", "namespace_label"),
            other,
        ),
        (
            "asked for by revision",
            &none,
            &of_canary,
            other,
            ("injected", "namespace_revision"),
        ),
        (
            "both labels",
            &none,
            &both,
            other,
            ("injected", "namespace_label"),
        ),
        (
            "the default one by name",
            &none,
            &of_default,
            ("injected", "namespace_revision"),
            other,
        ),
        (
            "an empty revision is none",
            &none,
            &empty,
            ("injected", "namespace_label"),
            other,
        ),
        (
            "nothing asks",
            &none,
            &plain,
            ("skipped", "not_selected"),
            other,
        ),
        (
            "a revision for those that ask",
            &none,
            &names_only,
            other,
            ("skipped", "not_selected"),
        ),
        (
            "and one that asks",
            &opted("enabled"),
            &names_only,
            other,
            ("injected", "pod_label"),
        ),
        (
            "the pod opts in",
            &opted("enabled"),
            &plain,
            ("injected", "pod_label"),
            other,
        ),
        (
            "the pod opts out",
            &opted("disabled"),
            &of_canary,
            other,
            ("skipped", "pod_label"),
        ),
        (
            "the pod names one",
            &pod_of("canary"),
            &plain,
            other,
            ("injected", "pod_revision"),
        ),
        (
            "the pod's beats the namespace's",
            &pod_of("default"),
            &both,
            ("injected", "pod_revision"),
            other,
        ),
        (
            "the pod's empty one is none",
            &pod_of(""),
            &both,
            other,
            ("injected", "namespace_label"),
        ),
        (
            "the pod names one and opts out",
            &opted_of("disabled", "canary"),
            &both,
            other,
            ("skipped", "pod_label"),
        ),
        (
            "one that nobody serves",
            &pod_of("nobody"),
            &both,
            other,
            other,
        ),
    ];
    for (name, labels, namespace, of_default, of_canary) in rows {
        for (revision, expected) in [("default", of_default), ("canary", of_canary)] {
            let config = InjectorConfig {
                revision: revision.parse().expect("a name"),
                ..InjectorConfig::default()
            };
            let pod = json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "web" }] } });
            let decision = inject_pod(&pod, namespace, &config).expect(name).decision;
            assert_eq!(decision.names(), expected, "{name}, to {revision}");
        }
    }
}

#[test]
fn a_bad_label_of_a_pod_is_refused_by_its_own_revision_alone() {
    let meta = json!({ "labels": { "tulle.dev/inject": "yes", "tulle.dev/rev": "canary" } });
    let pod = json!({ "metadata": meta, "spec": { "containers": [{ "name": "web" }] } });
    let namespace = Namespace::enabled("shop");
    let skipped = Decision::Skip(SkipReason::OtherRevision);
    assert_eq!(decision(&pod, &namespace), Ok(skipped));
    let canary = InjectorConfig {
        revision: "canary".parse().expect("a name"),
        ..InjectorConfig::default()
    };
    assert!(inject_pod(&pod, &namespace, &canary).is_err());
}

fn selector(labels: &Value) -> Selector {
    let selector = json!({ "matchLabels": labels });
    let selector = serde_json::from_value::<LabelSelector>(selector).expect("a selector");
    selector.try_into().expect("valid")
}

#[test]
fn an_operators_selectors_come_after_the_pods_word_and_before_the_namespaces() {
    use Decision::{Inject, Skip};
    let config = InjectorConfig {
        never: vec![
            selector(&json!({ "build": "true" })),
            selector(&json!({ "tool": "x" })),
        ],
        always: vec![
            selector(&json!({ "gate": "true" })),
            selector(&json!({ "build": "true" })),
        ],
        ..InjectorConfig::default()
    };
    let (asked, plain) = (
        Namespace::enabled("shop"),
        Namespace {
            name: "shop".to_owned(),
            ..Namespace::default()
        },
    );
    let [never, always] = [json!({ "build": "true" }), json!({ "gate": "true" })];
    let opted = |labels: &Value, value: &str| {
        let mut labels = labels.clone();
        labels["tulle.dev/inject"] = json!(value);
        json!({ "labels": labels })
    };
    let out = |labels: &Value| json!({ "labels": labels, "annotations": { "tulle.dev/inject": "disabled" } });
    let rows = [
        (
            "never in a namespace that asks",
            json!({ "labels": never }),
            &asked,
            Skip(SkipReason::NeverSelected),
        ),
        (
            "the second of them",
            json!({ "labels": { "tool": "x" } }),
            &asked,
            Skip(SkipReason::NeverSelected),
        ),
        (
            "its label beats never",
            opted(&never, "enabled"),
            &plain,
            Inject(InjectReason::PodLabel),
        ),
        (
            "always where nothing asks",
            json!({ "labels": always }),
            &plain,
            Inject(InjectReason::AlwaysSelected),
        ),
        (
            "its label beats always",
            opted(&always, "disabled"),
            &asked,
            Skip(SkipReason::PodLabel),
        ),
        (
            "its annotation opts out",
            out(&always),
            &plain,
            Skip(SkipReason::PodAnnotation),
        ),
        (
            "neither",
            json!({ "labels": { "gate": "false" } }),
            &asked,
            Inject(InjectReason::NamespaceLabel),
        ),
        (
            "nothing asks",
            json!({ "labels": { "gate": "false" } }),
            &plain,
            Skip(SkipReason::NotSelected),
        ),
    ];
    for (name, metadata, namespace, expected) in rows {
        let pod = json!({ "metadata": metadata, "spec": { "containers": [{ "name": "web" }] } });
        let decision = inject_pod(&pod, namespace, &config).expect(name).decision;
        assert_eq!(decision, expected, "{name}");
    }
}

#[test]
fn a_namespace_whose_standard_forbids_capture_earns_a_warning_with_its_remedy() {
    let pod = json!({ "spec": { "containers": [{ "name": "web" }] } });
    for (standard, warned) in [
        ("restricted", true),
        ("baseline", true),
        ("privileged", false),
        ("", false),
    ] {
        let mut namespace = Namespace::enabled("shop");
        namespace
            .labels
            .insert(POD_SECURITY_LABEL.to_owned(), standard.to_owned());
        let outcome = inject_pod(&pod, &namespace, &InjectorConfig::default()).expect("injected");
        let expected = format!("namespace shop enforces the Pod Security Standard {standard}, ");
        let said = |Warning { message, .. }: &Warning| {
            message.starts_with(&expected)
                && message.contains("pod-security.kubernetes.io/enforce=privileged")
        };
        assert_eq!(outcome.warnings.iter().any(said), warned, "{standard}");
        // What is not injected meets the standard as before.
        let mut skipped = pod.clone();
        skipped["metadata"] = json!({ "labels": { "tulle.dev/inject": "disabled" } });
        let skipped =
            inject_pod(&skipped, &namespace, &InjectorConfig::default()).expect("skipped");
        assert!(skipped.warnings.is_empty());
    }
}

#[test]
fn an_opt_that_is_neither_value_is_refused_by_name_value_and_remedy() {
    let rows = [
        (
            "labels",
            "yes",
            "label tulle.dev/inject has the value \"yes\": write `enabled` or `disabled`, or remove the label",
        ),
        (
            "annotations",
            "",
            "annotation tulle.dev/inject has the value \"\": it is neither `enabled` nor `disabled`; \
             write `disabled` to opt out, or remove the annotation",
        ),
    ];
    for (place, value, expected) in rows {
        let pod = json!({
            "metadata": { place: { "tulle.dev/inject": value } },
            "spec": { "containers": [{ "name": "web" }] },
        });
        assert_eq!(
            decision(&pod, &Namespace::enabled("shop")),
            Err(expected.to_owned()),
            "{place}"
        );
    }
}

#[test]
fn a_decision_says_its_reason_in_words() {
    let rows = [
        (
            Decision::Inject(InjectReason::PodLabel),
            "injected: the pod is labelled",
        ),
        (
            Decision::Skip(SkipReason::HostNetwork),
            "skipped: hostNetwork pods",
        ),
    ];
    for (decision, expected) in rows {
        assert!(decision.to_string().starts_with(expected), "{decision}");
    }
}
