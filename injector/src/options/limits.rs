//! Limits of one pod's sidecar: an annotation each, read by the very code that the sidecar reads them with.

use std::collections::BTreeMap;

use tulle_runtime::env::Env;
use tulle_runtime::limits::{self, Limits};
use tulle_runtime::names::{annotations as names, variables};

use super::Annotations;
use crate::config::Resources;
use crate::{InjectError, quantity};

/// The variables that the pod sets. A pod that relies on a limit must not run without it, so an annotation that names none
/// is refused.
pub(super) fn parse(
    annotations: Annotations<'_>,
) -> Result<BTreeMap<&'static str, String>, InjectError> {
    let mut set = BTreeMap::new();
    for (name, value) in said(annotations) {
        let variable = limits::of_annotation(name).ok_or_else(|| InjectError::UnknownLimit {
            name: name.to_owned(),
            known: known(),
        })?;
        let value = value.trim();
        if value.is_empty() {
            return Err(refused(
                variable,
                value,
                "it is empty; remove it for the default",
            ));
        }
        set.insert(variable, value.to_owned());
    }
    let env = Env::from_pairs(set.clone());
    let _ = Limits::from_env(&env);
    if let Err(errors) = env.finish()
        && let Some((variable, reason)) = errors.problems().next()
    {
        let value = set.get(variable).map_or("", String::as_str);
        return Err(refused(variable, value, reason));
    }
    Ok(set)
}

/// What is allowed, but has no effect.
pub(super) fn warning(
    set: &BTreeMap<&'static str, String>,
    resources: &Resources,
) -> Option<String> {
    let said = set.get(variables::MEMORY_LIMIT)?;
    let limit = resources.memory_limit.as_deref()?;
    let more = quantity::memory(said)? > quantity::memory(limit)?;
    more.then(|| {
        format!(
            "annotation {} allows {said}, but the sidecar's container has {limit}: raise {} as well",
            limits::annotation(variables::MEMORY_LIMIT),
            names::MEMORY_LIMIT,
        )
    })
}

fn said(annotations: Annotations<'_>) -> impl Iterator<Item = (&str, &str)> {
    let all = annotations.into_iter().flatten();
    all.map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| name.starts_with(names::LIMITS))
}

fn refused(variable: &str, value: &str, problem: &str) -> InjectError {
    InjectError::Limit {
        name: limits::annotation(variable),
        value: value.to_owned(),
        problem: problem.to_owned(),
    }
}

/// The names of all limits, for whoever mistyped one.
fn known() -> String {
    let name = |variable: &str| limits::annotation(variable).replace(names::LIMITS, "");
    limits::VARIABLES.map(name).join(", ")
}
