//! Which virtual hosts a table may have, and which requests find them.

use tulle_xds_proto::envoy::config::core::v3 as core;

use super::*;
use crate::xds::tests::resources::garbage;

/// Virtual hosts of these names and domains, each with one route of its host's name, changed by the row.
fn decoded(
    hosts: &[(&str, &[&str])],
    change: impl FnOnce(&mut rds::RouteConfiguration),
) -> Result<RouteTable, DecodeError> {
    let mut message = routes(SERVICE, &[SERVICE]);
    let one = message.virtual_hosts[0].clone();
    let host = |(name, domains): &(&str, &[&str])| {
        let mut host = one.clone();
        host.name = (*name).to_owned();
        host.domains = domains.iter().map(ToString::to_string).collect();
        host.routes[0].name = (*name).to_owned();
        host
    };
    message.virtual_hosts = hosts.iter().map(host).collect();
    change(&mut message);
    route_table(SERVICE, &pack(&message))
}

/// The route of a request to a host.
fn found(table: &RouteTable, host: &str) -> Option<String> {
    let request = http::Request::builder().header("host", host).body(());
    let (parts, ()) = request.expect("a request").into_parts();
    let route = crate::route::find(table, &parts)?;
    Some(route.name.to_string())
}

#[test]
fn requests_find_the_virtual_host_that_they_name() {
    let hosts: [(&str, &[&str]); 3] = [
        ("web", &["web.example", "web.example:8080"]),
        ("suffix", &["*.example"]),
        ("all", &["*"]),
    ];
    let table = decoded(&hosts, |_| {}).expect("valid");
    assert_eq!(table.routes.len(), 3);
    for (host, expected) in [
        ("WEB.example", "web"),
        ("web.example:8080", "web"),
        ("web.example:80", "all"),
        ("api.example", "suffix"),
        ("elsewhere", "all"),
    ] {
        assert_eq!(found(&table, host).as_deref(), Some(expected), "{host}");
    }
    let table = decoded(&hosts[..2], |_| {}).expect("valid");
    assert_eq!(found(&table, "elsewhere"), None);
    let table = decoded(&hosts, |c| c.ignore_port_in_host_matching = true).expect("valid");
    assert_eq!(found(&table, "web.example:80").as_deref(), Some("web"));
    assert_eq!(found(&table, "api.example:80").as_deref(), Some("suffix"));
}

#[test]
fn a_request_names_its_host_by_its_target_first() {
    let table = decoded(&[("a", &["a"]), ("b", &["b"])], |_| {}).expect("valid");
    let route = |uri: &str, header: Option<&str>| {
        let request = http::Request::builder().uri(uri);
        let request = header
            .into_iter()
            .fold(request, |it, host| it.header("host", host));
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        crate::route::find(&table, &parts).map(|route| route.name.to_string())
    };
    assert_eq!(route("/", Some("a")).as_deref(), Some("a"));
    assert_eq!(route("http://a/", None).as_deref(), Some("a"));
    assert_eq!(route("http://a/", Some("b")).as_deref(), Some("a"));
    assert_eq!(route("/", None), None, "a request that names nobody");
}

#[test]
fn one_virtual_host_for_everyone_needs_no_lookup() {
    let one = decoded(&[("all", &["a.example", "*"])], |_| {}).expect("valid");
    assert!(one.hosts.is_none());
    assert_eq!(found(&one, "elsewhere").as_deref(), Some("all"));
    let none = decoded(&[], |_| {}).expect("valid");
    assert!(none.hosts.is_none());
    assert_eq!(found(&none, "elsewhere"), None);
    let one = decoded(&[("one", &["a.example"])], |_| {}).expect("valid");
    assert_eq!(found(&one, "a.example").as_deref(), Some("one"));
    assert_eq!(found(&one, "elsewhere"), None);
}

#[test]
fn two_virtual_hosts_of_one_domain_are_refused_and_both_are_named() {
    let twice =
        |hosts: &[(&str, &[&str])]| decoded(hosts, |_| {}).expect_err("refused").to_string();
    assert_eq!(
        twice(&[("one", &["a", "b"]), ("two", &["c", "A"])]),
        "virtual_hosts[1].domains[1]: \"A\" is not valid; virtual_hosts[0] (\"one\") has it, not only \"two\": \
         send each domain once"
    );
    assert_eq!(
        twice(&[("one", &["*"]), ("two", &["a"]), ("three", &["*"])]),
        "virtual_hosts[2].domains[0]: \"*\" is not valid; virtual_hosts[0] (\"one\") has it, not only \"three\": \
         send each domain once"
    );
    assert_eq!(
        twice(&[("one", &["*.a", "*.A"])]),
        "virtual_hosts[0].domains[1]: \"*.A\" is not valid; \"one\" has it twice: send each domain once"
    );
}

#[test]
fn what_a_virtual_host_may_not_have_is_refused_by_field() {
    type Change = fn(&mut rds::RouteConfiguration);
    let rows: [(&str, Expected, Change); 14] = [
        ("as it is", Ok(()), |_| {}),
        ("the same name twice", Ok(()), |c| {
            c.virtual_hosts[1].name = "one".into()
        }),
        ("retries", Ok(()), |c| {
            c.virtual_hosts[1].retry_policy = Some(rds::RetryPolicy::default());
        }),
        ("no domain", Err("virtual_hosts[1].domains"), |c| {
            c.virtual_hosts[1].domains.clear()
        }),
        ("an empty one", Err("virtual_hosts[1].domains[1]"), |c| {
            c.virtual_hosts[1].domains.push(String::new());
        }),
        ("a star inside", Err("virtual_hosts[0].domains[1]"), |c| {
            c.virtual_hosts[0].domains.push("a.*.b".into());
        }),
        ("a long one", Err("virtual_hosts[0].domains[1]"), |c| {
            c.virtual_hosts[0].domains.push("a".repeat(260));
        }),
        (
            "headers",
            Err("virtual_hosts[1].request_headers_to_add"),
            |c| {
                c.virtual_hosts[1]
                    .response_headers_to_remove
                    .push("x".into());
            },
        ),
        (
            "settings",
            Err("virtual_hosts[1].typed_per_filter_config"),
            |c| {
                let settings = &mut c.virtual_hosts[1].typed_per_filter_config;
                settings.insert("x".into(), garbage("x/y"));
            },
        ),
        ("TLS", Err("virtual_hosts[1].require_tls"), |c| {
            c.virtual_hosts[1].require_tls = 1
        }),
        (
            "specifiers",
            Err("virtual_hosts[0].route_specifiers"),
            |c| {
                c.virtual_hosts[0]
                    .route_specifiers
                    .push(core::TypedExtensionConfig::default());
            },
        ),
        (
            "a bad route",
            Err("virtual_hosts[1].routes[0].match"),
            |c| {
                c.virtual_hosts[1].routes[0].r#match = None;
            },
        ),
        ("another header", Err("vhost_header"), |c| {
            c.vhost_header = "x-host".into()
        }),
        (
            "parameters",
            Err("ignore_path_parameters_in_path_matching"),
            |c| {
                c.ignore_path_parameters_in_path_matching = true;
            },
        ),
    ];
    for (name, expected, change) in rows {
        check(
            name,
            decoded(&[("one", &["a"]), ("two", &["*"])], change),
            expected,
        );
    }
}

#[test]
fn routes_are_counted_over_all_virtual_hosts_and_so_are_domains() {
    let sized = |routes: usize, domains: usize| {
        decoded(&[("one", &["a"]), ("two", &["b"])], |config| {
            let host = &mut config.virtual_hosts[1];
            host.routes = vec![host.routes[0].clone(); routes];
            host.domains = (0..domains).map(|n| format!("{n}.example")).collect();
        })
    };
    check("as many as may be", sized(9_999, 32_767), Ok(()));
    check(
        "a route more",
        sized(10_000, 1),
        Err("virtual_hosts[1].routes"),
    );
    check("a domain more", sized(1, 32_768), Err("virtual_hosts"));
}
