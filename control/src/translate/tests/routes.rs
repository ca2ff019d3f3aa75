//! HTTPRoute and GRPCRoute: whose routes count, in which order, and where they lead.

use tulle_xds_proto::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;

use super::*;

#[test]
fn routes_follow_the_precedence_of_the_gateway_api() {
    let backend = "backendRefs: [{name: web, port: 80}]";
    let rules = format!(
        "[{{name: all, {backend}}}, {{name: long, matches: [{{path: {{value: /a/b}}}}], {backend}}}, \
         {{name: short, matches: [{{path: {{value: /a}}}}], {backend}}}, \
         {{name: header, matches: [{{path: {{value: /a}}, headers: [{{name: x, value: y}}]}}], {backend}}}, \
         {{name: method, matches: [{{path: {{value: /a}}, method: GET}}], {backend}}}, \
         {{name: query, matches: [{{path: {{value: /a}}, queryParams: [{{name: q, value: y}}]}}], {backend}}}, \
         {{name: exact, matches: [{{path: {{type: Exact, value: /}}}}], {backend}}}]"
    );
    let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
    let names: Vec<_> = routes(&world, &client("shop"), WEB)
        .iter()
        .map(|it| {
            it.split(' ')
                .next()
                .unwrap_or_default()
                .trim_start_matches("shop/r/")
                .to_owned()
        })
        .collect();
    assert_eq!(
        names,
        ["exact", "long", "method", "header", "query", "short", "all"]
    );
}

#[test]
fn no_route_counts_at_a_headless_service() {
    let headless = BASE.replace("clusterIP: 10.0.0.1", "clusterIP: None");
    let route = http_route(
        "r",
        "shop",
        "[{backendRefs: [{name: web, port: 80, weight: 3}]}]",
    );
    let of = |text: &str| routes(&world(text), &client("shop"), WEB);
    assert_eq!(of(&format!("{headless}{route}")), of(&headless));
    assert_ne!(of(&format!("{BASE}{route}")), of(BASE));
}

#[test]
fn consumers_have_their_own_routes_and_nobody_elses() {
    let producer = http_route(
        "p",
        "shop",
        "[{backendRefs: [{name: web, port: 80, weight: 3}]}]",
    );
    let consumer = http_route(
        "c",
        "other",
        "[{backendRefs: [{name: web, namespace: shop, port: 80, weight: 7}]}]",
    );
    let world = world(&format!("{BASE}{producer}{consumer}"));
    assert_eq!(
        routes(&world, &client("other"), WEB),
        ["other/c web.shop=7;"]
    );
    assert_eq!(routes(&world, &client("shop"), WEB), ["shop/p web.shop=3;"]);
    assert_eq!(
        routes(&world, &client("third"), WEB),
        ["shop/p web.shop=3;"]
    );
    let part = |namespace: &str| view_for(&world, &client(namespace), ResourceType::Route, WEB);
    assert_eq!(part("shop"), part("third"), "they share the resource");
    assert_ne!(part("shop"), part("other"));
    assert_eq!(
        routes(
            &world,
            &client("other"),
            "outbound|81||web.shop.svc.cluster.local"
        ),
        [" outbound|81||web.shop.svc.cluster.local"],
        "the routes name another port"
    );
}

#[test]
fn backends_that_do_not_exist_answer_500_for_their_share() {
    let table = [
        ("[{name: gone, port: 80}]", "500"),
        ("[]", "500"),
        ("[{name: web, port: 80, weight: 0}]", "500"),
        (
            "[{name: web, port: 80}, {name: gone, port: 80, weight: 0}]",
            "web.shop=1;",
        ),
        (
            "[{name: web, port: 80}, {name: gone, port: 80}]",
            "web.shop=1;gone.shop=1;",
        ),
        (
            "[{name: web, port: 80, weight: 0}, {name: web, port: 81, weight: 0}]",
            "500",
        ),
        ("[{name: web, port: 99}]", "500"),
        ("[{name: outside, port: 80}]", "500"),
        ("[{group: storage.io, kind: Bucket, name: b}]", "500"),
        (
            "[{name: web, port: 80, weight: 3}, {group: storage.io, kind: Bucket, name: b}]",
            "web.shop=3;invalid=1;",
        ),
    ];
    for (backends, expected) in table {
        let route = http_route("r", "shop", &format!("[{{backendRefs: {backends}}}]"));
        assert_eq!(
            routes(
                &world(&format!("{BASE}{EXTERNAL}{route}")),
                &client("x"),
                WEB
            ),
            [format!("shop/r {expected}")],
            "{backends}"
        );
    }
}

#[test]
fn an_empty_prefix_is_replaced_by_the_root() {
    let matches = "[{path: {type: PathPrefix, value: /v1}}]";
    let path = "path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}";
    let forward = format!("{{type: URLRewrite, urlRewrite: {{{path}}}}}");
    let redirect = format!("{{type: RequestRedirect, requestRedirect: {{{path}}}}}");
    let rules = format!(
        "[{{matches: {matches}, filters: [{forward}], backendRefs: [{{name: web, port: 80}}]}}, \
          {{matches: {matches}, filters: [{redirect}]}}]"
    );
    let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
    let table: RouteConfiguration =
        get(&world, &client("shop"), ResourceType::Route, WEB).expect("known");
    let prefixes: Vec<_> = table.virtual_hosts[0]
        .routes
        .iter()
        .filter_map(|it| match it.action.as_ref()? {
            route::Action::Route(route) => Some(route.prefix_rewrite.clone()),
            route::Action::Redirect(redirect) => match redirect.path_rewrite_specifier.as_ref()? {
                PathRewriteSpecifier::PrefixRewrite(prefix) => Some(prefix.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(prefixes, ["/", "/"]);
}

#[test]
fn a_per_cent_sign_in_a_header_value_is_no_command() {
    let filter =
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: '5%A%'}]}}";
    let rules = format!("[{{filters: [{filter}], backendRefs: [{{name: web, port: 80}}]}}]");
    let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
    for kind in [ClientKind::Tulle, ClientKind::Envoy] {
        let view = ProxyView {
            namespace: Some("shop".into()),
            ..ProxyView::of_kind(kind)
        };
        let table: RouteConfiguration =
            get(&world, &view, ResourceType::Route, WEB).expect("known");
        let added = &table.virtual_hosts[0].routes[0].request_headers_to_add;
        let values: Vec<_> = added
            .iter()
            .filter_map(|it| Some(&*it.header.as_ref()?.value))
            .collect();
        assert_eq!(values, ["5%%A%%"]);
    }
}

const EXTERNAL: &str = "---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
";

/// The names of rules, in the order in which they are tried.
fn order(world: &World) -> Vec<String> {
    let name = |it: String| it.split(' ').next().unwrap_or_default().to_owned();
    let all = routes(world, &client("shop"), WEB);
    all.into_iter().map(name).collect()
}

#[test]
fn of_equal_matches_the_oldest_route_wins_then_the_first_by_name_then_the_first_rule() {
    let rules = "[{name: one, backendRefs: [{name: web, port: 80}]}, {name: two, backendRefs: [{name: web, port: 80}]}]";
    let aged = |name: &str, created: &str| {
        http_route(name, "shop", rules).replace(
            "namespace: shop}\nspec",
            &format!("namespace: shop{created}}}\nspec"),
        )
    };
    let old = ", creationTimestamp: \"2024-01-01T00:00:00Z\"";
    let new = ", creationTimestamp: \"2025-01-01T00:00:00Z\"";
    let of = |routes: String| order(&world(&format!("{BASE}{routes}")));
    let found = of(aged("b", "") + &aged("a", "") + &aged("d", new) + &aged("z", old));
    let expected: Vec<_> = ["z", "d", "a", "b"]
        .into_iter()
        .flat_map(|route| ["one", "two"].map(|rule| format!("shop/{route}/{rule}")))
        .collect();
    assert_eq!(found, expected);
    // The more specific match wins, however young its route is.
    let exact = aged("y", new).replace(
        "{name: one,",
        "{name: one, matches: [{path: {type: Exact, value: /x}}],",
    );
    assert_eq!(of(aged("z", old) + &exact)[0], "shop/y/one");
}

#[test]
fn headers_count_more_than_query_parameters_and_a_method_more_than_both() {
    let backend = "backendRefs: [{name: web, port: 80}]";
    let rules = format!(
        "[{{name: query, matches: [{{queryParams: [{{name: a, value: b}}, {{name: c, value: d}}]}}], {backend}}}, \
          {{name: header, matches: [{{headers: [{{name: a, value: b}}]}}], {backend}}}, \
          {{name: headers, matches: [{{headers: [{{name: a, value: b}}, {{name: c, value: d}}]}}], {backend}}}, \
          {{name: method, matches: [{{method: GET}}], {backend}}}, \
          {{name: regex, matches: [{{path: {{type: RegularExpression, value: \"/.*\"}}}}], {backend}}}]"
    );
    let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
    let names = ["regex", "method", "headers", "header", "query"];
    assert_eq!(order(&world), names.map(|name| format!("shop/r/{name}")));
}

#[test]
fn a_grpc_route_is_ordered_by_service_then_method_then_headers() {
    let backend = "backendRefs: [{name: web, port: 80}]";
    let rules = format!(
        "[{{name: all, {backend}}}, \
          {{name: method, matches: [{{method: {{method: LongMethodName}}}}], {backend}}}, \
          {{name: service, matches: [{{method: {{service: a.B}}}}], {backend}}}, \
          {{name: header, matches: [{{headers: [{{name: x, value: y}}]}}], {backend}}}, \
          {{name: both, matches: [{{method: {{service: a.B, method: C}}}}], {backend}}}, \
          {{name: longer, matches: [{{method: {{service: a.Bc}}}}], {backend}}}]"
    );
    let route = route_of("GRPCRoute", "g", "shop", "", &rules);
    let names = ["longer", "both", "service", "method", "header", "all"];
    assert_eq!(
        order(&world(&format!("{BASE}{route}"))),
        names.map(|name| format!("shop/g/{name}"))
    );
}

#[test]
fn routes_of_one_service_are_merged_and_grpc_takes_all_of_its_port() {
    let rule = |path: &str| {
        format!(
            "[{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: web, port: 80}}]}}]"
        )
    };
    let two = http_route("a", "shop", &rule("/a")) + &http_route("b", "shop", &rule("/b/b"));
    assert_eq!(
        order(&world(&format!("{BASE}{two}"))),
        ["shop/b", "shop/a"],
        "one order for the rules of both"
    );
    let grpc = |parent: &str| {
        let rules = "[{backendRefs: [{name: web, port: 80}]}]";
        route_of("GRPCRoute", "g", "shop", parent, rules)
    };
    assert_eq!(
        order(&world(&format!("{BASE}{two}{}", grpc("")))),
        ["shop/g"]
    );
    assert_eq!(
        order(&world(&format!("{BASE}{two}{}", grpc(", port: 81")))),
        ["shop/b", "shop/a"],
        "a GRPCRoute of another port takes nothing"
    );
}

#[test]
fn a_parent_reference_may_name_one_port_by_number_or_name() {
    let on = |parent: &str| {
        let rules = "[{backendRefs: [{name: web, port: 80}]}]";
        let route = route_of("HTTPRoute", "r", "shop", parent, rules);
        let world = world(&format!("{BASE}{route}"));
        [80, 81].map(|port| {
            let name = format!("outbound|{port}||web.shop.svc.cluster.local");
            routes(&world, &client("x"), &name)[0].starts_with("shop/r ")
        })
    };
    for (parent, expected) in [
        ("", [true, true]),
        (", port: 80", [true, false]),
        (", sectionName: any", [false, true]),
        (", port: 80, sectionName: http", [true, false]),
        (", port: 80, sectionName: any", [false, false]),
        (", sectionName: nothing", [false, false]),
    ] {
        assert_eq!(on(parent), expected, "{parent}");
    }
}

#[test]
fn a_service_of_another_namespace_is_a_backend_without_a_grant() {
    let far = "---\napiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: away}\nspec: {ports: [{port: 80}]}\n";
    let route = http_route(
        "r",
        "shop",
        "[{backendRefs: [{name: far, namespace: away, port: 80}]}]",
    );
    let found = |text: &str| routes(&world(text), &client("x"), WEB);
    assert_eq!(
        found(&format!("{BASE}{far}{route}")),
        ["shop/r far.away=1;"]
    );
    assert_eq!(found(&format!("{BASE}{route}")), ["shop/r 500"]);
}

#[test]
fn a_route_without_rules_takes_everything_and_leads_nowhere() {
    let route = http_route("r", "shop", "[]");
    let found = |text: &str| routes(&world(text), &client("x"), WEB);
    let omitted = route.replace("  rules: []\n", "");
    assert_eq!(
        found(&format!("{BASE}{omitted}")),
        ["shop/r 500"],
        "the default rule matches everything and has no backend"
    );
    assert_eq!(
        found(&format!("{BASE}{route}")),
        Vec::<String>::new(),
        "nothing matches: 404"
    );
}

#[test]
fn hostnames_do_not_matter_to_a_route_of_a_service() {
    let route = http_route("r", "shop", "[{backendRefs: [{name: web, port: 80}]}]");
    let with = route.replace("  rules:", "  hostnames: [example.com]\n  rules:");
    let table = |route: &str| {
        resource(
            &world(&format!("{BASE}{route}")),
            &client("x"),
            ResourceType::Route,
            WEB,
        )
    };
    assert!(with.contains("hostnames"));
    assert_eq!(table(&with), table(&route));
}

#[test]
fn timeouts_and_retries_reach_the_wire_and_their_absence_is_written() {
    let action = |rule: &str| {
        let rules = format!("[{{backendRefs: [{{name: web, port: 80}}]{rule}}}]");
        let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
        let table: RouteConfiguration =
            get(&world, &client("x"), ResourceType::Route, WEB).expect("known");
        match table.virtual_hosts[0].routes[0].action.clone() {
            Some(route::Action::Route(action)) => action,
            other => panic!("{other:?}"),
        }
    };
    let seconds = |action: &tulle_xds_proto::envoy::config::route::v3::RouteAction| {
        let retry = action.retry_policy.clone().expect("always written");
        (
            action.timeout.as_ref().map(|it| it.seconds),
            retry.per_try_timeout.map(|it| it.seconds),
            retry.num_retries.map(|it| it.value),
            retry.retriable_status_codes,
        )
    };
    let said = action(
        ", timeouts: {request: 5s, backendRequest: 2s}, retry: {attempts: 4, codes: [503, 500], backoff: 30ms}",
    );
    assert_eq!(seconds(&said), (Some(5), Some(2), Some(4), vec![500, 503]));
    assert_eq!(
        seconds(&action("")),
        (Some(0), None, Some(2), vec![]),
        "0 is no limit, where the client's default would be one"
    );
    assert_eq!(
        seconds(&action(", retry: {attempts: 0}")),
        (Some(0), None, Some(0), vec![])
    );
}
