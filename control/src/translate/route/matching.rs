//! What a request must look like, as Envoy's `RouteMatch`.

use tulle_xds_proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher, query_parameter_matcher,
    route_match,
};
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};

use crate::store::route::{Match, PathMatch, StringMatch};

/// The match of every request.
pub(in super::super) fn everything() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
        ..RouteMatch::default()
    }
}

/// Narrows a match to idempotent methods.
pub(super) fn idempotent(mut matches: RouteMatch) -> RouteMatch {
    let methods = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::SafeRegex(regex(
            "GET|HEAD|OPTIONS|TRACE|PUT|DELETE",
        ))),
        ..StringMatcher::default()
    };
    matches.headers.push(header(":method", methods));
    matches
}

/// One match; a method is a header, as on the wire of HTTP/2.
pub(in super::super) fn matches(matches: &Match) -> RouteMatch {
    let path = match &matches.path {
        PathMatch::Exact(path) => route_match::PathSpecifier::Path(path.to_string()),
        PathMatch::Prefix(path) if &**path == "/" => {
            route_match::PathSpecifier::Prefix("/".to_owned())
        }
        PathMatch::Prefix(path) => {
            route_match::PathSpecifier::PathSeparatedPrefix(path.to_string())
        }
        PathMatch::Regex(pattern) => route_match::PathSpecifier::SafeRegex(regex(pattern)),
    };
    let method = matches
        .method
        .as_ref()
        .map(|method| header(":method", exact(method.as_str())));
    let headers = matches
        .headers
        .iter()
        .map(|it| header(it.name.as_str(), string(&it.value)));
    let query_parameters = matches.query.iter().map(|it| QueryParameterMatcher {
        name: it.name.to_string(),
        query_parameter_match_specifier: Some(
            query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(string(&it.value)),
        ),
    });
    RouteMatch {
        path_specifier: Some(path),
        headers: method.into_iter().chain(headers).collect(),
        query_parameters: query_parameters.collect(),
        ..RouteMatch::default()
    }
}

pub(super) fn header(name: &str, value: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(value)),
        ..HeaderMatcher::default()
    }
}

fn string(value: &StringMatch) -> StringMatcher {
    match value {
        StringMatch::Exact(value) => exact(value),
        StringMatch::Regex(pattern) => StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::SafeRegex(regex(pattern))),
            ..StringMatcher::default()
        },
    }
}

pub(super) fn exact(value: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Exact(value.to_owned())),
        ..StringMatcher::default()
    }
}

fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        ..RegexMatcher::default()
    }
}
