//! TCPRoute and TLSRoute: where connections lead, and when routes of requests come first.

use std::collections::BTreeSet;

use tulle_xds_proto::envoy::config::listener::v3::filter;
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as Clusters;

use super::*;
use crate::store::{Kind, ObjectRef};

const OPAQUE: &str = "outbound|10.0.0.1|82";
const ANY: &str = "outbound|10.0.0.1|81";
const HTTP: &str = "outbound|10.0.0.1|80";

/// Where opaque connections go, as `port=weight;`, and whether all connections are.
fn connections(world: &World, view: &ProxyView, name: &str) -> (String, bool) {
    let listener: Listener = get(world, view, ResourceType::Listener, name).expect("known");
    let chains = listener.filter_chains.iter();
    let filters = chains
        .chain(&listener.default_filter_chain)
        .flat_map(|chain| &chain.filters);
    let proxies = filters.filter_map(|it| match &it.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => unpack::<TcpProxy>(any).ok(),
        _ => None,
    });
    let proxies: Vec<_> = proxies.collect();
    let clusters = match proxies.first().and_then(|it| it.cluster_specifier.as_ref()) {
        Some(Clusters::Cluster(name)) => vec![(name.clone(), 1)],
        Some(Clusters::WeightedClusters(weighted)) => {
            let clusters = weighted.clusters.iter();
            clusters.map(|it| (it.name.clone(), it.weight)).collect()
        }
        None => Vec::new(),
    };
    let text = clusters
        .iter()
        .fold(String::new(), |mut text, (name, weight)| {
            let name = name.trim_start_matches("outbound|");
            let name = name.trim_end_matches(".svc.cluster.local");
            let _ = write!(text, "{name}={weight};");
            text
        });
    let chains = listener.filter_chains.len() + listener.default_filter_chain.iter().len();
    (text, chains == proxies.len())
}

fn views(namespace: &str) -> [ProxyView; 2] {
    [ClientKind::Tulle, ClientKind::Envoy].map(|kind| ProxyView {
        kind,
        ..client(namespace)
    })
}

fn tcp_route(namespace: &str, parent: &str, backends: &str) -> String {
    let rules = format!("[{{backendRefs: [{backends}]}}]");
    route_of("TCPRoute", "t", namespace, parent, &rules)
}

#[test]
fn connections_go_to_backends_by_weight() {
    let table = [
        ("{name: web, port: 81}", "81||web.shop=1;"),
        (
            "{name: web, port: 81, weight: 3}, {name: web, port: 82, weight: 7}, {name: web, port: 80, weight: 0}",
            "81||web.shop=3;82||web.shop=7;",
        ),
        (
            "{name: gone, port: 7}, {name: web, port: 82}",
            "7||gone.shop=1;82||web.shop=1;",
        ),
        ("{name: web, port: 82, weight: 0}", "invalid=1;"),
        ("{kind: Bucket, name: b}", "invalid=1;"),
        ("", "invalid=1;"),
    ];
    for kind in ["TCPRoute", "TLSRoute"] {
        for (backends, expected) in table {
            let route = tcp_route("shop", ", port: 82", backends).replace("TCPRoute", kind);
            let world = world(&format!("{BASE}{route}"));
            for view in views("other") {
                let seen = connections(&world, &view, OPAQUE);
                assert_eq!(seen, (expected.to_owned(), true), "{kind} {backends}");
                let other = connections(&world, &view, ANY);
                assert_eq!(other, ("81||web.shop=1;".to_owned(), false), "another port");
            }
        }
    }
}

#[test]
fn a_port_that_declares_nothing_is_opaque_by_its_route_unless_requests_are_routed() {
    let tcp = tcp_route("shop", "", "{name: web, port: 82}");
    let http = http_route("r", "shop", "[{}]");
    let http_any = http.replace("port: 80", "port: 81");
    let here = "82||web.shop=1;";
    let table = [
        (tcp.clone(), ANY, here, true),
        (format!("{tcp}{http_any}"), ANY, "81||web.shop=1;", false),
        (format!("{tcp}{http}"), ANY, here, true),
        (format!("{tcp}{http}"), OPAQUE, here, true),
        (tcp.clone(), HTTP, "", false),
    ];
    for (routes, name, expected, opaque) in table {
        let world = world(&format!("{BASE}{routes}"));
        let seen = connections(&world, &views("shop")[0], name);
        assert_eq!(seen, (expected.to_owned(), opaque), "{name} {routes}");
    }
}

#[test]
fn consumers_have_their_own_connections_and_tls_comes_before_tcp() {
    let producer = tcp_route("shop", "", "{name: web, port: 81}");
    let consumer = tcp_route(
        "other",
        "",
        "{name: web, namespace: shop, port: 82, weight: 5}",
    );
    let tls = tcp_route("third", "", "{name: web, namespace: shop, port: 80}");
    let tls = format!(
        "{}{}",
        tls.replace("TCPRoute", "TLSRoute"),
        tcp_route("third", "", "{name: web, namespace: shop, port: 82}")
    );
    let world = world(&format!("{BASE}{producer}{consumer}{tls}"));
    for (namespace, expected) in [
        ("shop", "81||web.shop=1;"),
        ("fourth", "81||web.shop=1;"),
        ("other", "82||web.shop=1;"),
        ("third", "80||web.shop=1;"),
    ] {
        for view in views(namespace) {
            assert_eq!(
                connections(&world, &view, OPAQUE).0,
                expected,
                "{namespace}"
            );
        }
    }
    let part = |namespace| view_for(&world, &client(namespace), ResourceType::Listener, OPAQUE);
    assert_eq!(part("shop"), part("fourth"), "they share the resource");
    assert_ne!(part("shop"), part("other"));
}

#[test]
fn a_change_of_a_route_touches_the_listeners_of_its_parents() {
    let route = tcp_route("shop", ", port: 82", "{name: web, port: 81}");
    let (before, after) = (world(BASE), world(&format!("{BASE}{route}")));
    let changed = BTreeSet::from([ObjectRef {
        kind: Kind::TcpRoute,
        key: ObjectKey::new("shop", "t"),
    }]);
    let view = client("shop");
    let subject = Subject::of(
        &MeshSettings::default(),
        ResourceType::Listener,
        OPAQUE,
        &view,
    );
    for (before, after) in [(&before, &after), (&after, &before)] {
        let affected = Affected::between(before, after, &changed);
        assert!(affected.touches(ResourceType::Listener, &subject, &view));
        assert_ne!(
            connections(before, &view, OPAQUE),
            connections(after, &view, OPAQUE)
        );
    }
}
