//! Label selectors as Kubernetes has them, of pods that an operator wants always or never injected.
//!
//! Parsed once and whole: a selector that Kubernetes would refuse is refused by key, value and remedy, and so is an empty
//! one, which Kubernetes takes for every object.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Longest name, and longest value, of a label.
const MAX_NAME: usize = 63;
/// Longest prefix of a label's name: that of a DNS name.
const MAX_PREFIX: usize = 253;

/// Labels that a pod must have, and must not have. All of its requirements hold at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

/// A selector that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It selects everything.
    #[error("the selector is empty and would select every pod: name a label")]
    Empty,
    /// No label can have the key.
    #[error(
        "the selector's key {key:?} cannot be a label's: write letters, digits, `-`, `_` and `.`, at most 63, after a DNS \
         name and a slash if it has a prefix"
    )]
    Key {
        /// The key.
        key: String,
    },
    /// No label can have the value.
    #[error(
        "the selector's key {key} has the value {value:?}, which cannot be a label's: write letters, digits, `-`, `_` and \
         `.`, at most 63"
    )]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// There is no such operator.
    #[error(
        "the selector's key {key} has the operator {operator:?}: write In, NotIn, Exists or DoesNotExist"
    )]
    Operator {
        /// The key.
        key: String,
        /// The operator.
        operator: String,
    },
    /// An operator that compares has nothing to compare with.
    #[error(
        "the selector's key {key} has the operator {operator} and no values: name at least one"
    )]
    NoValues {
        /// The key.
        key: String,
        /// The operator.
        operator: String,
    },
    /// An operator that asks for the key alone has values.
    #[error(
        "the selector's key {key} has the operator {operator} with values: remove them, or write In or NotIn"
    )]
    Values {
        /// The key.
        key: String,
        /// The operator.
        operator: String,
    },
}

impl Selector {
    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key));
            match &requirement.what {
                What::In(values) => value.is_some_and(|value| values.contains(value)),
                What::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                What::Exists => value.is_some(),
                What::DoesNotExist => value.is_none(),
            }
        })
    }
}

impl TryFrom<LabelSelector> for Selector {
    type Error = SelectorError;

    fn try_from(selector: LabelSelector) -> Result<Self, SelectorError> {
        let labels = selector.match_labels.into_iter().flatten();
        let equal = labels.map(|(key, value)| LabelSelectorRequirement {
            key,
            operator: "In".to_owned(),
            values: Some(vec![value]),
        });
        let expressions = selector.match_expressions.into_iter().flatten();
        let requirements = equal.chain(expressions).map(Requirement::try_from);
        let requirements = requirements.collect::<Result<Vec<_>, _>>()?;
        if requirements.is_empty() {
            return Err(SelectorError::Empty);
        }
        Ok(Self(requirements))
    }
}

impl TryFrom<LabelSelectorRequirement> for Requirement {
    type Error = SelectorError;

    fn try_from(requirement: LabelSelectorRequirement) -> Result<Self, SelectorError> {
        let LabelSelectorRequirement {
            key,
            operator,
            values,
        } = requirement;
        if !is_key(&key) {
            return Err(SelectorError::Key { key });
        }
        let values = BTreeSet::from_iter(values.unwrap_or_default());
        if let Some(value) = values.iter().find(|value| !is_value(value)) {
            let value = value.clone();
            return Err(SelectorError::Value { key, value });
        }
        let what = match (operator.as_str(), values.is_empty()) {
            ("In", false) => What::In(values),
            ("NotIn", false) => What::NotIn(values),
            ("Exists", true) => What::Exists,
            ("DoesNotExist", true) => What::DoesNotExist,
            ("In" | "NotIn", true) => return Err(SelectorError::NoValues { key, operator }),
            ("Exists" | "DoesNotExist", false) => {
                return Err(SelectorError::Values { key, operator });
            }
            _ => return Err(SelectorError::Operator { key, operator }),
        };
        Ok(Self { key, what })
    }
}

fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_dns = |prefix: &str| {
        let part = |part: &str| {
            is_value(part)
                && !part.is_empty()
                && !part.contains(|c: char| c == '_' || c.is_ascii_uppercase())
        };
        prefix.len() <= MAX_PREFIX && prefix.split('.').all(part)
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_dns)
}

fn is_value(value: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.len() <= MAX_NAME
        && value.chars().all(inside)
        && value.chars().next().is_none_or(edge)
        && value.chars().next_back().is_none_or(edge)
}

#[cfg(test)]
mod tests;
