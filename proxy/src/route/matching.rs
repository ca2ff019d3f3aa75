//! Compares a request with a [`RouteMatch`].

use std::borrow::Cow;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::config::route::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, StringMatch};

pub(super) fn matches(rule: &RouteMatch, request: &Parts) -> bool {
    path_matches(&rule.path, routed_path(request))
        && rule
            .method
            .as_ref()
            .is_none_or(|method| *method == request.method)
        && (!rule.grpc || is_grpc(&request.headers))
        && rule
            .headers
            .iter()
            .all(|header| header_matches(header, &request.headers))
        && rule
            .query
            .iter()
            .all(|query| query_matches(query, request.uri.query().unwrap_or_default()))
}

/// The path by which a request is routed: `OPTIONS *` is about the server as a whole, as its root is.
fn routed_path(request: &Parts) -> &str {
    match request.uri.path() {
        "*" => "/",
        path => path,
    }
}

fn path_matches(rule: &PathMatch, path: &str) -> bool {
    match rule {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => path.starts_with(&**prefix),
        PathMatch::SegmentPrefix(prefix) => path
            .strip_prefix(prefix.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

/// Whether a request is gRPC, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

fn header_matches(rule: &HeaderMatch, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(&rule.name).iter();
    let holds = match (values.next(), values.next()) {
        (None, _) => false,
        (Some(_), _) if matches!(rule.value, StringMatch::Present) => true,
        (Some(only), None) => value_matches(&rule.value, only),
        (Some(_), Some(_)) => joined(headers.get_all(&rule.name).iter())
            .is_some_and(|value| string_matches(&rule.value, &value)),
    };
    holds != rule.invert
}

fn value_matches(rule: &StringMatch, value: &HeaderValue) -> bool {
    std::str::from_utf8(value.as_bytes()).is_ok_and(|value| string_matches(rule, value))
}

/// Several values of one name count as one, joined by commas (RFC 9110, 5.3).
fn joined<'v>(values: impl Iterator<Item = &'v HeaderValue>) -> Option<String> {
    let mut all = String::new();
    for (at, value) in values.enumerate() {
        if at > 0 {
            all.push(',');
        }
        all.push_str(std::str::from_utf8(value.as_bytes()).ok()?);
    }
    Some(all)
}

fn query_matches(rule: &QueryMatch, query: &str) -> bool {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| decoded(name).as_deref() == Some(&*rule.name))
        .is_some_and(|(_, value)| {
            matches!(rule.value, StringMatch::Present)
                || decoded(value).is_some_and(|value| string_matches(&rule.value, &value))
        })
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

fn string_matches(rule: &StringMatch, value: &str) -> bool {
    match rule {
        StringMatch::Present => true,
        StringMatch::Exact(exact) => **exact == *value,
        StringMatch::Prefix(prefix) => value.starts_with(&**prefix),
        StringMatch::Regex(regex) => regex.is_match(value),
    }
}
