//! `RouteConfiguration`: actions, retries, header changes, redirects, and its one virtual host.

use tulle_xds_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use tulle_xds_proto::envoy::config::route::v3 as rds;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier,
};
use tulle_xds_proto::google::protobuf::{self, UInt32Value};
use tulle_xds_proto::pack;

use super::matching::safe_regex;
use super::{Expected, check, with_action, with_route};
use crate::config::route::{HashOn, PathRewrite, RouteAction};
use crate::xds::decode::route_table;
use crate::xds::tests::resources::SERVICE;

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
    let new_host = |host: &str| {
        let literal = HostRewriteSpecifier::HostRewriteLiteral(host.to_owned());
        with_action(|a| a.host_rewrite_specifier = Some(literal))
    };
    check("a new host", new_host("b.example:8080"), Ok(()));
    for host in ["a%b", "a b", "me@b", ""] {
        check("no host", new_host(host), Err(at("host_rewrite_literal")));
    }
    for path in ["/a b", "/a?b", "/a#b", "/<a>", "a"] {
        let rewrite = with_action(|a| a.path_rewrite = path.to_owned());
        check("no path", rewrite, Err(at("path_rewrite")));
    }
    for prefix in ["/a b", "/a?b", "a#b"] {
        let rewrite = with_action(|a| a.prefix_rewrite = prefix.to_owned());
        check("no prefix", rewrite, Err(at("prefix_rewrite")));
    }
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
        "a length",
        with(option("Content-Length", "3", 2)),
        Err(at("header.key")),
    );
    let framing = with_route(|route| {
        route
            .response_headers_to_remove
            .push("Transfer-Encoding".to_owned())
    });
    check(
        "no framing",
        framing,
        Err("virtual_hosts[0].routes[0].response_headers_to_remove[0]"),
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
    let table = with(option("x-a", "\t a b ", 2)).expect("valid");
    assert_eq!(table.routes[0].request_headers.set[0].1, "a b");
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
    for host in ["a b", "a:80", "me@a", "a:"] {
        let redirect = with(Action::Redirect(rds::RedirectAction {
            host_redirect: host.to_owned(),
            ..Default::default()
        }));
        check("a bad host", redirect, Err(at("redirect.host_redirect")));
    }
    for path in ["/a b", "/a?b", "a"] {
        let path = rds::redirect_action::PathRewriteSpecifier::PathRedirect(path.to_owned());
        let redirect = with(Action::Redirect(rds::RedirectAction {
            path_rewrite_specifier: Some(path),
            ..Default::default()
        }));
        check("a bad path", redirect, Err(at("redirect.path_redirect")));
    }
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
fn requests_are_hashed_by_source_or_header() {
    use rds::route_action::HashPolicy;
    use rds::route_action::hash_policy::{
        ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
    };
    let hashed = |specifier: Option<PolicySpecifier>| {
        with_action(|action| {
            action.hash_policy.push(HashPolicy {
                terminal: true,
                policy_specifier: specifier,
            });
        })
    };
    let header = |name: &str| {
        PolicySpecifier::Header(Header {
            header_name: name.to_owned(),
            regex_rewrite: None,
        })
    };
    let source =
        |source_ip| PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip });
    let taken = [
        (source(true), Some(HashOn::SourceIp)),
        (source(false), None),
        (
            header("X-User"),
            Some(HashOn::Header(http::HeaderName::from_static("x-user"))),
        ),
    ];
    for (specifier, on) in taken {
        let table = hashed(Some(specifier)).expect("valid");
        let RouteAction::Forward(forward) = &table.routes[0].action else {
            panic!("it forwards");
        };
        let on = on.map(|on| crate::config::route::HashPolicy { on, terminal: true });
        assert_eq!(forward.hash, Vec::from_iter(on));
    }
    let refused = [
        (Some(header("no name")), "header.header_name"),
        (Some(PolicySpecifier::Cookie(Cookie::default())), "cookie"),
        (
            Some(PolicySpecifier::QueryParameter(QueryParameter::default())),
            "query_parameter",
        ),
        (None, "policy_specifier"),
    ];
    for (specifier, field) in refused {
        let error = hashed(specifier).expect_err(field);
        let place = "virtual_hosts[0].routes[0].route.hash_policy[0]";
        assert_eq!(error.field(), format!("{place}.{field}"));
    }
}

#[test]
fn routes_and_splits_have_a_largest_size() {
    let sized = |routes: usize, clusters: usize| {
        let mut message = crate::xds::tests::resources::routes(SERVICE, &[SERVICE]);
        let host = &mut message.virtual_hosts[0];
        let share = rds::weighted_cluster::ClusterWeight {
            name: SERVICE.to_owned(),
            weight: Some(UInt32Value { value: 1 }),
            ..Default::default()
        };
        if let Some(Action::Route(action)) = &mut host.routes[0].action {
            let clusters = vec![share; clusters];
            action.cluster_specifier =
                Some(ClusterSpecifier::WeightedClusters(rds::WeightedCluster {
                    clusters,
                    ..Default::default()
                }));
        }
        host.routes = vec![host.routes[0].clone(); routes];
        route_table(SERVICE, &pack(&message))
    };
    check("as many as may be", sized(10_000, 1), Ok(()));
    check("one more", sized(10_001, 1), Err("virtual_hosts[0].routes"));
    check("as many clusters as may be", sized(1, 1_000), Ok(()));
    let field = "virtual_hosts[0].routes[0].route.weighted_clusters.clusters";
    check("one more cluster", sized(1, 1_001), Err(field));
}
