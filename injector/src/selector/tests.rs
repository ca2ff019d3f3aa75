//! What a selector selects, and which are refused.

use serde_json::{Value, json};

use super::*;

fn selector(value: Value) -> Result<Selector, SelectorError> {
    serde_json::from_value::<LabelSelector>(value)
        .expect("a selector")
        .try_into()
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
}

#[test]
fn each_operator_selects_as_in_kubernetes() {
    let rows = [
        (
            json!({ "matchLabels": { "app": "web" } }),
            [true, false, false],
        ),
        (
            expression("app", "In", &["web", "api"]),
            [true, false, false],
        ),
        (expression("app", "NotIn", &["web"]), [false, true, true]),
        (expression("app", "Exists", &[]), [true, true, false]),
        (expression("app", "DoesNotExist", &[]), [false, false, true]),
        (
            json!({
                "matchLabels": { "app": "web" },
                "matchExpressions": [{ "key": "tier", "operator": "Exists" }],
            }),
            [false, false, false],
        ),
        (
            expression("example.com/app", "DoesNotExist", &[]),
            [true, true, true],
        ),
    ];
    let labels = |pairs: &[(&str, &str)]| {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect::<BTreeMap<_, _>>()
    };
    let (web, other) = (
        labels(&[("app", "web")]),
        labels(&[("app", "db"), ("tier", "")]),
    );
    for (written, expected) in rows {
        let selector = selector(written.clone()).expect("valid");
        let selected = [Some(&web), Some(&other), None].map(|labels| selector.matches(labels));
        assert_eq!(selected, expected, "{written}");
    }
}

#[test]
fn a_selector_that_cannot_be_meant_is_refused_by_key_and_remedy() {
    let long = "a".repeat(64);
    let rows = [
        (json!({}), "the selector is empty"),
        (
            json!({ "matchLabels": {}, "matchExpressions": [] }),
            "the selector is empty",
        ),
        (
            expression("", "Exists", &[]),
            "the selector's key \"\" cannot be a label's",
        ),
        (
            expression("-app", "Exists", &[]),
            "the selector's key \"-app\" cannot",
        ),
        (
            expression("A.b/app", "Exists", &[]),
            "the selector's key \"A.b/app\" cannot",
        ),
        (
            expression("a..b/app", "Exists", &[]),
            "the selector's key \"a..b/app\" cannot",
        ),
        (
            expression("a/b/c", "Exists", &[]),
            "the selector's key \"a/b/c\" cannot",
        ),
        (expression(&long, "Exists", &[]), "the selector's key \"aaa"),
        (
            expression("app", "In", &["a b"]),
            "the selector's key app has the value \"a b\"",
        ),
        (
            expression("app", "in", &["web"]),
            "the selector's key app has the operator \"in\": write In",
        ),
        (
            expression("app", "NotIn", &[]),
            "the selector's key app has the operator NotIn and no values",
        ),
        (
            expression("app", "Exists", &["web"]),
            "the selector's key app has the operator Exists with values",
        ),
    ];
    for (written, expected) in rows {
        let error = selector(written.clone()).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{written}: {error}");
    }
}
