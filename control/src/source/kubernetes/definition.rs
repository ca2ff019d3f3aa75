//! CustomResourceDefinitions: which versions of a kind are served, if any.

use kube::Client;
use serde::Deserialize;

use super::health::Health;
use super::watch::{Happened, Read, Reader, Settings, Watch};
use super::wire::Resource;
use crate::source::report::SourceReport;

/// Follows one definition.
pub(super) struct Definitions {
    watch: Watch<Option<Definition>>,
    /// What the list that is under way has.
    listed: Option<Option<Definition>>,
}

impl Definitions {
    /// Follows the one of that name, which this resource is.
    pub(super) fn new(
        client: Client,
        name: &str,
        resource: Resource,
        settings: Settings,
        report: &SourceReport,
    ) -> Self {
        let kind = format!("CustomResourceDefinition/{name}");
        let health = Health::new(kind.clone().into(), kind.into(), report)
            .without("whether there is such a kind is not known");
        Self {
            watch: Watch::new(client, resource, reader(), settings, health),
            listed: None,
        }
    }

    /// What it says, whenever that may be news; `None` if there is none.
    pub(super) async fn next(&mut self) -> Option<Definition> {
        loop {
            match self.watch.next().await {
                Happened::Begun => self.listed = None,
                Happened::Found(found) => self.listed = found.into_iter().next(),
                Happened::Complete => match self.listed.take() {
                    // It is there, and nobody can tell what it says.
                    Some(None) => {}
                    Some(definition) => return definition,
                    None => return None,
                },
                Happened::Changed(None) => {}
                Happened::Changed(definition) => return definition,
                Happened::Gone(_) => return None,
            }
        }
    }
}

/// A definition, and no other.
pub(super) fn resource(selector: &'static str) -> Resource {
    Resource {
        selector: Some(selector),
        ..Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }
}

/// The part of a CustomResourceDefinition that counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Definition {
    /// Versions that are served, in the order of the object; none before it is established.
    pub(super) served: Vec<String>,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    resource_version: Option<String>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    name: String,
    served: bool,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// Reads definitions; `None` is one that cannot be read.
fn reader() -> Reader<Option<Definition>> {
    Box::new(|text| match serde_json::from_str::<Object>(text) {
        Ok(object) => Read {
            version: object.metadata.resource_version.clone(),
            item: Some(object.into()),
        },
        Err(error) => {
            tracing::warn!(%error, "a CustomResourceDefinition cannot be read; what is known of it stays in force");
            Read {
                version: None,
                item: None,
            }
        }
    })
}

impl From<Object> for Definition {
    fn from(object: Object) -> Self {
        let mut conditions = object.status.conditions.into_iter().flatten();
        let established = conditions.any(|it| it.r#type == "Established" && it.status == "True");
        let served = object.spec.versions.into_iter();
        let served = served.filter(|it| established && it.served);
        Self {
            served: served.map(|it| it.name).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_serves_what_it_says_once_it_is_established() {
        let text = |status: &str| {
            format!(
                r#"{{"metadata":{{"name":"a","resourceVersion":"7"}},"spec":{{"versions":[
                {{"name":"v1","served":true}},{{"name":"v1beta1","served":false}}]}},
                "status":{{"conditions":[{{"type":"NamesAccepted","status":"True"}},{{"type":"Established","status":"{status}"}}]}}}}"#
            )
        };
        for (status, served) in [("True", vec!["v1"]), ("False", vec![])] {
            let read = reader()(&text(status));
            assert_eq!(read.version.as_deref(), Some("7"));
            assert_eq!(
                read.item.map(|it| it.served),
                Some(served.iter().map(ToString::to_string).collect())
            );
        }
        let fresh = r#"{"metadata":{},"spec":{"versions":[{"name":"v1","served":true}]}}"#;
        assert_eq!(reader()(fresh).item, Some(Definition { served: vec![] }));
        assert_eq!(reader()("{}").item, None);
    }
}
