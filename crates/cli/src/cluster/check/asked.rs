//! Labels that ask for the mesh in words that nobody reads: they are ignored, and so is who wrote them.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;
use tulle_runtime::names::{DEFAULT_REVISION, labels};

use super::finding::{Findings, Level};
use super::injectors::Injectors;
use super::workloads::by_workload;
use crate::cluster::asks;

/// What [`labels::INJECT`] may say.
const WORDS: [&str; 2] = ["enabled", "disabled"];

/// Pods that may have said something in vain, as a selector.
pub(super) fn selectors(injectors: &Injectors) -> [String; 2] {
    let (inject, revision) = (labels::INJECT, labels::REVISION);
    [
        format!("{inject},{inject} notin ({})", WORDS.join(",")),
        format!("{revision},{revision} notin ({})", injectors.said()),
    ]
}

/// Whether a namespace asks for a revision, if it names one.
pub(super) fn revision(namespace: &Namespace) -> Option<&str> {
    let named = namespace.labels().get(labels::REVISION);
    named.map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether new pods of a namespace get sidecars of a revision unless they say otherwise, by its name or because none is named.
pub(in crate::cluster) fn ask_for(namespace: &Namespace, wanted: &str) -> bool {
    let inject = namespace.labels().get(labels::INJECT).map(String::as_str);
    let named = revision(namespace);
    labels::ask_for_the_mesh(inject, named) && named.unwrap_or(DEFAULT_REVISION) == wanted
}

pub(super) fn namespaces(namespaces: &[Namespace], injectors: &Injectors, findings: &mut Findings) {
    for namespace in namespaces {
        let name = namespace.name_any();
        let subject = format!("namespace {name}");
        let inject = namespace.labels().get(labels::INJECT).map(String::as_str);
        if let Some(value) = inject.filter(|value| !WORDS.contains(value)) {
            findings.warning(
                subject,
                format!("{}, and its pods get no sidecar", neither_word(value)),
                format!(
                    "kubectl label namespace {name} --overwrite {}={}, and restart its pods",
                    labels::INJECT,
                    meant(value)
                ),
            );
            continue;
        }
        let named = revision(namespace);
        if served(namespace, injectors) || (named.is_none() && !asks(namespace)) {
            continue;
        }
        let revision = named.unwrap_or(DEFAULT_REVISION);
        let state = match named {
            Some(_) => format!(
                "its label {}={revision} names no revision that there is",
                labels::REVISION
            ),
            None => {
                format!("it names no revision, which means {revision}, and there is no such one")
            }
        };
        let remedy = format!(
            "name one that there is ({}): kubectl label namespace {name} --overwrite {}=NAME ; or install it: tulle install --revision \
             {revision}",
            injectors.said(),
            labels::REVISION
        );
        match labels::ask_for_the_mesh(inject, named) {
            true => findings.error(subject, format!("{state}: its pods get no sidecar"), remedy),
            false => findings.warning(subject, state, remedy),
        }
    }
}

/// By workload, what labels of its pods say.
pub(super) fn pods(pods: &[Pod], injectors: &Injectors, findings: &mut Findings) {
    let in_vain = |pod: &Pod| {
        let label = |key: &str| pod.labels().get(key).map(String::as_str);
        let word = label(labels::INJECT).filter(|value| !WORDS.contains(value));
        let revision = label(labels::REVISION).filter(|it| !it.is_empty());
        let revision = revision.filter(|it| unknown(it, injectors)).map(|it| {
            format!(
                "the label {}={it} of its pods names no revision that there is ({})",
                labels::REVISION,
                injectors.said()
            )
        });
        let word = word.map(|value| format!("{} (its pods')", neither_word(value)));
        word.into_iter().chain(revision).collect()
    };
    findings.few(
        Level::Warning,
        by_workload(pods, in_vain),
        "correct the label in its pod template, or where there is none that of its namespace, and restart it",
    );
}

/// Whether there is an injector for the pods of a namespace that say nothing of revisions themselves.
fn served(namespace: &Namespace, injectors: &Injectors) -> bool {
    !unknown(revision(namespace).unwrap_or(DEFAULT_REVISION), injectors)
}

fn unknown(revision: &str, injectors: &Injectors) -> bool {
    !injectors.are_none() && !injectors.have(revision)
}

fn neither_word(value: &str) -> String {
    format!(
        "the label {}={value:?} is neither `{}` nor `{}`",
        labels::INJECT,
        WORDS[0],
        WORDS[1]
    )
}

/// What somebody meant who knows other meshes, or wrote in a hurry.
fn meant(value: &str) -> &'static str {
    let value = value.to_lowercase();
    let no = ["false", "no", "off", "0", "never", "none", "skip"];
    match no.contains(&&*value) || value.starts_with("dis") {
        true => WORDS[1],
        false => WORDS[0],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn injectors() -> Injectors {
        installed(["tulle-injector", "tulle-injector-next"])
    }

    fn installed<const N: usize>(names: [&str; N]) -> Injectors {
        let deployment = |name: &str| {
            let template = json!({ "spec": { "containers": [] } });
            let spec = json!({ "selector": {}, "template": template });
            serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec }))
        };
        let all = names.map(deployment);
        Injectors::of(&all.map(|it| it.expect("a Deployment")))
    }

    #[test]
    fn namespaces_that_name_no_revision_are_the_default_ones_and_found_where_that_is_gone() {
        let canary = installed(["tulle-injector-next"]);
        for (labels, injectors, expected) in [
            (json!({ "tulle.dev/inject": "enabled" }), &canary, true),
            (
                json!({ "tulle.dev/inject": "enabled", "tulle.dev/rev": "" }),
                &canary,
                true,
            ),
            (json!({ "tulle.dev/rev": "next" }), &canary, false),
            (json!({ "tulle.dev/inject": "disabled" }), &canary, false),
            (json!({}), &canary, false),
            (
                json!({ "tulle.dev/inject": "enabled" }),
                &injectors(),
                false,
            ),
        ] {
            let namespace = json!({ "metadata": { "name": "shop", "labels": labels } });
            let namespace = serde_json::from_value(namespace).expect("a namespace");
            let mut findings = Findings::default();
            namespaces(&[namespace], injectors, &mut findings);
            let found = findings.all.first();
            let level = found.map(|it| it.level);
            assert_eq!(level, expected.then_some(Level::Error), "{labels}");
            if let Some(found) = found {
                assert!(found.state.contains("which means default"), "{found:?}");
            }
        }
    }

    #[test]
    fn a_namespace_asks_for_the_revision_that_it_names_or_for_the_default_one() {
        for (labels, default, next) in [
            (json!({ "tulle.dev/inject": "enabled" }), true, false),
            (
                json!({ "tulle.dev/inject": "enabled", "tulle.dev/rev": "" }),
                true,
                false,
            ),
            (
                json!({ "tulle.dev/inject": "enabled", "tulle.dev/rev": "next" }),
                false,
                true,
            ),
            (json!({ "tulle.dev/rev": "next" }), false, true),
            (json!({ "tulle.dev/rev": "default" }), true, false),
            (json!({ "tulle.dev/rev": "" }), false, false),
            (
                json!({ "tulle.dev/inject": "disabled", "tulle.dev/rev": "next" }),
                false,
                false,
            ),
            (json!({}), false, false),
        ] {
            let namespace = json!({ "metadata": { "name": "shop", "labels": labels } });
            let namespace = serde_json::from_value(namespace).expect("a namespace");
            let asked = ["default", "next"].map(|revision| ask_for(&namespace, revision));
            assert_eq!(asked, [default, next], "{labels}");
        }
    }

    #[test]
    fn namespaces_that_ask_in_other_words_hear_the_right_one() {
        for (labels, expected) in [
            (json!({ "tulle.dev/inject": "enabled" }), None),
            (json!({ "tulle.dev/inject": "disabled" }), None),
            (json!({ "tulle.dev/rev": "next" }), None),
            (json!({ "tulle.dev/rev": "" }), None),
            (json!({}), None),
            (
                json!({ "tulle.dev/inject": "true" }),
                Some((Level::Warning, "inject=enabled")),
            ),
            (
                json!({ "tulle.dev/inject": "Enabled" }),
                Some((Level::Warning, "inject=enabled")),
            ),
            (
                json!({ "tulle.dev/inject": "" }),
                Some((Level::Warning, "inject=enabled")),
            ),
            (
                json!({ "tulle.dev/inject": "false" }),
                Some((Level::Warning, "inject=disabled")),
            ),
            (
                json!({ "tulle.dev/rev": "nosuch" }),
                Some((Level::Error, "(default, next)")),
            ),
            (
                json!({ "tulle.dev/rev": "nosuch", "tulle.dev/inject": "disabled" }),
                Some((Level::Warning, "(default, next)")),
            ),
        ] {
            let namespace = json!({ "metadata": { "name": "shop", "labels": labels } });
            let namespace = serde_json::from_value(namespace).expect("a namespace");
            let mut findings = Findings::default();
            namespaces(&[namespace], &injectors(), &mut findings);
            let found = findings.all.first();
            assert_eq!(
                found.map(|it| it.level),
                expected.map(|it| it.0),
                "{labels}"
            );
            if let Some((found, (_, words))) = found.zip(expected) {
                let remedy = found.remedy.as_deref().expect("a remedy");
                assert!(remedy.contains(words), "{labels}: {remedy}");
            }
        }
    }

    #[test]
    fn nobody_is_told_of_revisions_where_none_can_be_seen() {
        let namespace = json!({ "metadata": { "name": "a", "labels": { "tulle.dev/rev": "b" } } });
        let namespace = serde_json::from_value(namespace).expect("a namespace");
        let mut findings = Findings::default();
        namespaces(&[namespace], &Injectors::default(), &mut findings);
        assert!(findings.all.is_empty(), "{findings:?}");
    }

    #[test]
    fn pods_that_ask_in_vain_are_told_once_a_workload() {
        let pod = |name: &str, labels: serde_json::Value| {
            let owner = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "1", "controller": true });
            let metadata = json!({
                "name": name, "namespace": "shop", "labels": labels, "ownerReferences": [owner],
            });
            serde_json::from_value(json!({ "metadata": metadata })).expect("a pod")
        };
        let mut findings = Findings::default();
        let yes = || json!({ "tulle.dev/inject": "yes", "tulle.dev/rev": "next" });
        let fine = json!({ "tulle.dev/inject": "enabled", "tulle.dev/rev": "" });
        let all = [
            pod("db-0", yes()),
            pod("db-1", yes()),
            pod("db-2", json!({ "tulle.dev/rev": "gone" })),
            pod("db-3", fine),
        ];
        pods(&all, &injectors(), &mut findings);
        let told: Vec<_> = findings
            .all
            .iter()
            .map(|it| (&*it.subject, &*it.state))
            .collect();
        assert_eq!(
            told,
            [
                (
                    "shop/statefulset/db",
                    "the label tulle.dev/inject=\"yes\" is neither `enabled` nor `disabled` (its pods')"
                ),
                (
                    "shop/statefulset/db",
                    "the label tulle.dev/rev=gone of its pods names no revision that there is (default, next)"
                ),
            ]
        );
    }
}
