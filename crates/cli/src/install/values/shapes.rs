//! What Kubernetes, or the injector, makes more of: here they only say what can be read.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::LABEL;

/// Which pods, by labels. One that says nothing would mean every pod of the cluster, and is refused.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    { "required": ["matchLabels"], "properties": { "matchLabels": { "minProperties": 1 } } },
    { "required": ["matchExpressions"], "properties": { "matchExpressions": { "minItems": 1 } } },
]))]
#[expect(
    dead_code,
    reason = "it says what can be read; the injector makes more of it"
)]
pub(super) struct PodSelector {
    /// Labels that they have.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "pattern": LABEL }))]
    match_labels: BTreeMap<String, String>,
    /// What else holds of their labels.
    #[serde(default)]
    match_expressions: Vec<PodRequirement>,
}

/// What holds of one label.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "if" = { "properties": { "operator": { "enum": ["In", "NotIn"] } } },
    "then" = { "required": ["values"], "properties": { "values": { "minItems": 1 } } },
    "else" = { "properties": { "values": { "maxItems": 0 } } },
))]
#[expect(
    dead_code,
    reason = "it says what can be read; the injector makes more of it"
)]
struct PodRequirement {
    /// Name of the label.
    #[schemars(regex(pattern = LABEL))]
    key: String,
    /// How it is compared.
    operator: Operator,
    /// With what.
    #[serde(default)]
    values: Vec<String>,
}

/// How a label is compared.
#[derive(Deserialize, JsonSchema)]
enum Operator {
    /// It is one of the values.
    In,
    /// It is none of them.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A taint that is tolerated.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "it says what can be read; Kubernetes makes more of it"
)]
pub(super) struct Toleration {
    /// Its key; every one if there is none.
    key: Option<String>,
    /// How its value is compared.
    operator: Option<TaintOperator>,
    /// With what.
    value: Option<String>,
    /// What the taint does; whatever it is if nothing is said.
    effect: Option<TaintEffect>,
    /// How long a pod stays that runs when the taint comes.
    toleration_seconds: Option<i64>,
}

/// How a taint's value is compared.
#[derive(Deserialize, JsonSchema)]
enum TaintOperator {
    /// It is there.
    Exists,
    /// It is this one.
    Equal,
    /// It is a lower number.
    Lt,
    /// It is a higher number.
    Gt,
}

/// What a taint does.
#[derive(Deserialize, JsonSchema)]
enum TaintEffect {
    /// No pod is placed there.
    NoSchedule,
    /// One is where there is no other place.
    PreferNoSchedule,
    /// Those that run there go.
    NoExecute,
}
