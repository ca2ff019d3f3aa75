//! CustomResourceDefinitions: which versions of a kind are served, if any.

use serde::Deserialize;

use super::watch::{Read, Reader};

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
pub(super) fn reader() -> Reader<Option<Definition>> {
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
