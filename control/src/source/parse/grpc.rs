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
        matches.push(Match::everything());
    }
    let (request_headers, response_headers) = header_changes(field, rule)?;
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

/// What the filters of a rule change of requests, and of responses.
fn header_changes(
    field: &str,
    rule: &GrpcRouteRules,
) -> Result<(HeaderChanges, HeaderChanges), Invalid> {
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
    Ok((request_headers, response_headers))
}

fn one_match(field: &str, it: &GrpcRouteRulesMatches) -> Result<Match, Invalid> {
    let mut matches = match &it.method {
        Some(method) => of_method(&format!("{field}.method"), method)?,
        None => Match::everything(),
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
    matches.headers = headers;
    Ok(matches)
}

/// A method of a service is the path `/service/method`.
fn of_method(field: &str, it: &GrpcRouteRulesMatchesMethod) -> Result<Match, Invalid> {
    let regex = matches!(it.r#type, Some(MethodType::RegularExpression));
    let service = word(&format!("{field}.service"), it.service.as_deref(), regex)?;
    let method = word(&format!("{field}.method"), it.method.as_deref(), regex)?;
    let named = (service.map_or(0, str::len), method.map_or(0, str::len));
    let path = match (service, method) {
        (None, None) => return Err(Invalid::new(field, "needs a service or a method")),
        (Some(service), Some(method)) if !regex => {
            PathMatch::Exact(format!("/{service}/{method}").into())
        }
        (Some(service), None) if !regex => PathMatch::Prefix(format!("/{service}").into()),
        (service, method) => {
            let part = |word: Option<&str>| match word {
                None => "[^/]+".to_owned(),
                Some(text) if regex => format!("(?:{text})"),
                // Checked above: nothing but dots has a meaning.
                Some(text) => text.replace('.', r"\."),
            };
            let pattern = format!("/{}/{}", part(service), part(method));
            PathMatch::Regex(fields::regex(field, &pattern)?)
        }
    };
    Ok(Match {
        path,
        named,
        ..Match::everything()
    })
}

/// The name of a service or method, or a regular expression for it.
fn word<'a>(field: &str, value: Option<&'a str>, regex: bool) -> Result<Option<&'a str>, Invalid> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    if value.contains('/') {
        Err(Invalid::new(field, format!("{value:?} must not contain /")))
    } else if !regex && !value.bytes().all(plain) {
        let message = format!("{value:?} is not a name in gRPC: use a-z, A-Z, 0-9, `_`, `.`");
        Err(Invalid::new(field, message))
    } else {
        Ok(Some(value))
    }
}
