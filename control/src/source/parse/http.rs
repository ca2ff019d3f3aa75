//! HTTPRoute.

mod filters;
mod matching;

use std::collections::BTreeSet;

use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteRules, HttpRouteRulesBackendRefsFiltersType as BackendFilter,
    HttpRouteRulesRetry,
};
use http::StatusCode;

use super::route::{self, backend_of, modify_headers, parents};
use super::{Invalid, fields};
use crate::store::route::{
    Action, Backend, Forward, HeaderChanges, Match, PathMatch, Retry, Route, RouteKind, Rule,
};
use crate::store::{Object, ObjectKey};
use filters::Filters;

/// Reads a route; one without a Service among its parents is not used.
pub(super) fn route(key: ObjectKey, object: HttpRoute) -> Result<Option<Object>, Invalid> {
    let parents = parents!(&key, object.spec);
    if parents.is_empty() {
        return Ok(None);
    }
    // An API server fills in a rule for every request where there is none.
    let given = object
        .spec
        .rules
        .unwrap_or_else(|| vec![HttpRouteRules::default()]);
    let mut rules = Vec::new();
    for (index, it) in given.iter().enumerate() {
        rules.push(rule(&format!("spec.rules[{index}]"), &key, it)?);
    }
    let created = fields::created(&object.metadata);
    Ok(Some(Object::Route(Route {
        kind: RouteKind::Http,
        key,
        created,
        parents,
        rules,
    })))
}

fn rule(field: &str, key: &ObjectKey, rule: &HttpRouteRules) -> Result<Rule, Invalid> {
    if rule.session_persistence.is_some() {
        return Err(Invalid::new(
            format!("{field}.sessionPersistence"),
            "is not supported: remove it",
        ));
    }
    let mut matches = Vec::new();
    for (index, it) in rule.matches.iter().flatten().enumerate() {
        matches.push(matching::one(&format!("{field}.matches[{index}]"), it)?);
    }
    if matches.is_empty() {
        matches.push(Match::everything());
    }
    let mut filters = Filters::read(field, rule.filters.as_deref().unwrap_or_default())?;
    let prefixes_only = matches
        .iter()
        .all(|it| matches!(it.path, PathMatch::Prefix(_)));
    if filters.replaces_prefix() && !prefixes_only {
        let message =
            "ReplacePrefixMatch needs PathPrefix in every match of the rule: use ReplaceFullPath";
        return Err(Invalid::new(format!("{field}.filters"), message));
    }
    let mut backends = Vec::new();
    for (index, it) in rule.backend_refs.iter().flatten().enumerate() {
        backends.push(backend_of!(
            format!("{field}.backendRefs[{index}]"),
            key,
            it,
            BackendFilter
        ));
    }
    Ok(Rule {
        name: rule.name.as_deref().unwrap_or_default().into(),
        matches,
        request_headers: std::mem::take(&mut filters.request_headers),
        response_headers: std::mem::take(&mut filters.response_headers),
        action: action(field, rule, filters, backends)?,
    })
}

/// Redirects exclude everything that forwarding needs.
fn action(
    field: &str,
    rule: &HttpRouteRules,
    filters: Filters,
    backends: Vec<Backend>,
) -> Result<Action, Invalid> {
    match filters.redirect {
        Some(_) if !backends.is_empty() => Err(Invalid::new(
            format!("{field}.backendRefs"),
            "excludes RequestRedirect: remove one of the two",
        )),
        Some(_) if filters.rewrites => Err(Invalid::new(
            format!("{field}.filters"),
            "RequestRedirect excludes URLRewrite: remove one",
        )),
        Some(redirect) => Ok(Action::Redirect(redirect)),
        None => forward(field, rule, filters, backends)
            .map(|forward| Action::Forward(Box::new(forward))),
    }
}

fn forward(
    field: &str,
    rule: &HttpRouteRules,
    filters: Filters,
    backends: Vec<Backend>,
) -> Result<Forward, Invalid> {
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let duration = |name: &str, text: Option<String>| {
        text.map(|text| fields::duration(format!("{field}.timeouts.{name}"), &text))
            .transpose()
    };
    let timeout = duration("request", timeouts.request)?;
    let backend_timeout = duration("backendRequest", timeouts.backend_request)?;
    if let (Some(whole), Some(one)) = (timeout, backend_timeout)
        && !whole.is_zero()
        && one > whole
    {
        return Err(Invalid::new(
            format!("{field}.timeouts.backendRequest"),
            format!("{one:?} is longer than request, {whole:?}: make it shorter"),
        ));
    }
    let retry = rule
        .retry
        .as_ref()
        .map(|it| retry(&format!("{field}.retry"), it))
        .transpose()?;
    Ok(Forward {
        backends,
        host_rewrite: filters.host_rewrite,
        path_rewrite: filters.path_rewrite,
        timeout,
        backend_timeout,
        retry,
    })
}

fn retry(field: &str, retry: &HttpRouteRulesRetry) -> Result<Retry, Invalid> {
    let attempts = retry.attempts.unwrap_or(1);
    let attempts = u32::try_from(attempts)
        .ok()
        .filter(|attempts| *attempts <= 10)
        .ok_or_else(|| {
            Invalid::new(
                format!("{field}.attempts"),
                format!("{attempts} is too many: use 0 to 10"),
            )
        })?;
    let mut codes = BTreeSet::new();
    for (index, code) in retry.codes.iter().flatten().enumerate() {
        let code = u16::try_from(*code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok())
            .filter(|code| (400..600).contains(&code.as_u16()))
            .ok_or_else(|| {
                Invalid::new(
                    format!("{field}.codes[{index}]"),
                    format!("{code}: use 400 to 599"),
                )
            })?;
        codes.insert(code);
    }
    let backoff = retry
        .backoff
        .as_deref()
        .map(|text| fields::duration(format!("{field}.backoff"), text))
        .transpose()?;
    Ok(Retry {
        attempts,
        codes: codes.into_iter().collect(),
        backoff,
    })
}
