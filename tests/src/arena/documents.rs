//! Manifests of a test, put into its namespace, and what must be there when they have come true.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::{Value, json};
use tulle_runtime::names::labels;

/// Kinds that are not in a namespace.
const CLUSTER_KINDS: [&str; 1] = ["Namespace"];

/// The documents.
#[derive(Debug)]
pub(super) struct Documents {
    namespace: String,
    documents: Vec<Value>,
}

impl Documents {
    pub(super) fn parse(namespace: &str, text: &str) -> anyhow::Result<Self> {
        let parsed: Vec<Value> = serde_saphyr::from_multiple(text)
            .with_context(|| format!("the manifests of {namespace} cannot be read"))?;
        let mut documents: Vec<_> = parsed.into_iter().filter(Value::is_object).collect();
        let named = documents.iter().any(|document| {
            document["kind"] == "Namespace" && document["metadata"]["name"] == namespace
        });
        for document in &mut documents {
            let clustered = CLUSTER_KINDS.iter().any(|kind| document["kind"] == *kind);
            if !clustered && document["metadata"].get("namespace").is_none() {
                document["metadata"]["namespace"] = namespace.into();
            }
        }
        if !named {
            let metadata = json!({ "name": namespace, "labels": { labels::INJECT: "enabled" } });
            documents.insert(
                0,
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }),
            );
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            documents,
        })
    }

    pub(super) fn render(&self) -> String {
        let documents = self.documents.iter();
        documents
            .map(|document| format!("---\n{document:#}\n"))
            .collect()
    }

    /// How many pods there must be.
    pub(super) fn pods(&self) -> usize {
        self.workloads().map(|(_, replicas)| replicas).sum()
    }

    /// How many pods each Service with a selector must have, by the Service's key.
    pub(super) fn services(&self) -> BTreeMap<String, usize> {
        let of_kind = self
            .documents
            .iter()
            .filter(|document| document["kind"] == "Service");
        of_kind
            .filter_map(|service| {
                let name = service["metadata"]["name"].as_str()?;
                let selector = service["spec"]["selector"].as_object()?;
                let selected = self.workloads().filter(|(labels, _)| {
                    selector
                        .iter()
                        .all(|(label, value)| labels.get(label) == Some(value))
                });
                let pods = selected.map(|(_, replicas)| replicas).sum();
                Some((format!("{}/{name}", self.namespace), pods))
            })
            .collect()
    }

    /// The labels of each workload's pods, and their number.
    fn workloads(&self) -> impl Iterator<Item = (&Value, usize)> {
        self.documents
            .iter()
            .filter_map(|document| match document["kind"].as_str()? {
                "Pod" => Some((&document["metadata"]["labels"], 1)),
                "Deployment" | "StatefulSet" => {
                    let replicas = document["spec"]["replicas"].as_u64().unwrap_or(1);
                    let labels = &document["spec"]["template"]["metadata"]["labels"];
                    Some((labels, usize::try_from(replicas).ok()?))
                }
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::app;

    #[test]
    fn documents_are_put_into_the_namespace_which_is_made_with_injection() {
        let apps = app("web").http(80).replicas(2) + app("client");
        let documents = Documents::parse("t", apps.as_ref()).expect("parsed");
        let text = documents.render();
        assert!(text.contains(r#""tulle.dev/inject": "enabled""#), "{text}");
        assert!(text.contains(r#""namespace": "t""#), "{text}");
        assert_eq!(documents.pods(), 3);
        assert_eq!(
            documents.services(),
            BTreeMap::from([("t/web".to_owned(), 2)])
        );
    }

    #[test]
    fn a_namespace_of_the_test_s_own_is_left_as_it_is() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: t}\n---\nkind: Pod\nmetadata: {name: p, namespace: u}\n";
        let text = Documents::parse("t", text).expect("parsed").render();
        assert!(!text.contains("inject"), "{text}");
        assert!(text.contains(r#""namespace": "u""#), "{text}");
    }
}
