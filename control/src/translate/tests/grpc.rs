//! What gRPC is told.

use std::collections::BTreeSet;

use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::core::v3::{TransportSocket, transport_socket};
use tulle_xds_proto::envoy::config::listener::v3::Listener;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::config::route::v3::{Route, RouteAction};
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use tulle_xds_proto::google::protobuf::Any;

use super::*;
use crate::store::{Kind, ObjectRef};

const MESHED: &str = "mtls|80||web.shop.svc.cluster.local";
/// The endpoint of `web` that has no sidecar.
const BARE: &str = "- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}}\n";
/// The one that has.
const PROXIED: &str = "- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1}}\n";

fn grpc(namespace: &str) -> ProxyView {
    ProxyView {
        kind: ClientKind::Grpc,
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client(namespace)
    }
}

/// The route table that a target leads to.
fn routes_of(world: &World, view: &ProxyView, target: &str) -> Option<String> {
    let listener: Listener = get(world, view, ResourceType::Listener, target)?;
    assert_eq!(listener.name, target);
    assert!(listener.filter_chains.is_empty() && listener.listener_filters.is_empty());
    let manager = listener
        .api_listener
        .and_then(|it| it.api_listener)
        .expect("an API listener");
    let manager: HttpConnectionManager = unpack(&manager).expect("encoded by us");
    assert_eq!(manager.http_filters.len(), 1, "the router");
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => Some(rds.route_config_name),
        other => panic!("{other:?}"),
    }
}

fn config(socket: Option<TransportSocket>) -> Option<Any> {
    socket.map(|socket| match socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(config)) => config,
        None => panic!("no configuration"),
    })
}

/// Ids that a cluster pins, `None` if it is called in plaintext, and the name of its endpoints.
fn cluster(world: &World) -> (Option<Vec<String>>, String) {
    let cluster: Cluster = get(world, &grpc("x"), ResourceType::Cluster, WEB).expect("known");
    let context: Option<UpstreamTlsContext> =
        config(cluster.transport_socket).map(|it| unpack(&it).expect("encoded by us"));
    let ids = context.map(|it| pinned(it.common_tls_context.expect("set")));
    let endpoints = cluster.eds_cluster_config.expect("by EDS").service_name;
    (ids, endpoints)
}

#[expect(deprecated, reason = "the field that gRPC knows")]
fn pinned(common: CommonTlsContext) -> Vec<String> {
    let own = common.tls_certificate_provider_instance.expect("own");
    assert_eq!(own.instance_name, "default");
    let Some(ValidationContextType::ValidationContext(peers)) = common.validation_context_type
    else {
        panic!("no validation")
    };
    let roots = peers.ca_certificate_provider_instance.expect("roots");
    assert_eq!(roots.instance_name, "default");
    let names = peers.match_subject_alt_names.iter();
    names
        .map(|it| match &it.match_pattern {
            Some(
                tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
                    id,
                ),
            ) => id.clone(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn addresses(world: &World, name: &str) -> Vec<String> {
    let view = grpc("x");
    let assignment: ClusterLoadAssignment =
        get(world, &view, ResourceType::Endpoints, name).expect("known");
    for locality in &assignment.endpoints {
        assert!(locality.locality.is_some(), "gRPC refuses one without");
        let weight = locality
            .load_balancing_weight
            .expect("gRPC ignores one without");
        assert_eq!(weight.value as usize, locality.lb_endpoints.len());
    }
    endpoints(world, &view, name)
        .iter()
        .map(|it| it.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

fn actions(world: &World, view: &ProxyView) -> Vec<(Route, RouteAction)> {
    let table: RouteConfiguration = get(world, view, ResourceType::Route, WEB).expect("known");
    let routes = table.virtual_hosts.into_iter().flat_map(|it| it.routes);
    routes
        .map(|route| match route.action.clone() {
            Some(route::Action::Route(action)) => (route, action),
            other => panic!("gRPC refuses {other:?}"),
        })
        .collect()
}

#[test]
fn a_target_leads_to_the_routes_of_its_service() {
    let world = world(BASE);
    let (own, other) = (grpc("shop"), grpc("other"));
    for target in [
        "web:80",
        "web.shop:80",
        "web.shop.svc:80",
        "web.shop.svc.cluster.local:80",
    ] {
        assert_eq!(
            routes_of(&world, &own, target).as_deref(),
            Some(WEB),
            "{target}"
        );
    }
    assert_eq!(routes_of(&world, &other, "web:80"), None);
    assert_eq!(
        routes_of(&world, &other, "web.shop:80").as_deref(),
        Some(WEB)
    );
    for nothing in ["web:79", "nobody:80", "inbound", "outbound|10.0.0.1|80"] {
        assert_eq!(routes_of(&world, &own, nothing), None, "{nothing}");
    }
    let full = view_for(&world, &own, ResourceType::Listener, "web.shop:80");
    assert_eq!(
        full,
        ProxyView::of_kind(ClientKind::Grpc),
        "everybody shares it"
    );
    let names = names(&world, &own, ResourceType::Listener);
    assert!(
        names.contains(&"web.shop.svc.cluster.local:80".to_owned()),
        "{names:?}"
    );
    for name in names {
        assert!(routes_of(&world, &own, &name).is_some(), "{name}");
    }
}

#[test]
fn opaque_ports_take_no_calls() {
    let text = BASE.replace("{name: http, port: 80", "{name: tcp-http, port: 80");
    assert_eq!(routes_of(&world(&text), &grpc("shop"), "web:80"), None);
}

#[test]
fn a_cluster_is_called_in_one_way_and_has_only_such_endpoints() {
    let both = world(BASE);
    let web = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    assert_eq!(cluster(&both), (Some(vec![web.clone()]), MESHED.to_owned()));
    assert_eq!(addresses(&both, MESHED), ["10.1.0.1"]);
    assert_eq!(
        addresses(&both, WEB),
        ["10.1.0.2"],
        "for a moment, in plaintext"
    );

    let bare = world(&BASE.replace(PROXIED, ""));
    assert_eq!(cluster(&bare), (None, WEB.to_owned()));
    assert_eq!(addresses(&bare, WEB), ["10.1.0.2"]);

    let proxied = world(&BASE.replace(BARE, ""));
    assert_eq!(cluster(&proxied), (Some(vec![web]), MESHED.to_owned()));

    let none = world(
        &BASE
            .replace(BARE, "")
            .replace(PROXIED, "")
            .replace("endpoints:\n", "endpoints: []\n"),
    );
    let nobody = "spiffe://cluster.local/".to_owned();
    assert_eq!(
        cluster(&none),
        (Some(vec![nobody]), MESHED.to_owned()),
        "who comes first decides"
    );
    assert_eq!(addresses(&none, MESHED), [""; 0]);
}

#[test]
fn ids_are_those_of_all_endpoints_of_the_port() {
    let other = "---\napiVersion: v1\nkind: Pod\n\
        metadata: {name: web-3, namespace: shop, labels: {app: web, tulle.dev/proxied: \"true\"}}\n\
        spec: {serviceAccountName: second, containers: []}\nstatus: {podIP: 10.1.0.3}\n";
    let third = "- {addresses: [10.1.0.3], conditions: {ready: false}, targetRef: {kind: Pod, name: web-3}}\n";
    let world = world(&(BASE.to_owned() + third + other));
    let ids = ["second", "web"].map(|it| format!("spiffe://cluster.local/ns/shop/sa/{it}"));
    assert_eq!(cluster(&world).0.expect("mTLS"), ids);
    assert_eq!(
        addresses(&world, MESHED),
        ["10.1.0.1"],
        "the third is not ready"
    );
}

#[test]
fn requests_that_grpc_never_makes_have_no_routes_and_prefixes_mind_segments() {
    let backend = "backendRefs: [{name: web, port: 80}]";
    let rules = format!(
        "[{{name: prefix, matches: [{{path: {{value: /pkg.Echo}}}}], {backend}}}, \
         {{name: exact, matches: [{{path: {{type: Exact, value: /pkg.Echo/Get}}, method: POST}}], {backend}}}, \
         {{name: get, matches: [{{method: GET}}], {backend}}}, \
         {{name: query, matches: [{{queryParams: [{{name: q, value: y}}]}}], {backend}}}, \
         {{name: header, matches: [{{headers: [{{name: x, value: y}}]}}], {backend}}}]"
    );
    let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
    let found: Vec<String> = actions(&world, &grpc("x"))
        .into_iter()
        .map(|(route, _)| {
            let matches = route.r#match.expect("set");
            assert!(matches.query_parameters.is_empty());
            let path = match matches.path_specifier {
                Some(PathSpecifier::Path(path)) => format!("={path}"),
                Some(PathSpecifier::Prefix(path)) => format!("{path}*"),
                other => panic!("gRPC refuses {other:?}"),
            };
            let headers: Vec<_> = matches.headers.iter().map(|it| &*it.name).collect();
            format!("{} {path} {headers:?}", route.name)
        })
        .collect();
    assert_eq!(
        found,
        [
            "shop/r/exact =/pkg.Echo/Get []",
            "shop/r/prefix =/pkg.Echo []",
            "shop/r/prefix /pkg.Echo/* []",
            "shop/r/header /* [\"x\"]",
        ]
    );
}

#[test]
fn what_grpc_cannot_do_leads_to_a_cluster_without_endpoints() {
    let redirect = "filters: [{type: RequestRedirect, requestRedirect: {hostname: h}}]";
    let table = [
        ("backendRefs: [{name: gone, port: 80}]", "nowhere=1;"),
        ("backendRefs: []", "nowhere"),
        ("backendRefs: [{name: web, port: 80, weight: 0}]", "nowhere"),
        (redirect, "nowhere"),
        (
            "backendRefs: [{name: web, port: 80, weight: 3}, {name: gone, port: 80, weight: 1}, {name: too, port: 1}]",
            "nowhere=2;web.shop=3;",
        ),
    ];
    for (rule, expected) in table {
        let world = world(&format!(
            "{BASE}{}",
            http_route("r", "shop", &format!("[{{{rule}}}]"))
        ));
        assert_eq!(
            routes(&world, &grpc("x"), WEB),
            [format!("shop/r {expected}")],
            "{rule}"
        );
    }
    let world = world(BASE);
    let nowhere: Cluster =
        get(&world, &grpc("x"), ResourceType::Cluster, "nowhere").expect("it exists");
    let endpoints = nowhere.eds_cluster_config.expect("by EDS").service_name;
    assert_eq!(addresses(&world, &endpoints), [""; 0]);
    assert_eq!(
        resource(&world, &client("x"), ResourceType::Cluster, "nowhere"),
        None
    );
}

#[test]
fn deadlines_and_retries_are_written_as_grpc_reads_them() {
    let rule = |more: &str| {
        let rules = format!("[{{backendRefs: [{{name: web, port: 80}}]{more}}}]");
        let world = world(&format!("{BASE}{}", http_route("r", "shop", &rules)));
        let action = actions(&world, &grpc("x")).remove(0).1;
        let timeout = action
            .max_stream_duration
            .and_then(|it| it.max_stream_duration);
        let retry = action
            .retry_policy
            .map(|it| (it.retry_on, it.num_retries.map(|it| it.value)));
        (timeout.map(|it| it.seconds), retry)
    };
    let retry = |on: &str, number| Some((on.to_owned(), Some(number)));
    assert_eq!(
        rule(""),
        (None, None),
        "gRPC repeats by itself what is safe"
    );
    assert_eq!(rule(", timeouts: {request: 3s}"), (Some(3), None));
    assert_eq!(rule(", timeouts: {request: 0s}"), (None, None));
    assert_eq!(rule(", retry: {attempts: 2}").1, retry("unavailable", 2));
    assert_eq!(
        rule(", retry: {attempts: 9, codes: [503, 504, 502, 500]}").1,
        retry("deadline-exceeded,internal,unavailable", 4)
    );
    assert_eq!(rule(", retry: {attempts: 0}").1, None);
    assert_eq!(rule(", retry: {attempts: 2, codes: [501]}").1, None);
}

#[test]
fn affinity_keeps_a_channel_with_one_endpoint() {
    let text = BASE.replace(
        "clusterIP: 10.0.0.1",
        "clusterIP: 10.0.0.1\n  sessionAffinity: ClientIP",
    );
    let world = world(&text);
    let cluster: Cluster = get(&world, &grpc("x"), ResourceType::Cluster, WEB).expect("known");
    let policies = cluster.load_balancing_policy.expect("named").policies;
    let first = policies[0].typed_extension_config.as_ref().expect("set");
    assert_eq!(first.name, "envoy.load_balancing_policies.ring_hash");
    assert_eq!(policies.len(), 3);
    let (_, action) = actions(&world, &grpc("x")).remove(0);
    assert!(format!("{:?}", action.hash_policy).contains("io.grpc.channel_id"));
}

#[test]
fn a_server_asks_for_certificates_as_the_policy_of_its_port_says() {
    let at = |address: &str| format!("grpc/server?xds.resource.listening_address={address}");
    let policy = |mode: &str| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{8080: {{mode: {mode}}}}}}}\n"
        )
    };
    let view = grpc("shop");
    let table = [
        ("STRICT", Some(true)),
        ("PERMISSIVE", Some(false)),
        ("DISABLE", None),
    ];
    for (mode, expected) in table {
        let world = world(&(BASE.to_owned() + &policy(mode)));
        let name = at("0.0.0.0:8080");
        let mut listener: Listener =
            get(&world, &view, ResourceType::Listener, &name).expect("own pod");
        assert_eq!(
            listener.filter_chains.len(),
            1,
            "there is one way to find a chain"
        );
        let context: Option<DownstreamTlsContext> =
            config(listener.filter_chains.remove(0).transport_socket)
                .map(|it| unpack(&it).expect("encoded by us"));
        let require = context.map(|it| {
            assert_eq!(pinned(it.common_tls_context.expect("set")), [""; 0]);
            it.require_client_certificate.is_some_and(|it| it.value)
        });
        assert_eq!(require, expected, "{mode}");
    }
    let world = world(BASE);
    let found = |address| resource(&world, &view, ResourceType::Listener, &at(address)).is_some();
    for (address, expected) in [
        ("[::]:8080", true),
        ("10.1.0.1:8080", true),
        ("127.0.0.1:8080", true),
        ("10.1.0.2:8080", false),
        ("0.0.0.0:08080", false),
        ("", false),
    ] {
        assert_eq!(found(address), expected, "{address}");
    }
}

#[test]
fn a_service_that_comes_is_told_to_who_asked_for_it() {
    let late = BASE.split("---").next().expect("the Service");
    let without = world(&BASE.replace(late, ""));
    let with = world(BASE);
    let changed = BTreeSet::from([ObjectRef {
        kind: Kind::Service,
        key: ObjectKey::new("shop", "web"),
    }]);
    let affected = Affected::between(&without, &with, &changed);
    for (target, namespace, touched) in [
        ("web:80", "shop", true),
        ("web:80", "other", false),
        ("web.shop:80", "other", true),
        ("api.shop:80", "other", false),
    ] {
        let view = grpc(namespace);
        let kind = ResourceType::Listener;
        let subject = Subject::of(with.mesh(), kind, target, &view);
        let reached = match affected.reach(kind) {
            Reach::Subjects(subjects) => subjects.contains(&subject),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reached && affected.touches(kind, &subject, &view),
            touched,
            "{target} {namespace}"
        );
        let [before, after] = [&without, &with].map(|it| routes_of(it, &view, target));
        assert_eq!(before != after, touched, "{target} {namespace}");
    }
}
