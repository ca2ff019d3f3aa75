//! Amounts as Kubernetes reads them, which YAML may have as numbers.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;
use tulle_injector::quantity;

/// What the chart's schema can say of it.
pub(super) const PATTERN: &str = "^[0-9]+([.][0-9]+)?([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$";
/// The same, of what may be left empty.
pub(super) const OPTIONAL: &str = "^([0-9]+([.][0-9]+)?([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?)?$";

/// An amount, such as `100m` or `64Mi`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Quantity(String);

/// A text, or a number in its place.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(Number),
}

/// Reads a text that may be written as a number.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Written::deserialize(from)? {
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        if quantity::cpu(&text)
            .or_else(|| quantity::memory(&text))
            .is_some()
        {
            return Ok(Self(text));
        }
        Err(D::Error::custom(format!(
            "{text:?} is no quantity: write one such as 100m or 64Mi"
        )))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount, such as `100m` or `64Mi`.",
            "type": ["string", "number"],
            "minimum": 0,
            "pattern": PATTERN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_text_or_a_number() {
        let read = |text: &str| serde_json::from_str::<Quantity>(text).map(|it| it.0);
        for (text, expected) in [
            ("1", "1"),
            ("0.25", "0.25"),
            (r#""100m""#, "100m"),
            (r#""64Mi""#, "64Mi"),
            (r#""100u""#, "100u"),
            (r#""1e9""#, "1e9"),
            (r#""1Pi""#, "1Pi"),
        ] {
            assert_eq!(read(text).expect(text), expected);
        }
        for text in [r#""""#, r#""1g""#, r#""abc""#, "-1", "null", "[]"] {
            assert!(read(text).is_err(), "{text}");
        }
        let refused = read(r#""1g""#).expect_err("no quantity").to_string();
        assert!(refused.contains("such as 100m"), "{refused}");
    }
}
