//! Objects of an API server: each of a kind that is known before it is read, in JSON.
//!
//! One that is fine is read once. Only for one that cannot be used it is looked for what is wrong, and where.

use serde_json::Value;

use super::{Outcome, Text, Whole, key_of, object};
use crate::source::document::{Document, Header, Malformed};
use crate::source::stack;
use crate::store::{Kind, ObjectKey, ObjectRef};

/// What an API server gave.
#[derive(Debug)]
pub(in crate::source) struct Known {
    /// What it is called; `None` if nobody can tell.
    pub(in crate::source) key: Option<ObjectKey>,
    /// Its `resourceVersion`.
    pub(in crate::source) version: Option<String>,
    /// What it is; never a list.
    pub(in crate::source) outcome: Outcome,
}

/// Reads an object.
pub(in crate::source) fn known(kind: Kind, json: &str) -> Known {
    match object(Text::Json(json), kind, None) {
        Ok(whole) => Known::of(kind, whole),
        // It may be nested as deep as somebody likes.
        Err(_) => stack::deep(|| broken(kind, json)),
    }
}

impl Known {
    fn of(kind: Kind, whole: Whole) -> Self {
        let Whole {
            key,
            version,
            parsed,
        } = whole;
        let outcome = match parsed {
            Ok(Some(object)) => Outcome::Object(object),
            Ok(None) => Outcome::Ignored,
            Err(invalid) if key.name.is_empty() => bad(kind, None, invalid.in_line(0)),
            Err(invalid) => bad(kind, Some(&key), invalid.in_line(0)),
        };
        Self {
            key: Some(key).filter(|key| !key.name.is_empty()),
            version,
            outcome,
        }
    }
}

/// Reads an object that does not have the shape of its kind.
fn broken(kind: Kind, json: &str) -> Known {
    // Spread over lines, so that what is wrong with it has a line and thereby a field.
    let spread = match serde_json::from_str::<Value>(json) {
        Ok(value) => format!("{value:#}"),
        Err(_) => json.to_owned(),
    };
    let document = Document::json(&spread);
    let problem = match object(Text::Document(&document), kind, None) {
        Ok(whole) => return Known::of(kind, whole),
        Err(problem) => problem,
    };
    let metadata = match document.read::<Header>() {
        Ok(header) => header.metadata,
        Err(_) => Default::default(),
    };
    let named = Some(&metadata).filter(|it| !it.name.is_empty());
    let key = named.map(|it| key_of(kind, &it.name, it.namespace.as_deref()));
    Known {
        outcome: bad(kind, key.as_ref(), problem),
        key,
        version: metadata.resource_version,
    }
}

fn bad(kind: Kind, key: Option<&ObjectKey>, problem: Malformed) -> Outcome {
    let reference = key.map(|key| ObjectRef {
        kind,
        key: key.clone(),
    });
    // Nobody sees the text that the lines are of.
    let message = match problem.message.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => problem.message,
    };
    Outcome::Bad {
        object: match &reference {
            Some(reference) => reference.to_string(),
            None => kind.to_string(),
        },
        reference,
        problem: Malformed {
            line: 0,
            field: problem.field,
            message,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Namespace, Object};

    fn problem(known: &Known) -> (String, String, String) {
        match &known.outcome {
            Outcome::Bad {
                object, problem, ..
            } => (
                object.clone(),
                problem.field.clone(),
                problem.message.clone(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_object_is_read_with_its_version() {
        let known = known(
            Kind::Namespace,
            r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"shop",
            "resourceVersion":"7","labels":{"tulle.dev/inject":"enabled","tulle.dev/rev":"canary"}}}"#,
        );
        assert_eq!(known.version.as_deref(), Some("7"));
        let expected = Namespace {
            inject: Some("enabled".into()),
            revision: Some("canary".into()),
            ..Namespace::new("shop")
        };
        match known.outcome {
            Outcome::Object(Object::Namespace(namespace)) => assert_eq!(namespace, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_of_a_wrong_shape_is_named_with_its_version_and_field() {
        let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
        for extra in ["1", &deep] {
            let json = format!(
                r#"{{"metadata":{{"name":"api","namespace":"shop","resourceVersion":"8"}},"spec":{{"ports":"none"}},"x":{extra}}}"#
            );
            let known = known(Kind::Service, &json);
            assert_eq!(known.key, Some(ObjectKey::new("shop", "api")));
            assert_eq!(known.version.as_deref(), Some("8"));
            let (object, field, message) = problem(&known);
            assert_eq!(object, "Service shop/api");
            assert!(
                message.contains("invalid type") && !message.contains("line"),
                "{message}"
            );
            // Deeper than YAML is read nobody looks.
            assert_eq!(field, if extra == "1" { "spec.ports" } else { "" });
        }
    }

    #[test]
    fn one_with_a_wrong_value_and_one_without_a_name_are_problems() {
        let value = r#"{"metadata":{"name":"api","namespace":"shop"},"spec":{"type":"Odd"}}"#;
        let (object, field, message) = problem(&known(Kind::Service, value));
        assert_eq!(
            (object.as_str(), field.as_str()),
            ("Service shop/api", "spec.type")
        );
        assert!(message.contains("ClusterIP"), "{message}");
        for json in ["{", r#"{"metadata":null}"#, "7"] {
            let known = known(Kind::Service, json);
            let (object, _, _) = problem(&known);
            assert_eq!((object.as_str(), known.key), ("Service", None), "{json}");
        }
    }
}
