//! What a request is compared with: paths, headers, query parameters, patterns.

use tulle_xds_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use tulle_xds_proto::envoy::config::route::v3 as rds;
use tulle_xds_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use tulle_xds_proto::google::protobuf::BoolValue;

use super::{Expected, check, with_match};
use crate::config::route::PathMatch;

fn header(name: &str, specifier: HeaderMatchSpecifier) -> rds::HeaderMatcher {
    rds::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn exact(text: &str) -> HeaderMatchSpecifier {
    let match_pattern = Some(MatchPattern::Exact(text.to_owned()));
    HeaderMatchSpecifier::StringMatch(StringMatcher {
        match_pattern,
        ignore_case: false,
    })
}

pub(super) fn safe_regex(regex: &str) -> RegexMatcher {
    RegexMatcher {
        regex: regex.to_owned(),
        ..Default::default()
    }
}

const MATCH: &str = "virtual_hosts[0].routes[0].match";

#[test]
fn route_matches() {
    let at = |field: &str| -> &'static str { format!("{MATCH}.{field}").leak() };
    type Change = fn(&mut rds::RouteMatch);
    let path = |specifier: PathSpecifier| {
        move |m: &mut rds::RouteMatch| m.path_specifier = Some(specifier)
    };
    check(
        "exact",
        with_match(path(PathSpecifier::Path("/a".into()))),
        Ok(()),
    );
    check(
        "relative",
        with_match(path(PathSpecifier::Path("a".into()))),
        Err(at("path")),
    );
    check(
        "segments",
        with_match(path(PathSpecifier::PathSeparatedPrefix("/a".into()))),
        Ok(()),
    );
    check(
        "regex",
        with_match(path(PathSpecifier::SafeRegex(safe_regex("/v[0-9]+/.*")))),
        Ok(()),
    );
    for bad in [
        "(",
        "/a)|(?:/b",
        "(?x) /a #",
        "(a{1000}){1000}",
        "a{500}{500}",
        &"a".repeat(2000),
    ] {
        let found = with_match(path(PathSpecifier::SafeRegex(safe_regex(bad))));
        check(bad, found, Err(at("safe_regex.regex")));
    }
    let table: [(&str, Change, Expected); 12] = [
        (
            "no path",
            |m| m.path_specifier = None,
            Err("path_specifier"),
        ),
        ("grpc", |m| m.grpc = Some(Default::default()), Ok(())),
        (
            "a method",
            |m| m.headers.push(header(":method", exact("PATCH"))),
            Ok(()),
        ),
        (
            "a method by prefix",
            |m| {
                m.headers
                    .push(header(":method", HeaderMatchSpecifier::PresentMatch(true)))
            },
            Err("headers[0].header_match_specifier"),
        ),
        (
            "a header",
            |m| m.headers.push(header("x-user", exact("me"))),
            Ok(()),
        ),
        (
            "an authority",
            |m| m.headers.push(header(":authority", exact("a"))),
            Err("headers[0].name"),
        ),
        (
            "a bad name",
            |m| m.headers.push(header("x user", exact("a"))),
            Err("headers[0].name"),
        ),
        (
            "a range",
            |m| {
                m.headers.push(header(
                    "x",
                    HeaderMatchSpecifier::RangeMatch(Default::default()),
                ))
            },
            Err("headers[0].range_match"),
        ),
        (
            "any case of the path",
            |m| m.case_sensitive = Some(BoolValue { value: false }),
            Err("case_sensitive"),
        ),
        (
            "a fraction",
            |m| m.runtime_fraction = Some(RuntimeFractionalPercent::default()),
            Err("runtime_fraction"),
        ),
        (
            "a query parameter",
            |m| {
                m.query_parameters.push(rds::QueryParameterMatcher {
                    name: "q".into(),
                    ..Default::default()
                })
            },
            Ok(()),
        ),
        (
            "a query parameter without name",
            |m| m.query_parameters.push(Default::default()),
            Err("query_parameters[0].name"),
        ),
    ];
    for (name, change, expected) in table {
        check(name, with_match(change), expected.map_err(at));
    }
}

#[test]
fn a_pattern_matches_whole_strings_only() {
    let table =
        with_match(|m| m.path_specifier = Some(PathSpecifier::SafeRegex(safe_regex("/a|/b"))));
    let table = table.expect("valid");
    let PathMatch::Regex(regex) = &table.routes[0].matches.path else {
        panic!("a pattern")
    };
    for (path, expected) in [
        ("/a", true),
        ("/b", true),
        ("/ab", false),
        ("/a\n", false),
        ("x/b", false),
    ] {
        assert_eq!(regex.is_match(path), expected, "{path:?}");
    }
    let suffix = MatchPattern::Suffix(".png".to_owned());
    let matcher = StringMatcher {
        match_pattern: Some(suffix),
        ignore_case: true,
    };
    let table = with_match(|m| {
        m.headers
            .push(header("x", HeaderMatchSpecifier::StringMatch(matcher)))
    });
    let table = table.expect("valid");
    let crate::config::route::StringMatch::Regex(regex) = &table.routes[0].matches.headers[0].value
    else {
        panic!("a pattern");
    };
    for (value, expected) in [
        ("a.png", true),
        ("a.PNG", true),
        ("aXpng", false),
        ("a.png.exe", false),
    ] {
        assert_eq!(regex.is_match(value), expected, "{value:?}");
    }
}
