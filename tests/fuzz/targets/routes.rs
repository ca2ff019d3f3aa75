//! Routes: matching, rewriting, redirecting.
//!
//! The input is text: routes, and after an empty line the requests that are sent through them (see `corpus/routes`). A
//! table that is taken is used: the first route that a plain reading of it says matches takes the request, what is
//! forwarded has a valid target and the query that it had, and a redirect leads to a valid URI of the scheme, host and
//! port that it names.

#![no_main]

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use tulle_fuzz::routes;
use tulle_proxy::config::RouteTable;
use tulle_proxy::config::route::{HeaderMatch, PathMatch, Route, StringMatch};
use tulle_proxy::fuzz::xds::{Decoded, decode};
use tulle_xds_proto::envoy::config::core::v3::{HeaderValue as PbHeader, HeaderValueOption};
use tulle_xds_proto::envoy::config::route::v3 as pb;
use tulle_xds_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier as Redirected, SchemeRewriteSpecifier,
};
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier,
};
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use tulle_xds_proto::{ResourceType, pack};

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (config, requests) = text.split_once("\n\n").unwrap_or((text, ""));
    let config = pb::RouteConfiguration {
        name: "it".to_owned(),
        virtual_hosts: vec![pb::VirtualHost {
            domains: vec!["*".to_owned()],
            routes: config.split("\nroute\n").map(route).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let table = match decode(ResourceType::Route, "it", &pack(&config)) {
        Ok(Decoded::Routes(table)) => table,
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert!(error.to_string().len() < 8_192, "{error}");
            return;
        }
    };
    routes::exercise(&table);
    for request in requests.split("\n\n").take(8) {
        if let Some(parts) = parts(request) {
            assert_eq!(routes::send(&table, &parts), expected(&table, &parts));
        }
    }
});

/// One route: a word and its argument a line.
fn route(text: &str) -> pb::Route {
    let mut rule = pb::RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let mut forward = pb::RouteAction::default();
    let mut redirect = pb::RedirectAction::default();
    let mut respond = None;
    let mut route = pb::Route::default();
    let mut clusters = Vec::new();
    let mut redirects = false;
    for line in text.lines() {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        let owned = argument.to_owned();
        redirects |= word.starts_with("redirect-");
        match word {
            "path" => rule.path_specifier = Some(PathSpecifier::Path(owned)),
            "prefix" => rule.path_specifier = Some(PathSpecifier::Prefix(owned)),
            "segments" => rule.path_specifier = Some(PathSpecifier::PathSeparatedPrefix(owned)),
            "regex" => rule.path_specifier = Some(PathSpecifier::SafeRegex(pattern(argument))),
            "method" => rule.headers.push(header(":method", argument)),
            "header" => rule.headers.extend(
                argument
                    .split_once('=')
                    .map(|(name, value)| header(name, value)),
            ),
            "query" => rule.query_parameters.extend(
                argument
                    .split_once('=')
                    .map(|(name, value)| query(name, value)),
            ),
            "grpc" => rule.grpc = Some(Default::default()),
            "cluster" => clusters.push(share(argument)),
            "rewrite-prefix" => forward.prefix_rewrite = owned,
            "rewrite-path" => forward.path_rewrite = owned,
            "rewrite-host" => {
                forward.host_rewrite_specifier =
                    Some(HostRewriteSpecifier::HostRewriteLiteral(owned))
            }
            "set" => route.request_headers_to_add.extend(
                argument
                    .split_once('=')
                    .map(|(name, value)| set(name, value)),
            ),
            "remove" => route.response_headers_to_remove.push(owned),
            "respond" => respond = argument.parse().ok(),
            "redirect-scheme" => {
                redirect.scheme_rewrite_specifier =
                    Some(SchemeRewriteSpecifier::SchemeRedirect(owned))
            }
            "redirect-host" => redirect.host_redirect = owned,
            "redirect-port" => redirect.port_redirect = argument.parse().unwrap_or(0),
            "redirect-path" => {
                redirect.path_rewrite_specifier = Some(Redirected::PathRedirect(owned))
            }
            "redirect-prefix" => {
                redirect.path_rewrite_specifier = Some(Redirected::PrefixRewrite(owned))
            }
            "redirect-code" => redirect.response_code = argument.parse().unwrap_or(0),
            _ => {}
        }
    }
    forward.cluster_specifier = Some(match clusters.as_slice() {
        [] => ClusterSpecifier::Cluster("c".to_owned()),
        _ => ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
            clusters,
            ..Default::default()
        }),
    });
    route.r#match = Some(rule);
    route.action = Some(match respond {
        Some(status) => Action::DirectResponse(pb::DirectResponseAction {
            status,
            ..Default::default()
        }),
        None if redirects => Action::Redirect(redirect),
        None => Action::Route(forward),
    });
    route
}

fn pattern(regex: &str) -> RegexMatcher {
    RegexMatcher {
        regex: regex.to_owned(),
        ..Default::default()
    }
}

/// `~` in front of a value makes it a pattern, `^` a prefix, `!` turns the match around.
fn header(name: &str, value: &str) -> pb::HeaderMatcher {
    let (invert_match, value) = match value.strip_prefix('!') {
        Some(value) => (true, value),
        None => (false, value),
    };
    pb::HeaderMatcher {
        name: name.to_owned(),
        invert_match,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string(value))),
        ..Default::default()
    }
}

fn query(name: &str, value: &str) -> pb::QueryParameterMatcher {
    pb::QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(
            value,
        ))),
    }
}

fn string(value: &str) -> StringMatcher {
    let matched = match value.split_at_checked(1) {
        Some(("~", value)) => MatchPattern::SafeRegex(pattern(value)),
        Some(("^", value)) => MatchPattern::Prefix(value.to_owned()),
        Some(("$", value)) => MatchPattern::Suffix(value.to_owned()),
        Some(("*", value)) => MatchPattern::Contains(value.to_owned()),
        _ => MatchPattern::Exact(value.to_owned()),
    };
    StringMatcher {
        match_pattern: Some(matched),
        ..Default::default()
    }
}

fn share(weight: &str) -> pb::weighted_cluster::ClusterWeight {
    pb::weighted_cluster::ClusterWeight {
        name: "c".to_owned(),
        weight: Some(tulle_xds_proto::google::protobuf::UInt32Value {
            value: weight.parse().unwrap_or(0),
        }),
        ..Default::default()
    }
}

fn set(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(PbHeader {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// `METHOD TARGET HOST`, and a field a line.
fn parts(text: &str) -> Option<Parts> {
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target, host) = (words.next()?, words.next()?, words.next().unwrap_or("a"));
    let mut parts = routes::request(target, host, target.len() % 2 == 0)?;
    parts.method = Method::from_bytes(method.as_bytes()).ok()?;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        parts
            .headers
            .append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some(parts)
}

/// Which route a plain reading of the table gives.
fn expected(table: &RouteTable, parts: &Parts) -> Option<usize> {
    table.routes.iter().position(|route| matches(route, parts))
}

fn matches(route: &Route, parts: &Parts) -> bool {
    let rule = &route.matches;
    // `OPTIONS *` is about the server, as its root is.
    let path = match parts.uri.path() {
        "*" => "/",
        path => path,
    };
    let path_matches = match &rule.path {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => path.get(..prefix.len()) == Some(prefix),
        PathMatch::SegmentPrefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            path == prefix || path.starts_with(&format!("{prefix}/"))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
    };
    let type_of = parts
        .headers
        .get("content-type")
        .map(|it| String::from_utf8_lossy(it.as_bytes()));
    let kind = type_of.unwrap_or_default();
    let grpc = kind == "application/grpc"
        || kind.starts_with("application/grpc+")
        || kind.starts_with("application/grpc;");
    path_matches
        && rule
            .method
            .as_ref()
            .is_none_or(|method| *method == parts.method)
        && (!rule.grpc || grpc)
        && rule
            .headers
            .iter()
            .all(|header| header_matches(header, parts))
        && rule.query.iter().all(|query| {
            let pairs = parts.uri.query().unwrap_or_default().split('&');
            let decoded =
                |text: &str| percent_decoded(text).and_then(|it| String::from_utf8(it).ok());
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let first = pairs.find(|(name, _)| decoded(name).as_deref() == Some(&*query.name));
            first
                .and_then(|(_, value)| decoded(value))
                .is_some_and(|value| string_matches(&query.value, &value))
        })
}

fn header_matches(rule: &HeaderMatch, parts: &Parts) -> bool {
    let values: Vec<_> = parts
        .headers
        .get_all(&rule.name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    let joined = String::from_utf8(values.join(&b','));
    let holds = !values.is_empty() && joined.is_ok_and(|value| string_matches(&rule.value, &value));
    holds != rule.invert
}

fn string_matches(rule: &StringMatch, value: &str) -> bool {
    match rule {
        StringMatch::Present => true,
        StringMatch::Exact(exact) => **exact == *value,
        StringMatch::Prefix(prefix) => value.find(&**prefix) == Some(0),
        StringMatch::Regex(regex) => regex.is_match(value),
    }
}

/// A `%` that no two hexadecimal digits follow stands for itself.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                out.push((digit(*high)? * 16 + digit(*low)?) as u8);
                rest = after;
            }
            _ => out.push(*first),
        }
    }
    Some(out)
}
