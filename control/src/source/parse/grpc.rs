//! GRPCRoute: an HTTPRoute whose paths are services and methods.

use gateway_api::grpcroutes::{
    GrpcRoute, GrpcRouteRules, GrpcRouteRulesBackendRefsFiltersType as BackendFilter,
    GrpcRouteRulesFiltersType as Filter, GrpcRouteRulesMatches,
    GrpcRouteRulesMatchesHeadersType as HeaderType, GrpcRouteRulesMatchesMethod,
    GrpcRouteRulesMatchesMethodType as MethodType,
};

use super::route::{self, backend_of, modify_headers, parents};
use super::{Invalid, fields};
use crate::store::route::{
    Action, Backend, Forward, HeaderChanges, HeaderMatch, Match, PathMatch, Route, RouteKind, Rule,
    StringMatch,
};
use crate::store::{Object, ObjectKey};

/// Reads a route; one without a Service among its parents is not used.
pub(super) fn route(key: ObjectKey, object: GrpcRoute) -> Result<Option<Object>, Invalid> {
    let parents = parents!(&key, object.spec);
    if parents.is_empty() {
        return Ok(None);
    }
    let mut rules = Vec::new();
    for (index, it) in object.spec.rules.iter().flatten().enumerate() {
        rules.push(rule(&format!("spec.rules[{index}]"), &key, it)?);
    }
    let created = fields::created(&object.metadata);
    Ok(Some(Object::Route(Route {
        kind: RouteKind::Grpc,
        key,
        created,
        parents,
        rules,
    })))
}

fn rule(field: &str, key: &ObjectKey, rule: &GrpcRouteRules) -> Result<Rule, Invalid> {
    let mut matches = Vec::new();
    for (index, it) in rule.matches.iter().flatten().enumerate() {
        matches.push(one_match(&format!("{field}.matches[{index}]"), it)?);
    }
    if matches.is_empty() {
        matches.push(Match {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: vec![],
            query: vec![],
        });
    }
    let (mut request_headers, mut response_headers) =
        (HeaderChanges::default(), HeaderChanges::default());
    for (index, filter) in rule.filters.iter().flatten().enumerate() {
        let field = format!("{field}.filters[{index}]");
        match (
            &filter.r#type,
            &filter.request_header_modifier,
            &filter.response_header_modifier,
        ) {
            (Filter::RequestHeaderModifier, Some(it), _) => {
                modify_headers!(
                    format!("{field}.requestHeaderModifier"),
                    it,
                    &mut request_headers
                );
            }
            (Filter::ResponseHeaderModifier, _, Some(it)) => {
                modify_headers!(
                    format!("{field}.responseHeaderModifier"),
                    it,
                    &mut response_headers
                );
            }
            (kind, ..) => return Err(route::unsupported(&field, kind)),
        }
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
    let forward = Forward {
        backends,
        host_rewrite: None,
        path_rewrite: None,
        timeout: None,
        backend_timeout: None,
        retry: None,
    };
    Ok(Rule {
        name: rule.name.as_deref().unwrap_or_default().into(),
        matches,
        action: Action::Forward(Box::new(forward)),
        request_headers,
        response_headers,
    })
}

fn one_match(field: &str, it: &GrpcRouteRulesMatches) -> Result<Match, Invalid> {
    let path = match &it.method {
        Some(method) => path(&format!("{field}.method"), method)?,
        None => PathMatch::Prefix("/".into()),
    };
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for (index, header) in it.headers.iter().flatten().enumerate() {
        let field = format!("{field}.headers[{index}]");
        let name = fields::header_name(format!("{field}.name"), &header.name)?;
        let value = match header.r#type {
            Some(HeaderType::RegularExpression) => {
                StringMatch::Regex(fields::regex(format!("{field}.value"), &header.value)?)
            }
            None | Some(HeaderType::Exact) => StringMatch::Exact(header.value.as_str().into()),
        };
        if !headers.iter().any(|known| known.name == name) {
            headers.push(HeaderMatch { name, value });
        }
    }
    headers.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(Match {
        path,
        method: None,
        headers,
        query: vec![],
    })
}

/// A method of a service is the path `/service/method`.
fn path(field: &str, it: &GrpcRouteRulesMatchesMethod) -> Result<PathMatch, Invalid> {
    let word = |name: &str, value: &Option<String>| match value
        .as_deref()
        .filter(|value| !value.is_empty())
    {
        Some(value) if value.contains('/') => Err(Invalid::new(
            format!("{field}.{name}"),
            format!("{value:?} must not contain /"),
        )),
        value => Ok(value.map(str::to_owned)),
    };
    let regex = matches!(it.r#type, Some(MethodType::RegularExpression));
    match (word("service", &it.service)?, word("method", &it.method)?) {
        (None, None) => Err(Invalid::new(field, "needs a service or a method")),
        (Some(service), Some(method)) if !regex => {
            Ok(PathMatch::Exact(format!("/{service}/{method}").into()))
        }
        (Some(service), None) if !regex => Ok(PathMatch::Prefix(format!("/{service}").into())),
        (service, method) => {
            let any = || "[^/]+".to_owned();
            let quote = |text: String| {
                if regex {
                    format!("(?:{text})")
                } else {
                    text.replace('.', r"\.")
                }
            };
            let (service, method) = (
                service.map_or_else(any, quote),
                method.map_or_else(any, quote),
            );
            Ok(PathMatch::Regex(fields::regex(
                field,
                &format!("/{service}/{method}"),
            )?))
        }
    }
}
