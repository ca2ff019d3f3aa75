//! HTTPRoute.

use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteRules, HttpRouteRulesBackendRefsFiltersType as BackendFilter,
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPath, HttpRouteRulesFiltersRequestRedirectScheme as Scheme,
    HttpRouteRulesFiltersType as Filter, HttpRouteRulesFiltersUrlRewrite,
    HttpRouteRulesFiltersUrlRewritePath, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType as HeaderType, HttpRouteRulesMatchesMethod,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesMatchesQueryParamsType as QueryType,
    HttpRouteRulesRetry,
};
use http::{HeaderValue, Method, StatusCode};

use super::route::{self, backend_of, modify_headers, parents};
use super::{Invalid, fields};
use crate::store::route::{
    Action, Backend, Forward, HeaderChanges, HeaderMatch, Match, PathMatch, PathRewrite,
    QueryMatch, Redirect, Retry, Route, RouteKind, Rule, StringMatch,
};
use crate::store::{Object, ObjectKey};

/// Reads a route; one without a Service among its parents is not used.
pub(super) fn route(key: ObjectKey, object: HttpRoute) -> Result<Option<Object>, Invalid> {
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
    let filters = Filters::read(field, rule.filters.as_deref().unwrap_or_default())?;
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
    let action = match filters.redirect {
        Some(_) if !backends.is_empty() => {
            return Err(Invalid::new(
                format!("{field}.backendRefs"),
                "excludes RequestRedirect: remove one of the two",
            ));
        }
        Some(_) if filters.rewrites => {
            return Err(Invalid::new(
                format!("{field}.filters"),
                "RequestRedirect excludes URLRewrite: remove one",
            ));
        }
        Some(redirect) => Action::Redirect(redirect),
        None => {
            let timeouts = rule.timeouts.clone().unwrap_or_default();
            let duration = |name: &str, text: Option<String>| {
                text.map(|text| fields::duration(format!("{field}.timeouts.{name}"), &text))
                    .transpose()
            };
            Action::Forward(Box::new(Forward {
                backends,
                host_rewrite: filters.host_rewrite,
                path_rewrite: filters.path_rewrite,
                timeout: duration("request", timeouts.request)?,
                backend_timeout: duration("backendRequest", timeouts.backend_request)?,
                retry: rule
                    .retry
                    .as_ref()
                    .map(|it| retry(&format!("{field}.retry"), it))
                    .transpose()?,
            }))
        }
    };
    Ok(Rule {
        name: rule.name.as_deref().unwrap_or_default().into(),
        matches,
        action,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
    })
}

fn one_match(field: &str, it: &HttpRouteRulesMatches) -> Result<Match, Invalid> {
    let path = it.path.clone().unwrap_or_default();
    let value = path.value.as_deref().unwrap_or("/");
    let absolute = |value: &str| {
        if value.starts_with('/') {
            Ok(())
        } else {
            Err(Invalid::new(
                format!("{field}.path.value"),
                format!("{value:?} is not a path: start it with /"),
            ))
        }
    };
    let path = match path.r#type.unwrap_or(PathType::PathPrefix) {
        PathType::Exact => absolute(value).map(|()| PathMatch::Exact(value.into()))?,
        PathType::PathPrefix => {
            absolute(value)?;
            let trimmed = value.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
        }
        PathType::RegularExpression => {
            PathMatch::Regex(fields::regex(format!("{field}.path.value"), value)?)
        }
    };
    let mut headers = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, header) in it.headers.iter().flatten().enumerate() {
        let field = format!("{field}.headers[{index}]");
        let name = fields::header_name(format!("{field}.name"), &header.name)?;
        let regex = matches!(header.r#type, Some(HeaderType::RegularExpression));
        // Of several with one name the first counts.
        if seen.insert(name.as_str().to_owned()) {
            headers.push(HeaderMatch {
                name,
                value: string(&format!("{field}.value"), &header.value, regex)?,
            });
        }
    }
    headers.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let mut query: Vec<QueryMatch> = Vec::new();
    for (index, parameter) in it.query_params.iter().flatten().enumerate() {
        let regex = matches!(parameter.r#type, Some(QueryType::RegularExpression));
        let value = string(
            &format!("{field}.queryParams[{index}].value"),
            &parameter.value,
            regex,
        )?;
        if !query.iter().any(|known| *known.name == *parameter.name) {
            query.push(QueryMatch {
                name: parameter.name.as_str().into(),
                value,
            });
        }
    }
    query.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Match {
        path,
        method: it.method.as_ref().map(method),
        headers,
        query,
    })
}

fn string(field: &str, value: &str, regex: bool) -> Result<StringMatch, Invalid> {
    if regex {
        fields::regex(field, value).map(StringMatch::Regex)
    } else {
        Ok(StringMatch::Exact(value.into()))
    }
}

fn method(method: &HttpRouteRulesMatchesMethod) -> Method {
    use HttpRouteRulesMatchesMethod as M;
    match method {
        M::Get => Method::GET,
        M::Head => Method::HEAD,
        M::Post => Method::POST,
        M::Put => Method::PUT,
        M::Delete => Method::DELETE,
        M::Connect => Method::CONNECT,
        M::Options => Method::OPTIONS,
        M::Trace => Method::TRACE,
        M::Patch => Method::PATCH,
    }
}

/// What the filters of a rule say, all together.
#[derive(Default)]
struct Filters {
    request_headers: HeaderChanges,
    response_headers: HeaderChanges,
    redirect: Option<Redirect>,
    rewrites: bool,
    host_rewrite: Option<HeaderValue>,
    path_rewrite: Option<PathRewrite>,
}

impl Filters {
    fn read(field: &str, filters: &[HttpRouteRulesFilters]) -> Result<Self, Invalid> {
        let mut all = Self::default();
        for (index, filter) in filters.iter().enumerate() {
            let field = format!("{field}.filters[{index}]");
            match filter.r#type {
                Filter::RequestHeaderModifier => {
                    let it = present(
                        &field,
                        "requestHeaderModifier",
                        filter.request_header_modifier.as_ref(),
                    )?;
                    modify_headers!(
                        format!("{field}.requestHeaderModifier"),
                        it,
                        &mut all.request_headers
                    );
                }
                Filter::ResponseHeaderModifier => {
                    let it = present(
                        &field,
                        "responseHeaderModifier",
                        filter.response_header_modifier.as_ref(),
                    )?;
                    modify_headers!(
                        format!("{field}.responseHeaderModifier"),
                        it,
                        &mut all.response_headers
                    );
                }
                Filter::RequestRedirect => {
                    let it = present(&field, "requestRedirect", filter.request_redirect.as_ref())?;
                    all.redirect = Some(redirect(&format!("{field}.requestRedirect"), it)?);
                }
                Filter::UrlRewrite => {
                    let it = present(&field, "urlRewrite", filter.url_rewrite.as_ref())?;
                    all.rewrite(&format!("{field}.urlRewrite"), it)?;
                }
                ref other => return Err(route::unsupported(&field, other)),
            }
        }
        Ok(all)
    }

    fn rewrite(
        &mut self,
        field: &str,
        rewrite: &HttpRouteRulesFiltersUrlRewrite,
    ) -> Result<(), Invalid> {
        self.rewrites = true;
        if let Some(host) = &rewrite.hostname {
            self.host_rewrite = Some(fields::header_value(format!("{field}.hostname"), host)?);
        }
        if let Some(HttpRouteRulesFiltersUrlRewritePath {
            replace_full_path,
            replace_prefix_match,
            ..
        }) = &rewrite.path
        {
            self.path_rewrite = path_rewrite(
                field,
                replace_full_path.as_deref(),
                replace_prefix_match.as_deref(),
            )?;
        }
        Ok(())
    }

    fn replaces_prefix(&self) -> bool {
        let redirect = self
            .redirect
            .as_ref()
            .and_then(|redirect| redirect.path.as_ref());
        [redirect, self.path_rewrite.as_ref()]
            .into_iter()
            .flatten()
            .any(|it| matches!(it, PathRewrite::Prefix(_)))
    }
}

fn present<'a, T>(field: &str, name: &str, value: Option<&'a T>) -> Result<&'a T, Invalid> {
    value.ok_or_else(|| {
        Invalid::new(
            format!("{field}.{name}"),
            "is missing: the filter's type needs it",
        )
    })
}

fn redirect(field: &str, it: &HttpRouteRulesFiltersRequestRedirect) -> Result<Redirect, Invalid> {
    let status = it.status_code.unwrap_or(302);
    let status = u16::try_from(status)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
        .filter(|code| matches!(code.as_u16(), 301 | 302 | 303 | 307 | 308))
        .ok_or_else(|| {
            Invalid::new(
                format!("{field}.statusCode"),
                format!("{status}: use 301, 302, 303, 307 or 308"),
            )
        })?;
    if let Some(host) = &it.hostname {
        fields::subdomain(&format!("{field}.hostname"), host)?;
    }
    let path = match &it.path {
        Some(HttpRouteRulesFiltersRequestRedirectPath {
            replace_full_path,
            replace_prefix_match,
            ..
        }) => path_rewrite(
            field,
            replace_full_path.as_deref(),
            replace_prefix_match.as_deref(),
        )?,
        None => None,
    };
    Ok(Redirect {
        scheme: it.scheme.as_ref().map(|scheme| match scheme {
            Scheme::Http => "http".into(),
            Scheme::Https => "https".into(),
        }),
        host: it.hostname.as_deref().map(Into::into),
        port: it
            .port
            .map(|port| fields::port(format!("{field}.port"), port.into()))
            .transpose()?,
        path,
        status,
    })
}

fn path_rewrite(
    field: &str,
    full: Option<&str>,
    prefix: Option<&str>,
) -> Result<Option<PathRewrite>, Invalid> {
    let valid = |path: &str| {
        // It goes into a request line: nothing that could end it.
        if path
            .bytes()
            .all(|byte| (0x21..0x7f).contains(&byte) && !matches!(byte, b'?' | b'#'))
        {
            Ok(Arc::<str>::from(path))
        } else {
            Err(Invalid::new(
                format!("{field}.path"),
                format!("{path:?} is not a path: escape everything but visible ASCII"),
            ))
        }
    };
    match (full, prefix) {
        (Some(path), None) => {
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            valid(&path).map(|path| Some(PathRewrite::Full(path)))
        }
        (None, Some(path)) => {
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            valid(&path).map(|path| Some(PathRewrite::Prefix(path)))
        }
        _ => Err(Invalid::new(
            format!("{field}.path"),
            "needs one of replaceFullPath and replacePrefixMatch",
        )),
    }
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
