use std::collections::BTreeSet;
use std::fmt::Write;

use prost::Message;
use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::core::v3::HealthStatus;
use tulle_xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tulle_xds_proto::envoy::config::listener::v3::Listener;
use tulle_xds_proto::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use tulle_xds_proto::envoy::config::route::v3::{RouteConfiguration, route};
use tulle_xds_proto::istio::workload::{Address, address};
use tulle_xds_proto::tulle::v1::Endpoint;
use tulle_xds_proto::{ENDPOINT_METADATA, unpack};

use super::*;
use crate::source::objects;
use crate::store::{Event, Kind, MeshSettings, ObjectRef, Store};

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";

const BASE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1, tulle.dev/proxied: \"true\"}}
spec: {serviceAccountName: web, nodeName: n1, containers: []}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.1.0.2}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}}
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1}}
";

fn world(text: &str) -> Arc<World> {
    world_of(objects(text))
}

fn world_of(objects: Vec<crate::store::Object>) -> Arc<World> {
    let (store, mut writer) = Store::new(MeshSettings::default());
    writer.apply(objects.into_iter().map(Event::Apply).collect());
    writer.set_synced();
    store.world()
}

fn client(namespace: &str) -> ProxyView {
    ProxyView {
        namespace: Some(namespace.into()),
        ..ProxyView::of_kind(ClientKind::Tulle)
    }
}

fn get<M: Message + Default>(
    world: &World,
    view: &ProxyView,
    kind: ResourceType,
    name: &str,
) -> Option<M> {
    let full = resource(world, view, kind, name);
    let part = resource(world, &view_for(world, view, kind, name), kind, name);
    assert_eq!(full, part, "{name}: the view's part decides");
    full.map(|bytes| M::decode(bytes).expect("encoded by us"))
}

/// Endpoints as `address health mtls`.
fn endpoints(world: &World, view: &ProxyView, name: &str) -> Vec<String> {
    let assignment: ClusterLoadAssignment =
        get(world, view, ResourceType::Endpoints, name).expect("known");
    let all = assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    all.map(|endpoint| {
        let text = format!("{:?}", endpoint.host_identifier);
        let address = text
            .split("address: \"")
            .nth(1)
            .and_then(|it| it.split('"').next())
            .unwrap_or_default();
        let metadata = endpoint
            .metadata
            .as_ref()
            .and_then(|it| it.typed_filter_metadata.get(ENDPOINT_METADATA));
        let mtls = metadata.is_some_and(|any| unpack::<Endpoint>(any).expect("ours").mtls);
        let health = HealthStatus::try_from(endpoint.health_status)
            .expect("known")
            .as_str_name();
        format!("{address} {health} {mtls}")
    })
    .collect()
}

/// Routes as `name -> clusters or what else happens`.
fn routes(world: &World, view: &ProxyView, name: &str) -> Vec<String> {
    let table: RouteConfiguration = get(world, view, ResourceType::Route, name).expect("known");
    assert_eq!(table.virtual_hosts.len(), 1);
    table.virtual_hosts[0]
        .routes
        .iter()
        .map(|it| format!("{} {}", it.name, action(it.action.as_ref())))
        .collect()
}

fn action(action: Option<&route::Action>) -> String {
    match action {
        Some(route::Action::Route(route)) => {
            match &route.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => name.clone(),
                Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted
                    .clusters
                    .iter()
                    .fold(String::new(), |mut text, it| {
                        let weight = it.weight.as_ref().map_or(0, |weight| weight.value);
                        let name = it
                            .name
                            .trim_start_matches("outbound|80||")
                            .trim_end_matches(".svc.cluster.local");
                        let _ = write!(text, "{name}={weight};");
                        text
                    }),
                other => format!("{other:?}"),
            }
        }
        Some(route::Action::DirectResponse(answer)) => answer.status.to_string(),
        Some(route::Action::Redirect(redirect)) => format!("redirect {}", redirect.host_redirect),
        other => format!("{other:?}"),
    }
}

fn http_route(name: &str, namespace: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web, namespace: shop, port: 80}}]\n  rules: {rules}\n"
    )
}

#[test]
fn a_service_has_a_listener_for_each_port_by_protocol() {
    let world = world(BASE);
    let listener =
        |name: &str| get::<Listener>(&world, &client("shop"), ResourceType::Listener, name);
    for (name, chains, detect) in [
        ("outbound|10.0.0.1|80", 1, false),
        ("outbound|10.0.0.1|81", 1, true),
        ("outbound|10.0.0.1|82", 1, false),
    ] {
        let listener = listener(name).expect(name);
        assert_eq!(
            (listener.name.as_str(), listener.filter_chains.len()),
            (name, chains)
        );
        assert_eq!(listener.default_filter_chain.is_some(), detect, "{name}");
        assert_eq!(
            listener.listener_filters.len(),
            if detect { 2 } else { 0 },
            "{name}"
        );
    }
    assert!(
        listener("outbound|10.0.0.1|99").is_none(),
        "no port of the Service"
    );
    assert!(
        listener("outbound|10.9.9.9|80").is_none(),
        "nobody's address"
    );
    assert!(
        listener("outbound|10.1.0.1|5555").is_some(),
        "any port of a pod"
    );
}

#[test]
fn endpoints_come_with_identity_and_are_sorted() {
    let world = world(BASE);
    assert_eq!(
        endpoints(&world, &client("x"), WEB),
        ["10.1.0.1 HEALTHY true", "10.1.0.2 HEALTHY false"]
    );
    assert_eq!(
        endpoints(
            &world,
            &client("x"),
            "outbound|82||web.shop.svc.cluster.local"
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        endpoints(&world, &client("x"), "pod|9||web-1.shop"),
        ["10.1.0.1 HEALTHY true"]
    );
    let assignment: ClusterLoadAssignment =
        get(&world, &client("x"), ResourceType::Endpoints, WEB).expect("known");
    let metadata = assignment.endpoints[0].lb_endpoints[0]
        .metadata
        .as_ref()
        .expect("a pod");
    let endpoint: Endpoint =
        unpack(&metadata.typed_filter_metadata[ENDPOINT_METADATA]).expect("ours");
    assert_eq!(
        endpoint.spiffe_ids,
        ["spiffe://cluster.local/ns/shop/sa/web"]
    );
    assert_eq!(
        (endpoint.version.as_str(), endpoint.workload_name.as_str()),
        ("v1", "web-1")
    );
}

#[test]
fn the_state_of_an_endpoint_decides_whether_it_is_used() {
    let table = [
        ("{ready: true}", Some("HEALTHY")),
        ("{}", Some("HEALTHY")),
        ("{ready: false}", None),
        (
            "{ready: false, serving: true, terminating: true}",
            Some("DRAINING"),
        ),
        ("{ready: false, serving: false, terminating: true}", None),
    ];
    for (conditions, expected) in table {
        let text = BASE.replace(
            "name: web-2}}",
            &format!("name: web-2}}, conditions: {conditions}}}"),
        );
        let found = endpoints(&world(&text), &client("x"), WEB);
        let health = found
            .iter()
            .find_map(|it| it.strip_prefix("10.1.0.2 "))
            .map(|it| it.replace(" false", ""));
        assert_eq!(health.as_deref(), expected, "{conditions}");
    }
    let unsettled = BASE.replace("podIP: 10.1.0.1}", "podIP: 10.1.0.9}");
    assert_eq!(
        endpoints(&world(&unsettled), &client("x"), WEB),
        ["10.1.0.2 HEALTHY false"],
        "held back"
    );
    let local = BASE
        .replace(
            "clusterIP: 10.0.0.1",
            "clusterIP: 10.0.0.1\n  internalTrafficPolicy: Local",
        )
        .replace("name: web-1}}", "name: web-1}, nodeName: n1}");
    let on_node = ProxyView {
        node: Some("n1".into()),
        ..client("x")
    };
    assert_eq!(
        endpoints(&world(&local), &on_node, WEB),
        ["10.1.0.1 HEALTHY true"]
    );
}

#[test]
fn the_closest_policy_decides_and_ports_come_first() {
    let policy = |namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p-{}, namespace: {namespace}}}\nspec: {spec}\n",
            spec.len()
        )
    };
    let disable = "{mtls: {mode: DISABLE}}";
    let strict = "{mtls: {mode: STRICT}}";
    let workload = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
    let port = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    let table = [
        ("none", String::new(), true),
        ("mesh", policy("tulle-system", disable), false),
        (
            "namespace over mesh",
            policy("tulle-system", disable) + &policy("shop", strict),
            true,
        ),
        (
            "workload over namespace",
            policy("shop", disable) + &policy("shop", workload),
            true,
        ),
        ("port over workload", policy("shop", port), false),
        ("another namespace", policy("other", disable), true),
    ];
    for (name, policies, mtls) in table {
        let found = endpoints(&world(&format!("{BASE}{policies}")), &client("x"), WEB);
        assert_eq!(found[0], format!("10.1.0.1 HEALTHY {mtls}"), "{name}");
    }
}

#[test]
fn inbound_refuses_plaintext_under_strict_only() {
    let strict = "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}\n";
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    let plaintext = |text: &str| -> BTreeSet<u32> {
        let listener: Listener =
            get(&world(text), &view, ResourceType::Listener, "inbound").expect("own pod");
        let plain = listener
            .filter_chains
            .iter()
            .filter(|chain| chain.transport_socket.is_none());
        plain
            .map(|chain| {
                chain
                    .filter_chain_match
                    .as_ref()
                    .and_then(|it| it.destination_port)
                    .map_or(0, |it| it.value)
            })
            .collect()
    };
    assert_eq!(plaintext(BASE), BTreeSet::from([0, 82, 8080, 8081]));
    assert_eq!(
        plaintext(&format!("{BASE}{strict}")),
        BTreeSet::from([8080])
    );
    assert!(
        get::<Listener>(
            &world(BASE),
            &client("shop"),
            ResourceType::Listener,
            "inbound"
        )
        .is_none()
    );
}

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
    ];
    for (backends, expected) in table {
        let route = http_route("r", "shop", &format!("[{{backendRefs: {backends}}}]"));
        assert_eq!(
            routes(&world(&format!("{BASE}{route}")), &client("x"), WEB),
            [format!("shop/r {expected}")]
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

#[test]
fn a_workload_is_found_by_its_address() {
    let world = world(BASE);
    let found: Address =
        get(&world, &client("x"), ResourceType::Address, "/10.1.0.1").expect("known");
    let Some(address::Type::Workload(workload)) = found.r#type else {
        panic!("a workload")
    };
    assert_eq!(
        (workload.name.as_str(), workload.service_account.as_str()),
        ("web-1", "web")
    );
    assert_eq!(workload.addresses, [vec![10, 1, 0, 1]]);
    assert!(get::<Address>(&world, &client("x"), ResourceType::Address, "/10.1.0.77").is_none());
}

#[test]
fn the_order_of_input_does_not_change_a_byte() {
    let route = http_route("r", "shop", "[{backendRefs: [{name: web, port: 80}]}]");
    let text = format!("{BASE}{route}");
    let (forwards, mut backwards) = (objects(&text), objects(&text));
    backwards.reverse();
    let (one, two) = (world_of(forwards), world_of(backwards));
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    for kind in ResourceType::ALL {
        for name in [
            WEB,
            "inbound",
            "outbound|10.0.0.1|81",
            "pod|80||web-1.shop",
            "/10.1.0.1",
            "inbound|8080||",
        ] {
            let first = resource(&one, &view, kind, name);
            assert_eq!(first, resource(&two, &view, kind, name), "{name}");
            assert_eq!(first, resource(&one, &view, kind, name), "{name} again");
        }
    }
    assert_eq!(
        names(&one, &view, ResourceType::Cluster),
        names(&two, &view, ResourceType::Cluster)
    );
    assert_eq!(names(&one, &view, ResourceType::Listener).len(), 4);
    let cluster: Cluster = get(&one, &view, ResourceType::Cluster, WEB).expect("known");
    assert_eq!(
        cluster.load_balancing_policy.expect("named").policies.len(),
        2
    );
}

#[test]
fn a_change_of_one_slice_touches_its_own_endpoints_only() {
    let mut text = String::new();
    for i in 0..100 {
        let named = |text: &str| {
            text.replace("web", &format!("web{i}"))
                .replace("10.1.0.", &format!("10.{}.0.", i + 1))
        };
        let _ = write!(
            text,
            "---{}",
            named(BASE).replace("10.0.0.1", &format!("10.0.1.{i}"))
        );
    }
    let before = world(&text);
    let changed = ObjectRef {
        kind: Kind::EndpointSlice,
        key: ObjectKey::new("shop", "web7-a"),
    };
    let after = world(&text.replace(
        "{addresses: [10.8.0.2], targetRef",
        "{addresses: [10.8.0.2], conditions: {ready: false}, targetRef",
    ));
    let affected = Affected::between(&before, &after, &BTreeSet::from([changed]));
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web7-1")),
        ..client("shop")
    };
    let touched: Vec<String> = ResourceType::ALL
        .into_iter()
        .flat_map(|kind| {
            let names = (0..100).flat_map(|i| {
                [
                    format!("outbound|80||web{i}.shop.svc.cluster.local"),
                    format!("outbound|10.0.1.{i}|80"),
                    format!("pod|80||web{i}-1.shop"),
                    format!("/10.{}.0.1", i + 1),
                    "inbound".to_owned(),
                ]
            });
            names
                .filter(|name| affected.touches(kind, name, &view))
                .map(|name| format!("{} {name}", kind.short_name()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(touched, ["EDS outbound|80||web7.shop.svc.cluster.local"]);
    let (view, name) = (client("x"), "outbound|80||web7.shop.svc.cluster.local");
    assert_ne!(
        endpoints(&before, &view, name),
        endpoints(&after, &view, name)
    );
}

#[test]
fn a_service_touches_the_routes_that_name_it_and_the_pods_that_it_selects() {
    let route = http_route("r", "shop", "[{backendRefs: [{name: late, port: 80}]}]");
    let late = "---\napiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let before = world(&format!("{BASE}{route}"));
    let after = world(&format!("{BASE}{route}{late}"));
    let changed = BTreeSet::from([ObjectRef {
        kind: Kind::Service,
        key: ObjectKey::new("shop", "late"),
    }]);
    let affected = Affected::between(&before, &after, &changed);
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    assert!(affected.touches(ResourceType::Route, WEB, &view));
    assert!(affected.touches(ResourceType::Listener, "inbound", &view));
    assert!(!affected.touches(ResourceType::Endpoints, WEB, &view));
    assert_eq!(routes(&before, &view, WEB), ["shop/r 500"]);
    assert_eq!(routes(&after, &view, WEB), ["shop/r late.shop=1;"]);
}
