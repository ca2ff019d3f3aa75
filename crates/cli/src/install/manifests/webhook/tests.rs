//! The API server asks about the pods that the injector would give a sidecar, or refuse, and about each once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tulle_injector::{
    Decision, InjectorConfig, Namespace, Revision, Selector, SkipReason, inject_pod,
};

use super::*;
use crate::install::values::{Layered, Profile};

/// What a label can say: nothing, an empty word, and words; of revisions two that are installed and one that is not.
const INJECT: [Option<&str>; 5] = [
    None,
    Some(""),
    Some("enabled"),
    Some("disabled"),
    Some("yes"),
];
const REVISIONS: [Option<&str>; 5] = [None, Some(""), Some("default"), Some("next"), Some("gone")];

/// Pods that the operator always wants injected.
const ALWAYS: &str = r#"{"matchLabels":{"app":"build"},"matchExpressions":[{"key":"tier","operator":"NotIn","values":["x"]}]}"#;

type Labels = BTreeMap<String, String>;

fn labelled() -> Vec<Labels> {
    let all = INJECT
        .iter()
        .flat_map(|inject| REVISIONS.map(|revision| (*inject, revision)));
    let labels = all.map(|(inject, revision)| {
        let named = [(labels::INJECT, inject), (labels::REVISION, revision)];
        let set = named
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        set.collect()
    });
    labels.collect()
}

fn selector(json: &Value) -> Selector {
    let selector: LabelSelector = serde_json::from_value(json.clone()).expect("a selector");
    Selector::try_from(selector).expect("one that selects")
}

/// The names of the webhooks that are asked about such a pod. Each sees what those before it have made of it, which is the same
/// for all: with a sidecar it has other labels.
fn asked(
    webhooks: &[Value],
    namespace: &Labels,
    pod: &Labels,
    injected: Option<&Labels>,
) -> Vec<String> {
    let selects = |json: &Value, labels: &Labels| selector(json).matches(Some(labels));
    let mut asked = Vec::new();
    for webhook in webhooks {
        let seen = injected.filter(|_| !asked.is_empty()).unwrap_or(pod);
        if selects(&webhook["namespaceSelector"], namespace)
            && selects(&webhook["objectSelector"], seen)
        {
            asked.push(webhook["name"].to_string());
        }
    }
    asked
}

#[test]
fn the_api_server_asks_once_about_each_pod_that_the_injector_does_something_to() {
    let (mut together, mut idle) = (0, 0);
    for revision in ["default", "next"] {
        let values = Layered::new(Profile::Default)
            .set(&format!("revision={revision}"))
            .and_then(|values| values.set(&format!("injector.alwaysInject=[{ALWAYS}]")))
            .and_then(Layered::values)
            .expect("good values");
        let install = Install::new(&values);
        let webhooks = webhooks(&install);
        let config = InjectorConfig {
            revision: revision.parse::<Revision>().expect("a name"),
            always: vec![selector(&serde_json::from_str(ALWAYS).expect("JSON"))],
            ..InjectorConfig::default()
        };
        for of_namespace in labelled() {
            let namespace = Namespace {
                name: "shop".to_owned(),
                labels: of_namespace,
            };
            let mut seen = namespace.labels.clone();
            seen.insert("kubernetes.io/metadata.name".to_owned(), "shop".to_owned());
            let builds = labelled().into_iter().map(|mut pod| {
                pod.insert("app".to_owned(), "build".to_owned());
                pod
            });
            for pod in labelled().into_iter().chain(builds) {
                let object = json!({ "metadata": { "labels": pod }, "spec": { "containers": [{ "name": "web" }] } });
                let outcome = inject_pod(&object, &namespace, &config);
                let injected: Option<Labels> = outcome.as_ref().ok().map(|outcome| {
                    let labels = outcome.document["metadata"]["labels"].clone();
                    serde_json::from_value(labels).expect("labels")
                });
                let decision = outcome.map(|outcome| outcome.decision);
                let asked = asked(&webhooks, &seen, &pod, injected.as_ref());
                let case = format!(
                    "{revision}: {:?}, {pod:?}: {decision:?}, {asked:?}",
                    namespace.labels
                );
                match decision {
                    Ok(Decision::Skip(SkipReason::OtherRevision)) => {
                        // Only one that names another revision where it is not told apart from one that names none.
                        let named = pod
                            .get(labels::REVISION)
                            .is_some_and(|name| !name.is_empty());
                        assert!(asked.is_empty() || named && asked.len() == 1, "{case}");
                    }
                    Ok(Decision::Skip(SkipReason::NotSelected)) => {
                        // Only where the namespace says a word that is none.
                        let odd = namespace
                            .labels
                            .get(labels::INJECT)
                            .is_some_and(|it| it.is_empty() || it == "yes");
                        assert!(asked.is_empty() || odd && asked.len() == 1, "{case}");
                        idle += usize::from(asked.is_empty());
                    }
                    Ok(Decision::Skip(_)) => assert!(asked.is_empty(), "{case}"),
                    Ok(Decision::Inject(_)) | Err(_) => {
                        assert_eq!(asked.len(), 1, "{case}");
                        together += 1;
                    }
                }
            }
        }
        for system in SYSTEM_NAMESPACES {
            let enabled = [
                ("kubernetes.io/metadata.name", system),
                (labels::INJECT, "enabled"),
                (labels::REVISION, revision),
            ];
            let enabled = enabled.map(|(name, value)| (name.to_owned(), value.to_owned()));
            for pod in labelled() {
                assert!(
                    asked(&webhooks, &enabled.clone().into(), &pod, None).is_empty(),
                    "{system}"
                );
            }
        }
    }
    assert!(together > 0 && idle > 0);
}
