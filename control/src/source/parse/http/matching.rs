//! What a rule of an HTTPRoute matches.

use gateway_api::experimental::httproutes::{
    HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType as HeaderType,
    HttpRouteRulesMatchesMethod, HttpRouteRulesMatchesPath,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesMatchesQueryParamsType as QueryType,
};
use http::Method;

use super::super::{Invalid, fields};
use crate::store::route::{HeaderMatch, Match, PathMatch, QueryMatch, StringMatch};

/// Reads one match.
pub(super) fn one(field: &str, it: &HttpRouteRulesMatches) -> Result<Match, Invalid> {
    Ok(Match {
        path: path(&format!("{field}.path.value"), it.path.as_ref())?,
        method: it.method.as_ref().map(method),
        headers: headers(field, it)?,
        query: query(field, it)?,
        ..Match::everything()
    })
}

fn path(field: &str, path: Option<&HttpRouteRulesMatchesPath>) -> Result<PathMatch, Invalid> {
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let kind = path.and_then(|path| path.r#type.as_ref());
    let regex = matches!(kind, Some(PathType::RegularExpression));
    if !regex && !value.starts_with('/') {
        let message = format!("{value:?} is not a path: start it with /");
        return Err(Invalid::new(field, message));
    }
    Ok(match kind {
        Some(PathType::RegularExpression) => PathMatch::Regex(fields::regex(field, value)?),
        Some(PathType::Exact) => PathMatch::Exact(value.into()),
        Some(PathType::PathPrefix) | None => {
            let trimmed = value.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
        }
    })
}

/// Of several headers with one name the first counts.
fn headers(field: &str, it: &HttpRouteRulesMatches) -> Result<Vec<HeaderMatch>, Invalid> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for (index, header) in it.headers.iter().flatten().enumerate() {
        let field = format!("{field}.headers[{index}]");
        let name = fields::header_name(format!("{field}.name"), &header.name)?;
        let regex = matches!(header.r#type, Some(HeaderType::RegularExpression));
        let value = string(&format!("{field}.value"), &header.value, regex)?;
        if !headers.iter().any(|known| known.name == name) {
            headers.push(HeaderMatch { name, value });
        }
    }
    headers.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(headers)
}

/// Of several parameters with one name the first counts.
fn query(field: &str, it: &HttpRouteRulesMatches) -> Result<Vec<QueryMatch>, Invalid> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for (index, parameter) in it.query_params.iter().flatten().enumerate() {
        let field = format!("{field}.queryParams[{index}].value");
        let regex = matches!(parameter.r#type, Some(QueryType::RegularExpression));
        let value = string(&field, &parameter.value, regex)?;
        if !query.iter().any(|known| *known.name == *parameter.name) {
            query.push(QueryMatch {
                name: parameter.name.as_str().into(),
                value,
            });
        }
    }
    query.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(query)
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
