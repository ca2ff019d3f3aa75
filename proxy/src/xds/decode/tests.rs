//! Tables of what is taken and what is refused, and by which field.

use proptest::prelude::*;
use tulle_xds_proto::envoy::config::cluster::v3 as cds;
use tulle_xds_proto::envoy::config::cluster::v3::load_balancing_policy::Policy;
use tulle_xds_proto::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, Metadata, RuntimeFractionalPercent, TransportSocket,
    TypedExtensionConfig,
};
use tulle_xds_proto::envoy::config::listener::v3 as lds;
use tulle_xds_proto::envoy::config::route::v3 as rds;
use tulle_xds_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier,
};
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::random::v3::Random;
use tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use tulle_xds_proto::google::protobuf::{self, BoolValue, UInt32Value};
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::{ResourceType, pack, tulle};

use super::*;
use crate::config::Protocol;
use crate::config::cluster::{Health, LbPolicy};
use crate::config::route::{PathMatch, PathRewrite, RouteAction};
use crate::xds::tests::resources::{
    LISTENER, SERVICE, chain, cluster as a_cluster, described, endpoint, garbage, http_chain,
    inbound_chain, inline_manager, inspectors, listener as a_listener, load_assignment,
    network_filter, rds_manager, routes, tcp, workload as a_workload,
};

/// What a row of a table expects: a success, or the field that is to blame.
type Expected = Result<(), &'static str>;

fn check<T>(name: &str, found: Result<T, DecodeError>, expected: Expected) {
    match (found, expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(field)) => {
            assert_eq!(error.field(), field, "{name}: {error}");
            assert!(
                error.to_string().contains("; ") || error.to_string().contains("malformed"),
                "{name}: {error}"
            );
        }
        (Ok(_), Err(field)) => panic!("{name}: taken in spite of {field}"),
        (Err(error), Ok(())) => panic!("{name}: {error}"),
    }
}

#[test]
fn names_of_listeners_and_destinations() {
    for text in ["10.0.0.1:80", "[fd00::1]:443"] {
        let address: SocketAddr = text.parse().expect("an address");
        assert_eq!(listener_address(&listener_name(address)), Some(address));
    }
    assert_eq!(
        listener_name("[fd00::1]:443".parse().expect("an address")),
        "outbound|fd00::1|443"
    );
    for bad in [
        "inbound",
        "outbound|10.0.0.1",
        "outbound|host|80",
        "outbound|10.0.0.1|99999",
        "",
    ] {
        assert_eq!(listener_address(bad), None, "{bad:?}");
    }
}

#[test]
fn outbound_listeners_are_http_opaque_or_detected() {
    let decode = |message: &lds::Listener| listener(LISTENER, &pack(message));
    let protocol = |message: &lds::Listener| match decode(message).expect("valid") {
        Listener::Outbound(outbound) => outbound.protocol.clone(),
        Listener::Inbound(_) => panic!("it is outbound"),
    };
    let http = a_listener(LISTENER, vec![chain(rds_manager(SERVICE))]);
    assert!(matches!(protocol(&http), Protocol::Http(_)));
    let opaque = a_listener(LISTENER, vec![chain(tcp(SERVICE))]);
    assert!(matches!(protocol(&opaque), Protocol::Tcp(_)));
    let mut both = a_listener(LISTENER, vec![http_chain(rds_manager(SERVICE))]);
    both.default_filter_chain = Some(chain(tcp(SERVICE)));
    let undecided = decode(&both);
    check(
        "both chains without inspectors",
        undecided,
        Err("filter_chains.listener_filters"),
    );
    both.listener_filters = inspectors();
    assert!(matches!(protocol(&both), Protocol::Detect { .. }));
}

#[test]
fn outbound_listeners_that_mean_something_else_are_refused() {
    type Change = fn(&mut lds::Listener);
    let table: [(&str, Change, Expected); 10] = [
        ("as it is", |_| {}, Ok(())),
        ("another name", |l| l.name.push('x'), Err("name")),
        (
            "no chain",
            |l| l.filter_chains.clear(),
            Err("filter_chains"),
        ),
        (
            "no filter",
            |l| l.filter_chains[0].filters.clear(),
            Err("filter_chains[0].filters"),
        ),
        (
            "a filter of another kind",
            |l| l.filter_chains[0].filters[0] = network_filter(&cds::Cluster::default()),
            Err("filter_chains[0].filters[0].typed_config"),
        ),
        (
            "TLS to be ended",
            |l| l.filter_chains[0].transport_socket = Some(TransportSocket::default()),
            Err("filter_chains[0].transport_socket"),
        ),
        (
            "a choice by SNI",
            |l| {
                l.filter_chains[0].filter_chain_match = Some(lds::FilterChainMatch {
                    server_names: vec!["a.example".to_owned()],
                    ..Default::default()
                });
            },
            Err("filter_chains[0].filter_chain_match.server_names"),
        ),
        (
            "an unknown listener filter",
            |l| {
                let mut filters = inspectors();
                filters[1].config_type = Some(lds::listener_filter::ConfigType::TypedConfig(
                    garbage("x/y"),
                ));
                l.listener_filters = filters;
            },
            Err("listener_filters[1].typed_config"),
        ),
        (
            "a TCP proxy without cluster",
            |l| l.filter_chains[0].filters[0] = tcp(""),
            Err("filter_chains[0].filters[0].typed_config.cluster"),
        ),
        (
            "garbage inside",
            |l| {
                let config = lds::filter::ConfigType::TypedConfig(garbage(
                    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                ));
                l.filter_chains[0].filters[0].config_type = Some(config);
            },
            Err("filter_chains[0].filters[0].typed_config"),
        ),
    ];
    for (name, change, expected) in table {
        let mut message = a_listener(LISTENER, vec![chain(rds_manager(SERVICE))]);
        change(&mut message);
        check(name, listener(LISTENER, &pack(&message)), expected);
    }
}

#[test]
fn inbound_is_strict_where_the_plaintext_chain_is_absent() {
    let mut message = a_listener(
        INBOUND,
        vec![
            inbound_chain(Some(8080), true, inline_manager("inbound|8080||")),
            inbound_chain(Some(8080), false, inline_manager("inbound|8080||")),
            inbound_chain(Some(9090), true, tcp("inbound|9090||")),
        ],
    );
    let without_default = listener(INBOUND, &pack(&message));
    check("no default pair", without_default, Err("filter_chains"));
    message
        .filter_chains
        .push(inbound_chain(None, true, tcp("inbound|0||")));
    message.default_filter_chain = Some(inbound_chain(None, false, tcp("inbound|0||")));
    let host = protobuf::Value {
        kind: Some(protobuf::value::Kind::StringValue(
            "echo.demo.svc.cluster.local".to_owned(),
        )),
    };
    let fields = [("service".to_owned(), host)].into();
    message.filter_chains[0].metadata = Some(Metadata {
        filter_metadata: [("tulle.dev".to_owned(), protobuf::Struct { fields })].into(),
        ..Default::default()
    });
    let Ok(Listener::Inbound(inbound)) = listener(INBOUND, &pack(&message)) else {
        panic!("it is inbound");
    };
    assert!(
        inbound.port(8080).plaintext && !inbound.port(9090).plaintext && inbound.port(1).plaintext
    );
    assert!(matches!(inbound.port(8080).protocol, Protocol::Http(_)));
    assert!(matches!(inbound.port(9090).protocol, Protocol::Tcp(_)));
    let service = inbound
        .port(8080)
        .service
        .as_ref()
        .expect("the chain's metadata has it");
    assert_eq!(&*service.host, "echo.demo.svc.cluster.local");
    assert!(inbound.port(9090).service.is_none());

    message.filter_chains.remove(2);
    message
        .filter_chains
        .push(inbound_chain(Some(9090), false, tcp("inbound|9090||")));
    let field = "filter_chains[destination_port=9090].transport_socket";
    check(
        "plaintext only",
        listener(INBOUND, &pack(&message)),
        Err(field),
    );
}

/// A route configuration with one route, changed by the row.
fn with_route(change: impl FnOnce(&mut rds::Route)) -> Result<RouteTable, DecodeError> {
    let mut message = routes(SERVICE, &[SERVICE]);
    change(&mut message.virtual_hosts[0].routes[0]);
    route_table(SERVICE, &pack(&message))
}

fn with_match(change: impl FnOnce(&mut rds::RouteMatch)) -> Result<RouteTable, DecodeError> {
    with_route(|route| change(route.r#match.as_mut().expect("it has one")))
}

fn with_action(change: impl FnOnce(&mut rds::RouteAction)) -> Result<RouteTable, DecodeError> {
    with_route(|route| match &mut route.action {
        Some(Action::Route(action)) => change(action),
        other => panic!("{other:?}"),
    })
}

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

fn safe_regex(regex: &str) -> RegexMatcher {
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
        assert_eq!(regex.0.is_match(path), expected, "{path:?}");
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
        assert_eq!(regex.0.is_match(value), expected, "{value:?}");
    }
}

#[test]
fn route_actions() {
    let at = |field: &str| -> &'static str {
        format!("virtual_hosts[0].routes[0].route.{field}").leak()
    };
    let weighted = |weights: &[u32]| {
        let cluster = |weight: &u32| rds::weighted_cluster::ClusterWeight {
            name: SERVICE.to_owned(),
            weight: Some(UInt32Value { value: *weight }),
            ..Default::default()
        };
        let clusters = weights.iter().map(cluster).collect();
        let weighted = rds::WeightedCluster {
            clusters,
            ..Default::default()
        };
        with_action(|action| {
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted))
        })
    };
    check("weights", weighted(&[90, 10, 0]), Ok(()));
    check(
        "weights that are all zero",
        weighted(&[0, 0]),
        Err(at("weighted_clusters")),
    );
    check(
        "weights that overflow",
        weighted(&[u32::MAX, 1]),
        Err(at("weighted_clusters")),
    );
    check(
        "a new host",
        with_action(|a| {
            a.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral("a%b".into()))
        }),
        Ok(()),
    );
    check("no weights", weighted(&[]), Err(at("weighted_clusters")));
    type Change = fn(&mut rds::RouteAction);
    let table: [(&str, Change, Expected); 12] = [
        ("no cluster", |a| a.cluster_specifier = None, Err("cluster")),
        (
            "a cluster by header",
            |a| a.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".into())),
            Err("cluster_specifier"),
        ),
        (
            "a prefix rewrite",
            |a| a.prefix_rewrite = "/b".into(),
            Ok(()),
        ),
        ("a full rewrite", |a| a.path_rewrite = "/b".into(), Ok(())),
        (
            "a rewrite by command",
            |a| a.path_rewrite = "/%X%".into(),
            Err("path_rewrite"),
        ),
        (
            "mirroring",
            |a| a.request_mirror_policies.push(Default::default()),
            Err("request_mirror_policies"),
        ),
        (
            "a negative timeout",
            |a| a.timeout = Some(seconds(-1)),
            Err("timeout"),
        ),
        (
            "an endless timeout",
            |a| a.timeout = Some(seconds(i64::MAX)),
            Err("timeout"),
        ),
        (
            "retries",
            |a| a.retry_policy = Some(retry("gateway-error,reset,unavailable")),
            Ok(()),
        ),
        (
            "an unknown retry",
            |a| a.retry_policy = Some(retry("sometimes")),
            Err("retry_policy.retry_on"),
        ),
        (
            "a retry of an impossible status",
            |a| {
                let mut policy = retry("retriable-status-codes");
                policy.retriable_status_codes = vec![503, 99];
                a.retry_policy = Some(policy);
            },
            Err("retry_policy.retriable_status_codes[1]"),
        ),
        (
            "a regex rewrite with groups",
            |a| {
                a.regex_rewrite = Some(
                    tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute {
                        pattern: Some(safe_regex("^/a/(.*)")),
                        substitution: "/\\1".into(),
                    },
                );
            },
            Err("regex_rewrite.pattern.regex"),
        ),
    ];
    for (name, change, expected) in table {
        check(name, with_action(change), expected.map_err(at));
    }
}

#[test]
fn the_answer_for_a_cluster_that_does_not_exist_is_the_routes() {
    for (code, expected) in [(0, Some(503)), (1, Some(404)), (2, Some(500)), (3, None)] {
        let table = with_action(|action| action.cluster_not_found_response_code = code);
        let found = table.ok().map(|table| match &table.routes[0].action {
            RouteAction::Forward(forward) => forward.cluster_not_found.as_u16(),
            other => panic!("{other:?}"),
        });
        assert_eq!(found, expected, "{code}");
    }
}

fn seconds(seconds: i64) -> protobuf::Duration {
    protobuf::Duration { seconds, nanos: 0 }
}

fn retry(conditions: &str) -> rds::RetryPolicy {
    rds::RetryPolicy {
        retry_on: conditions.to_owned(),
        ..Default::default()
    }
}

#[test]
fn timeouts_and_retries_mean_what_they_mean_in_envoy() {
    let forward = |change: fn(&mut rds::RouteAction)| {
        let table = with_action(change).expect("valid");
        match &table.routes[0].action {
            RouteAction::Forward(forward) => forward.clone(),
            other => panic!("{other:?}"),
        }
    };
    let unset = forward(|_| {});
    assert_eq!(unset.timeout, Some(std::time::Duration::from_secs(15)));
    assert_eq!(unset.retry.attempts, 0);
    assert_eq!(
        forward(|action| action.timeout = Some(seconds(0))).timeout,
        None
    );
    let full = forward(|action| {
        action.regex_rewrite = Some(
            tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute {
                pattern: Some(safe_regex("^/.*$")),
                substitution: "/new".into(),
            },
        );
        action.retry_policy = Some(rds::RetryPolicy {
            num_retries: Some(UInt32Value { value: 5 }),
            per_try_timeout: Some(seconds(2)),
            retry_back_off: Some(rds::retry_policy::RetryBackOff {
                base_interval: Some(seconds(1)),
                max_interval: None,
            }),
            ..retry("reset, unavailable, retriable-4xx")
        });
    });
    assert_eq!(full.path_rewrite, Some(PathRewrite::Full("/new".into())));
    assert_eq!(
        full.per_try_timeout,
        Some(std::time::Duration::from_secs(2))
    );
    assert_eq!((full.retry.attempts, full.retry.on_reset), (5, true));
    assert_eq!(full.retry.grpc_codes, [14]);
    assert_eq!(full.retry.status_codes, [http::StatusCode::CONFLICT]);
    assert_eq!(full.retry.backoff_max, std::time::Duration::from_secs(10));
}

#[test]
fn header_changes() {
    let option = |key: &str, value: &str, append_action: i32| HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action,
        ..Default::default()
    };
    let with =
        |option: HeaderValueOption| with_route(|route| route.request_headers_to_add.push(option));
    let at = |field: &str| -> &'static str {
        format!("virtual_hosts[0].routes[0].request_headers_to_add[0].{field}").leak()
    };
    check("append", with(option("x-a", "1", 0)), Ok(()));
    check("overwrite", with(option("x-a", "100%%", 2)), Ok(()));
    check(
        "add if absent",
        with(option("x-a", "1", 1)),
        Err(at("append_action")),
    );
    check(
        "a command",
        with(option("x-a", "%REQ(x)%", 0)),
        Err(at("header.value")),
    );
    check(
        "a line break",
        with(option("x-a", "1\r\nx-b: 2", 0)),
        Err(at("header.value")),
    );
    check(
        "a pseudo-header",
        with(option(":path", "/", 2)),
        Err(at("header.key")),
    );
    check(
        "nothing",
        with(HeaderValueOption::default()),
        Err(at("header")),
    );
    check(
        "a lone per cent sign",
        with(option("x-a", "50% off", 2)),
        Ok(()),
    );
    let remove = with_route(|route| route.response_headers_to_remove.push("x y".to_owned()));
    check(
        "a bad name",
        remove,
        Err("virtual_hosts[0].routes[0].response_headers_to_remove[0]"),
    );
    let table = with(option("x-a", "100%%", 2)).expect("valid");
    assert_eq!(table.routes[0].request_headers.set[0].1, "100%");
}

#[test]
fn redirects_and_direct_responses() {
    let with = |action: Action| with_route(|route| route.action = Some(action));
    let redirect = |change: fn(&mut rds::RedirectAction)| {
        let mut message = rds::RedirectAction::default();
        change(&mut message);
        with(Action::Redirect(message))
    };
    check(
        "a host",
        redirect(|r| r.host_redirect = "a.example".into()),
        Ok(()),
    );
    let at = |field: &str| -> &'static str { format!("virtual_hosts[0].routes[0].{field}").leak() };
    check(
        "a bad host",
        redirect(|r| r.host_redirect = "a b".into()),
        Err(at("redirect.host_redirect")),
    );
    check(
        "a port",
        redirect(|r| r.port_redirect = 70_000),
        Err(at("redirect.port_redirect")),
    );
    check(
        "no query",
        redirect(|r| r.strip_query = true),
        Err(at("redirect.strip_query")),
    );
    let respond = |status| {
        with(Action::DirectResponse(rds::DirectResponseAction {
            status,
            ..Default::default()
        }))
    };
    check("a status", respond(500), Ok(()));
    check("no status", respond(0), Err(at("direct_response.status")));
    check(
        "nothing to do",
        with_route(|route| route.action = None),
        Err(at("action")),
    );
}

#[test]
fn route_configurations_have_one_virtual_host_for_everyone() {
    let decode = |change: fn(&mut rds::RouteConfiguration)| {
        let mut message = routes(SERVICE, &[SERVICE]);
        change(&mut message);
        route_table(SERVICE, &pack(&message))
    };
    check("one", decode(|_| {}), Ok(()));
    check("none", decode(|c| c.virtual_hosts.clear()), Ok(()));
    let two = decode(|c| c.virtual_hosts.push(c.virtual_hosts[0].clone()));
    check("two", two, Err("virtual_hosts[1]"));
    let one_domain = decode(|c| c.virtual_hosts[0].domains = vec!["a.example".into()]);
    check("one domain", one_domain, Err("virtual_hosts[0].domains"));
    let filters = decode(|c| {
        c.virtual_hosts[0]
            .typed_per_filter_config
            .insert("x".into(), garbage("x/y"));
    });
    check(
        "filter settings",
        filters,
        Err("virtual_hosts[0].typed_per_filter_config"),
    );
}

#[test]
fn clusters() {
    type Change = fn(&mut cds::Cluster);
    let table: [(&str, Change, Expected); 9] = [
        ("EDS", |_| {}, Ok(())),
        ("another name", |c| c.name.push('x'), Err("name")),
        (
            "static",
            |c| c.cluster_discovery_type = Some(cds::cluster::ClusterDiscoveryType::Type(0)),
            Err("type"),
        ),
        (
            "original destination",
            |c| c.cluster_discovery_type = Some(cds::cluster::ClusterDiscoveryType::Type(4)),
            Ok(()),
        ),
        ("a legacy policy", |c| c.lb_policy = 3, Ok(())),
        (
            "a policy that is not known",
            |c| c.lb_policy = 2,
            Err("lb_policy"),
        ),
        (
            "only policies that are not known",
            |c| c.load_balancing_policy = Some(cds::LoadBalancingPolicy::default()),
            Err("load_balancing_policy"),
        ),
        (
            "TLS for all",
            |c| c.transport_socket = Some(TransportSocket::default()),
            Err("transport_socket"),
        ),
        (
            "too many ejections",
            |c| {
                c.outlier_detection = Some(cds::OutlierDetection {
                    max_ejection_percent: Some(UInt32Value { value: 101 }),
                    ..Default::default()
                });
            },
            Err("outlier_detection.max_ejection_percent"),
        ),
    ];
    for (name, change, expected) in table {
        let mut message = a_cluster(SERVICE, 7);
        change(&mut message);
        check(name, cluster(SERVICE, &pack(&message)), expected);
    }
}

#[test]
fn the_first_known_policy_of_the_list_counts() {
    let policy = |any| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: String::new(),
            typed_config: Some(any),
        }),
    };
    let mut message = a_cluster(SERVICE, 7);
    message.load_balancing_policy = Some(cds::LoadBalancingPolicy {
        policies: vec![
            policy(garbage("x/future")),
            policy(pack(&Random::default())),
        ],
    });
    let spec = cluster(SERVICE, &pack(&message)).expect("valid");
    assert_eq!(spec.lb_policy, LbPolicy::Random);
    assert_eq!(spec.limits.max_requests, 7);
    assert_eq!(spec.source, EndpointSource::Eds(SERVICE.into()));
    assert_eq!(spec.connect_timeout, std::time::Duration::from_secs(1));
}

#[test]
fn services_are_told_from_names_of_clusters() {
    let table = [
        (SERVICE, Some("echo")),
        ("inbound|80||echo.demo.svc.cluster.local", Some("echo")),
        ("outbound|80|v1|echo.demo.svc", Some("echo")),
        ("inbound|80||", None),
        ("pod|80||echo-0.demo", None),
        ("outbound|80||echo.example.com", None),
        ("nonsense", None),
    ];
    for (name, expected) in table {
        let found = cluster::service_of(name);
        assert_eq!(
            found.as_ref().map(|service| &*service.name),
            expected,
            "{name:?}"
        );
    }
}

#[test]
fn endpoints_carry_identity_and_workload() {
    let metadata = tulle::v1::Endpoint {
        mtls: true,
        spiffe_ids: ["b", "a", "b"]
            .map(|sa| format!("spiffe://cluster.local/ns/demo/sa/{sa}"))
            .to_vec(),
        workload_name: "echo".into(),
        ..Default::default()
    };
    let mut draining = endpoint("10.1.0.2");
    draining.health_status = 3;
    let endpoint_list = vec![
        described("10.1.0.3", &metadata),
        draining,
        endpoint("10.1.0.2"),
    ];
    let set = endpoints(SERVICE, &pack(&load_assignment(SERVICE, endpoint_list))).expect("valid");
    let [plain, meshed] = set.0.as_slice() else {
        panic!("{set:?}")
    };
    assert_eq!(
        (plain.health, plain.weight, plain.mtls.is_some()),
        (Health::Draining, 1, false)
    );
    let ids = &meshed.mtls.as_ref().expect("it is mtls").0;
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(
        ids,
        [
            "spiffe://cluster.local/ns/demo/sa/a",
            "spiffe://cluster.local/ns/demo/sa/b"
        ]
    );
    assert_eq!(&*meshed.workload.name, "echo");
}

#[test]
fn endpoints_that_cannot_be_called_safely_are_refused() {
    let at =
        |field: &str| -> &'static str { format!("endpoints[0].lb_endpoints[0].{field}").leak() };
    let decode = |endpoint| endpoints(SERVICE, &pack(&load_assignment(SERVICE, vec![endpoint])));
    let metadata = at("metadata.typed_filter_metadata[\"tulle.dev\"]");
    let ids = |ids: &[&str]| tulle::v1::Endpoint {
        mtls: true,
        spiffe_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    let without = decode(described("10.1.0.2", &ids(&[])));
    check(
        "mtls without identity",
        without,
        Err(format!("{metadata}.spiffe_ids").leak()),
    );
    let bad = decode(described(
        "10.1.0.2",
        &ids(&["spiffe://cluster.local/admin"]),
    ));
    check(
        "a bad identity",
        bad,
        Err(format!("{metadata}.spiffe_ids[0]").leak()),
    );
    let mut garbled = endpoint("10.1.0.2");
    garbled.metadata = Some(Metadata {
        typed_filter_metadata: [(
            "tulle.dev".to_owned(),
            garbage("type.googleapis.com/tulle.v1.Endpoint"),
        )]
        .into(),
        ..Default::default()
    });
    check("garbage for metadata", decode(garbled), Err(metadata));
    check(
        "a name for an address",
        decode(endpoint("echo.demo")),
        Err(at("endpoint.address")),
    );
    let mut nowhere = endpoint("10.1.0.2");
    nowhere.host_identifier = None;
    check("no address", decode(nowhere), Err(at("endpoint")));
    let mut prioritised = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    prioritised.endpoints[0].priority = 1;
    check(
        "a priority",
        endpoints(SERVICE, &pack(&prioritised)),
        Err("endpoints[0].priority"),
    );
    check("fine", decode(endpoint("10.1.0.2")), Ok(()));
}

#[test]
fn workloads() {
    check("one", workload(&pack(&a_workload("web"))), Ok(()));
    let empty = tulle_xds_proto::istio::workload::Address::default();
    check("none", workload(&pack(&empty)), Err("workload"));
}

/// Feeds an `Any` to every decoder.
fn decode_all(any: &Any) {
    let _ = listener(INBOUND, any);
    let _ = listener(LISTENER, any);
    let _ = route_table(SERVICE, any);
    let _ = cluster(SERVICE, any);
    let _ = endpoints(SERVICE, any);
    let _ = workload(any);
}

fn any_of<M: Message + Name>(message: &M, at: usize, byte: u8) -> Any {
    let mut any = pack(message);
    if !any.value.is_empty() {
        let at = at % any.value.len();
        any.value[at] = byte;
    }
    any
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(value in proptest::collection::vec(any::<u8>(), 0..512)) {
        for kind in ResourceType::ALL {
            decode_all(&Any { type_url: kind.type_url().to_owned(), value: value.clone() });
        }
    }

    #[test]
    fn valid_resources_with_a_wrong_byte_never_panic(at in any::<usize>(), byte in any::<u8>()) {
        let listener = a_listener(
            INBOUND,
            vec![inbound_chain(Some(80), true, inline_manager(SERVICE)), inbound_chain(None, true, tcp(SERVICE))],
        );
        decode_all(&any_of(&listener, at, byte));
        decode_all(&any_of(&routes(SERVICE, &[SERVICE, SERVICE]), at, byte));
        decode_all(&any_of(&a_cluster(SERVICE, 9), at, byte));
        let metadata = tulle::v1::Endpoint {
            mtls: true,
            spiffe_ids: vec!["spiffe://cluster.local/ns/demo/sa/a".to_owned()],
            ..Default::default()
        };
        let endpoints = load_assignment(SERVICE, vec![described("10.1.0.2", &metadata), endpoint("fd00::1")]);
        decode_all(&any_of(&endpoints, at, byte));
        decode_all(&any_of(&a_workload("web"), at, byte));
    }
}
