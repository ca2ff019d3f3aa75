//! What a request is compared with: paths, headers, query parameters, regular expressions.

use http::Method;
use regex_automata::meta;
use regex_automata::util::syntax;
use tulle_xds_proto::envoy::config::route::v3 as pb;
use tulle_xds_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use super::error::{At, DecodeError, refuse};
use super::header::header_name;
use crate::config::route::{HeaderMatch, PathMatch, QueryMatch, Regex, RouteMatch, StringMatch};

/// Bytes of a pattern.
const MAX_PATTERN: usize = 1024;
/// Bytes of a compiled pattern: enough for any path, too little for `(a{1000}){1000}`.
const MAX_COMPILED: usize = 256 * 1024;
/// Bytes of all compiled patterns together: a few thousand usual ones.
const MAX_COMPILED_TOGETHER: usize = 32 * 1024 * 1024;
/// Bytes that a lazily built automaton may cache.
const MAX_CACHED: usize = 256 * 1024;

pub(super) fn route_match(message: &pb::RouteMatch) -> Result<RouteMatch, DecodeError> {
    let insensitive = message
        .case_sensitive
        .as_ref()
        .is_some_and(|sensitive| !sensitive.value);
    refuse(insensitive, "case_sensitive", "use safe_regex with (?i)")?;
    refuse(
        message.runtime_fraction.is_some(),
        "runtime_fraction",
        "use weighted_clusters",
    )?;
    refuse(
        !message.cookies.is_empty(),
        "cookies",
        "match the cookie header",
    )?;
    refuse(message.tls_context.is_some(), "tls_context", "remove it")?;
    refuse(
        !message.dynamic_metadata.is_empty(),
        "dynamic_metadata",
        "remove it",
    )?;
    refuse(
        !message.filter_state.is_empty(),
        "filter_state",
        "remove it",
    )?;
    let mut decoded = RouteMatch {
        path: path(message.path_specifier.as_ref())?,
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
        grpc: message.grpc.is_some(),
    };
    for (i, header) in message.headers.iter().enumerate() {
        if header.name == ":method" {
            refuse(decoded.method.is_some(), "", "match :method once").at_index("headers", i)?;
            decoded.method = Some(method(header).at_index("headers", i)?);
        } else {
            decoded
                .headers
                .push(header_match(header).at_index("headers", i)?);
        }
    }
    for (i, parameter) in message.query_parameters.iter().enumerate() {
        decoded
            .query
            .push(query_match(parameter).at_index("query_parameters", i)?);
    }
    Ok(decoded)
}

fn path(specifier: Option<&PathSpecifier>) -> Result<PathMatch, DecodeError> {
    let absolute = |field: &str, path: &str| match path.starts_with('/') {
        true => Ok(Box::from(path)),
        false => Err(DecodeError::invalid(field, path, "a path begins with /")),
    };
    match specifier {
        Some(PathSpecifier::Path(path)) => Ok(PathMatch::Exact(absolute("path", path)?)),
        // An empty prefix matches everything, as `/` does.
        Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() => {
            Ok(PathMatch::Prefix("/".into()))
        }
        Some(PathSpecifier::Prefix(prefix)) => Ok(PathMatch::Prefix(absolute("prefix", prefix)?)),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Ok(PathMatch::SegmentPrefix(absolute(
            "path_separated_prefix",
            prefix,
        )?)),
        Some(PathSpecifier::SafeRegex(matcher)) => {
            regex("safe_regex.regex", &matcher.regex).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => Err(DecodeError::unsupported(
            "connect_matcher",
            "CONNECT is not routed",
        )),
        Some(PathSpecifier::PathMatchPolicy(_)) => Err(DecodeError::unsupported(
            "path_match_policy",
            "use safe_regex",
        )),
        None => Err(DecodeError::missing(
            "path_specifier",
            "use prefix / to match every path",
        )),
    }
}

fn method(message: &pb::HeaderMatcher) -> Result<Method, DecodeError> {
    let remedy = ":method is compared with one exact value";
    let (value, invert) = header_pattern(message)?;
    let (StringMatch::Exact(name), false) = (value, invert) else {
        return Err(DecodeError::unsupported("header_match_specifier", remedy));
    };
    name.parse()
        .map_err(|error| DecodeError::invalid("string_match.exact", &name, error))
}

fn header_match(message: &pb::HeaderMatcher) -> Result<HeaderMatch, DecodeError> {
    if message.name.starts_with(':') {
        let remedy = "of the pseudo-headers only :method can be matched";
        return Err(DecodeError::invalid("name", &message.name, remedy));
    }
    let (value, invert) = header_pattern(message)?;
    Ok(HeaderMatch {
        name: header_name("name", &message.name)?,
        value,
        invert,
    })
}

#[expect(
    deprecated,
    reason = "foreign control planes still send the older forms"
)]
fn header_pattern(message: &pb::HeaderMatcher) -> Result<(StringMatch, bool), DecodeError> {
    let missing_as_empty = message.treat_missing_header_as_empty;
    refuse(
        missing_as_empty,
        "treat_missing_header_as_empty",
        "use invert_match",
    )?;
    let invert = message.invert_match;
    let value = match &message.header_match_specifier {
        // Without a specifier the header must only be there.
        None => StringMatch::Present,
        Some(HeaderMatchSpecifier::PresentMatch(present)) => {
            return Ok((StringMatch::Present, invert == *present));
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            string_match(matcher).at("string_match")?
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => StringMatch::Exact(text.as_str().into()),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => StringMatch::Prefix(text.as_str().into()),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            pattern("suffix_match", &format!("(?s:.*){}", escape(text)))?
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            pattern("contains_match", &format!("(?s:.*){}(?s:.*)", escape(text)))?
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            pattern("safe_regex_match.regex", &matcher.regex)?
        }
        Some(HeaderMatchSpecifier::RangeMatch(_)) => {
            return Err(DecodeError::unsupported(
                "range_match",
                "use string_match.safe_regex",
            ));
        }
    };
    Ok((value, invert))
}

fn query_match(message: &pb::QueryParameterMatcher) -> Result<QueryMatch, DecodeError> {
    let value = match &message.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => StringMatch::Present,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(DecodeError::unsupported(
                "present_match",
                "absence cannot be matched",
            ));
        }
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            string_match(matcher).at("string_match")?
        }
    };
    if message.name.is_empty() {
        return Err(DecodeError::missing("name", "name the parameter"));
    }
    Ok(QueryMatch {
        name: message.name.as_str().into(),
        value,
    })
}

fn string_match(message: &StringMatcher) -> Result<StringMatch, DecodeError> {
    let Some(matched) = &message.match_pattern else {
        return Err(DecodeError::missing(
            "match_pattern",
            "use exact, prefix or safe_regex",
        ));
    };
    if let (MatchPattern::Exact(text), false) = (matched, message.ignore_case) {
        return Ok(StringMatch::Exact(text.as_str().into()));
    }
    if let (MatchPattern::Prefix(text), false) = (matched, message.ignore_case) {
        return Ok(StringMatch::Prefix(text.as_str().into()));
    }
    let (field, text) = match matched {
        MatchPattern::Exact(text) => ("exact", escape(text)),
        MatchPattern::Prefix(text) => ("prefix", format!("{}(?s:.*)", escape(text))),
        MatchPattern::Suffix(text) => ("suffix", format!("(?s:.*){}", escape(text))),
        MatchPattern::Contains(text) => ("contains", format!("(?s:.*){}(?s:.*)", escape(text))),
        // `ignore_case` has no effect on regular expressions (envoy.type.matcher.v3.StringMatcher).
        MatchPattern::SafeRegex(RegexMatcher { regex, .. }) => {
            return pattern("safe_regex.regex", regex);
        }
        MatchPattern::Custom(_) => {
            return Err(DecodeError::unsupported("custom", "use safe_regex"));
        }
    };
    let text = if message.ignore_case {
        format!("(?i:{text})")
    } else {
        text
    };
    pattern(field, &text)
}

fn pattern(field: &str, pattern: &str) -> Result<StringMatch, DecodeError> {
    regex(field, pattern).map(StringMatch::Regex)
}

/// Compiles a pattern so that it matches whole strings, within bounds of size.
pub(super) fn regex(field: &str, pattern: &str) -> Result<Regex, DecodeError> {
    if pattern.len() > MAX_PATTERN {
        let remedy = format!("a pattern has at most {MAX_PATTERN} bytes");
        return Err(DecodeError::invalid(field, pattern, remedy));
    }
    let invalid = |reason: String| DecodeError::invalid(field, pattern, reason);
    if Regex::memory_of_all() > MAX_COMPILED_TOGETHER {
        return Err(invalid(format!(
            "all patterns together compile to more than {MAX_COMPILED_TOGETHER} bytes; use fewer or simpler ones"
        )));
    }
    // By itself first: wrapped below, `a)|(b` would become something else.
    syntax::parse(pattern).map_err(|error| invalid(error.to_string()))?;
    let config = meta::Config::new()
        .nfa_size_limit(Some(MAX_COMPILED))
        .onepass_size_limit(Some(MAX_COMPILED))
        .hybrid_cache_capacity(MAX_CACHED);
    let compiled = meta::Builder::new()
        .configure(config)
        .build(&format!("^(?:{pattern})$"));
    compiled
        .map(|compiled| Regex::new(pattern, compiled))
        .map_err(|error| match error.size_limit() {
            Some(limit) => invalid(format!(
                "it compiles to more than {limit} bytes; make it simpler"
            )),
            None => invalid(error.to_string()),
        })
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
