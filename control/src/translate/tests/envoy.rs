//! Envoy's view, as far as it differs from our own proxy's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::core::v3::{TransportSocket, transport_socket};
use tulle_xds_proto::envoy::config::listener::v3::{FilterChain, Listener, filter};
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::CodecType,
};
use tulle_xds_proto::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use tulle_xds_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::*;
use crate::store::{Kind, ObjectRef};

fn view() -> ProxyView {
    ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        namespace: Some("shop".into()),
        ..ProxyView::of_kind(ClientKind::Envoy)
    }
}

fn listener(world: &World, name: &str) -> Listener {
    get(world, &view(), ResourceType::Listener, name).expect("known")
}

fn cluster(world: &World, name: &str) -> Cluster {
    get(world, &view(), ResourceType::Cluster, name).expect("known")
}

/// What is in a transport socket: offered or accepted protocols, and the ids of peers.
fn tls(socket: &TransportSocket) -> (Vec<String>, Vec<String>) {
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        panic!("no config: {socket:?}");
    };
    let common: CommonTlsContext = match unpack::<UpstreamTlsContext>(any) {
        Ok(context) => context.common_tls_context.expect("there"),
        Err(_) => {
            let context: DownstreamTlsContext = unpack(any).expect("one of the two");
            assert!(context.require_client_certificate.expect("there").value);
            context.common_tls_context.expect("there")
        }
    };
    assert!(common.tls_certificates.is_empty(), "a key on the wire");
    let own = &common.tls_certificate_sds_secret_configs;
    assert!(format!("{own:?}").contains("/var/run/secrets/tulle-state/agent/svid.sds.json"));
    let Some(ValidationContextType::CombinedValidationContext(peers)) =
        common.validation_context_type
    else {
        panic!("peers are not verified");
    };
    let roots = peers.validation_context_sds_secret_config.expect("roots");
    assert_eq!(roots.name, ROOT_CA);
    let names = peers.default_validation_context.expect("names");
    let ids = names.match_typed_subject_alt_names.into_iter().map(|it| {
        match it
            .matcher
            .expect("a matcher")
            .match_pattern
            .expect("a pattern")
        {
            MatchPattern::Exact(id) => id,
            MatchPattern::Prefix(id) => format!("{id}*"),
            other => panic!("{other:?}"),
        }
    });
    (common.alpn_protocols, ids.collect())
}

/// A chain as `port transport [protocols] what`.
fn shown(chain: &FilterChain) -> String {
    let matches = chain.filter_chain_match.clone().unwrap_or_default();
    let what: Vec<String> = chain
        .filters
        .iter()
        .map(|filter| {
            let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
                panic!("no config: {filter:?}");
            };
            if let Ok(manager) = unpack::<HttpConnectionManager>(any) {
                let codec = CodecType::try_from(manager.codec_type).expect("known");
                return codec.as_str_name().to_owned();
            }
            if unpack::<TcpProxy>(any).is_ok() {
                return "TCP".to_owned();
            }
            let state: SetFilterState = unpack(any).expect("one of the three");
            let text = format!("{state:?}");
            let offered = ["tulle-h2", "tulle-tcp"]
                .into_iter()
                .find(|it| text.contains(it));
            offered.unwrap_or("?").to_owned()
        })
        .collect();
    let port = matches.destination_port.map_or(0, |port| port.value);
    let protocols = matches.application_protocols.join(",");
    format!(
        "{port} {} [{protocols}] {}",
        matches.transport_protocol,
        what.join("+")
    )
}

fn chains(listener: &Listener) -> Vec<String> {
    let chains = listener.filter_chains.iter().map(shown);
    let default = listener.default_filter_chain.iter();
    chains
        .chain(default.map(|chain| format!("default {}", shown(chain))))
        .collect()
}

#[test]
fn all_is_every_service_and_what_its_own_pod_needs() {
    let world = world(BASE);
    assert_eq!(
        names(&world, &view(), ResourceType::Listener),
        [
            "inbound",
            "outbound",
            "outbound|10.0.0.1|80",
            "outbound|10.0.0.1|81",
            "outbound|10.0.0.1|82"
        ]
    );
    let host = "web.shop.svc.cluster.local";
    let mut expected: Vec<String> = [0, 8080, 8081, 82]
        .map(|port| format!("inbound|{port}||"))
        .to_vec();
    expected.extend([80, 81, 82].map(|port| format!("outbound|{port}||{host}")));
    expected.push("passthrough".to_owned());
    assert_eq!(names(&world, &view(), ResourceType::Cluster), expected);
    for kind in [ResourceType::Listener, ResourceType::Cluster] {
        for name in names(&world, &view(), kind) {
            assert!(resource(&world, &view(), kind, &name).is_some(), "{name}");
        }
    }
    let ours = ProxyView {
        kind: ClientKind::Tulle,
        ..view()
    };
    for (kind, name) in [
        (ResourceType::Listener, "outbound"),
        (ResourceType::Cluster, "passthrough"),
    ] {
        assert_eq!(resource(&world, &ours, kind, name), None, "{name}");
    }
}

#[test]
fn endpoints_of_a_headless_service_are_among_all() {
    let headless = BASE.replace("clusterIP: 10.0.0.1", "clusterIP: None");
    let world = world(&headless);
    let listeners = names(&world, &view(), ResourceType::Listener);
    assert_eq!(
        listeners,
        [
            "inbound",
            "outbound",
            "outbound|10.1.0.1|8080",
            "outbound|10.1.0.2|8080"
        ]
    );
    let clusters = names(&world, &view(), ResourceType::Cluster);
    assert!(
        clusters.contains(&"pod|8080||web-1.shop".to_owned()),
        "{clusters:?}"
    );
    let slice = BTreeSet::from([ObjectRef {
        kind: Kind::EndpointSlice,
        key: ObjectKey::new("shop", "web-a"),
    }]);
    let one_less = "- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}}\n";
    assert!(headless.contains(one_less));
    let before = super::world(&headless.replace(one_less, ""));
    let affected = Affected::between(&before, &world, &slice);
    let came = Subject::Address(IpAddr::from([10, 1, 0, 2]));
    let pod = Subject::Pod(ObjectKey::new("shop", "web-2"));
    let reach = affected.reach(ResourceType::Listener);
    assert_eq!(reach, Reach::Subjects(vec![came, pod]));
    let affected = Affected::between(&world, &world, &slice);
    assert_eq!(affected.reach(ResourceType::Listener), Reach::Nothing);
}

#[test]
fn a_chain_is_for_one_version_and_offers_what_the_cluster_would_not() {
    let world = world(BASE);
    let found = [
        "0 raw_buffer [http/1.0,http/1.1] HTTP1",
        "0 raw_buffer [h2c] tulle-h2+HTTP2",
    ];
    for (port, default) in [
        (80, Some("default 0  [] HTTP1")),
        (81, Some("default 0  [] tulle-tcp+TCP")),
        (82, None),
    ] {
        let listener = listener(&world, &format!("outbound|10.0.0.1|{port}"));
        assert!(!listener.bind_to_port.expect("said").value);
        let expected = match default {
            Some(default) => [&found[..], &[default]].concat(),
            None => vec!["0  [] tulle-tcp+TCP"],
        };
        assert_eq!(chains(&listener), expected, "{port}");
    }
    let capture = listener(&world, "outbound");
    assert!(capture.use_original_dst.expect("said").value);
    assert_eq!(chains(&capture), ["15001  [] ", "default 0  [] TCP"]);
}

#[test]
fn inbound_has_a_chain_for_each_case_and_none_for_plaintext_under_strict() {
    let strict = "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}\n";
    let listener = listener(&world(&format!("{BASE}{strict}")), "inbound");
    let of = |port: u32| -> Vec<String> {
        let mut chains = chains(&listener);
        chains.retain(|chain| chain.starts_with(&format!("{port} ")));
        chains
    };
    assert_eq!(of(15006), ["15006  [] "]);
    assert_eq!(
        of(8080),
        [
            "8080 tls [tulle-http1,http/1.1] HTTP1",
            "8080 tls [tulle-h2,h2] HTTP2"
        ]
    );
    assert_eq!(
        of(82),
        [
            "82 tls [tulle-tcp] TCP",
            "82 raw_buffer [] TCP",
            "82 tls [] TCP"
        ]
    );
    assert_eq!(
        of(8081),
        [
            "8081 tls [tulle-http1] HTTP1",
            "8081 tls [tulle-h2] HTTP2",
            "8081 tls [tulle-tcp] TCP",
            "8081 raw_buffer [http/1.0,http/1.1] HTTP1",
            "8081 raw_buffer [h2c] HTTP2",
            "8081 raw_buffer [] TCP",
            "8081 tls [] TCP"
        ]
    );
    assert_eq!(of(0).len(), of(8081).len());
    for chain in listener.filter_chains {
        let Some(socket) = &chain.transport_socket else {
            continue;
        };
        let (accepted, peers) = tls(socket);
        assert_eq!(
            accepted,
            chain
                .filter_chain_match
                .expect("said")
                .application_protocols
        );
        assert_eq!(peers, ["spiffe://cluster.local/ns/*"]);
    }
    let app = cluster(&world(BASE), "inbound|8080||");
    let from = format!("{:?}", app.upstream_bind_config);
    assert!(
        from.contains("\"127.0.0.6\"") && from.contains("\"::6\""),
        "{from}"
    );
}

#[test]
fn a_cluster_pins_the_ids_of_all_its_endpoints_and_somebody_always() {
    let third = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-3, namespace: shop, labels: {app: web, tulle.dev/proxied: \"true\"}}\n\
         spec: {serviceAccountName: other, containers: []}\nstatus: {podIP: 10.1.0.3}\n";
    let starting = BASE.replace(
        "endpoints:\n",
        "endpoints:\n- {addresses: [10.1.0.3], conditions: {ready: false}, targetRef: {kind: Pod, name: web-3}}\n",
    );
    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let sockets = |text: &str, name: &str| cluster(&world(text), name).transport_socket_matches;
    let socket = |text: &str, name: &str| {
        let [mtls, plaintext] = sockets(text, name).try_into().expect("two sockets");
        assert_eq!(mtls.r#match.expect("a condition").fields.len(), 1);
        assert!(plaintext.r#match.expect("none").fields.is_empty());
        let plaintext = plaintext.transport_socket.expect("a socket");
        assert_eq!(plaintext.name, "envoy.transport_sockets.raw_buffer");
        tls(&mtls.transport_socket.expect("a socket"))
    };
    let own = |alpn: &str, ids: &[&str]| (names_of(&[alpn]), ids.iter().map(|it| id(it)).collect());
    assert_eq!(socket(BASE, WEB), own("tulle-http1", &["web"]));
    assert_eq!(
        socket(&format!("{starting}{third}"), WEB),
        own("tulle-http1", &["other", "web"])
    );
    let pod = "pod|9999||web-1.shop";
    assert_eq!(socket(BASE, pod), own("tulle-http1", &["web"]));
    // Nobody of the mesh is behind it: nobody's certificate will do.
    let nobody = (
        names_of(&["tulle-http1"]),
        names_of(&["spiffe://cluster.local/"]),
    );
    let plain = BASE.replace("tulle.dev/proxied: \"true\"", "x: y");
    assert_eq!(socket(&plain, WEB), nobody);
    assert_eq!(socket(BASE, "pod|9999||web-2.shop"), nobody);
    for (protocol, alpn) in [
        ("http2", "tulle-h2"),
        ("grpc", "tulle-h2"),
        ("tcp", "tulle-tcp"),
    ] {
        let text = BASE.replace("name: http,", &format!("name: {protocol}-web,"));
        let text = text.replace("{name: http,", &format!("{{name: {protocol}-web,"));
        let (offered, _) = socket(&text, WEB);
        assert_eq!(offered, [alpn], "{protocol}");
    }
}

fn names_of(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn names_in_statistics_have_no_dots() {
    let world = world(BASE);
    let stat_name = cluster(&world, WEB).alt_stat_name;
    assert_eq!(stat_name, "outbound|80||web_shop_svc_cluster_local");
    for name in ["outbound|10.0.0.1|80", "outbound|10.0.0.1|82"] {
        let chain = listener(&world, name).filter_chains.remove(0);
        let prefix = match &chain.filters.last().expect("a filter").config_type {
            Some(filter::ConfigType::TypedConfig(any)) => match unpack::<TcpProxy>(any) {
                Ok(proxy) => proxy.stat_prefix,
                Err(_) => {
                    unpack::<HttpConnectionManager>(any)
                        .expect("the other")
                        .stat_prefix
                }
            },
            other => panic!("{other:?}"),
        };
        assert!(
            prefix.starts_with("outbound|8") && !prefix.contains('.'),
            "{prefix}"
        );
    }
}

#[test]
fn endpoints_that_come_and_go_change_no_cluster() {
    let fewer = BASE.replace(
        "- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}}\n",
        "",
    );
    assert_ne!(fewer, BASE);
    assert_eq!(cluster(&world(BASE), WEB), cluster(&world(&fewer), WEB));
}

#[test]
fn only_endpoints_of_the_mesh_are_marked() {
    let assignment: ClusterLoadAssignment =
        get(&world(BASE), &view(), ResourceType::Endpoints, WEB).expect("known");
    let endpoints = assignment.endpoints.iter().flat_map(|it| &it.lb_endpoints);
    let marked: Vec<bool> = endpoints
        .map(|endpoint| match &endpoint.metadata {
            Some(metadata) => {
                assert!(metadata.typed_filter_metadata.is_empty());
                metadata
                    .filter_metadata
                    .contains_key("envoy.transport_socket_match")
            }
            None => false,
        })
        .collect();
    assert_eq!(marked, [true, false]);
}

/// Retry conditions by whether the route is for idempotent methods only.
fn retries(text: &str) -> Vec<(bool, String)> {
    let table: RouteConfiguration =
        get(&world(text), &view(), ResourceType::Route, WEB).expect("known");
    let routes = table.virtual_hosts[0].routes.iter().filter_map(|it| {
        let Some(route::Action::Route(action)) = &it.action else {
            return None;
        };
        let policy = action.retry_policy.as_ref().expect("always said");
        assert_eq!(policy.retry_host_predicate.len(), 1);
        assert_eq!(policy.retriable_headers[0].name, "x-tulle-unprocessed");
        let headers = &it.r#match.as_ref().expect("a match").headers;
        let idempotent = format!("{headers:?}").contains("GET|HEAD|OPTIONS|TRACE|PUT|DELETE");
        Some((idempotent, policy.retry_on.clone()))
    });
    routes.collect()
}

#[test]
fn what_may_have_been_processed_is_retried_for_idempotent_methods_only() {
    let surely_not = "connect-failure,refused-stream,retriable-headers,reset-before-request";
    let any =
        |answers: &str| format!("connect-failure,refused-stream,retriable-headers,reset{answers}");
    let both = |answers: &str| vec![(true, any(answers)), (false, surely_not.to_owned())];
    assert_eq!(retries(BASE), both(",gateway-error"));
    let with = |rules: &str| format!("{BASE}{}", http_route("r", "shop", rules));
    let rules = |more: &str| {
        with(&format!(
            "[{{{more} backendRefs: [{{name: web, port: 80}}]}}]"
        ))
    };
    assert_eq!(retries(&rules("")), both(",gateway-error"));
    let codes = rules("retry: {codes: [500], attempts: 3},");
    assert_eq!(retries(&codes), both(",retriable-status-codes"));
    for (method, expected) in [
        ("POST", surely_not.to_owned()),
        ("PUT", any(",gateway-error")),
    ] {
        let one = rules(&format!("matches: [{{method: {method}}}],"));
        assert_eq!(retries(&one), [(false, expected)], "{method}");
    }
}

#[test]
fn a_redirect_says_the_port_that_is_meant() {
    let port = |text: &str, filter: &str| {
        let rules =
            format!("[{{filters: [{{type: RequestRedirect, requestRedirect: {filter}}}]}}]");
        let text = format!(
            "{text}{}",
            http_route("r", "shop", &rules).replace(", port: 80", "")
        );
        let name = names(&world(&text), &view(), ResourceType::Cluster)
            .into_iter()
            .find(|name| name.starts_with("outbound|80"))
            .expect("one port");
        let table: RouteConfiguration =
            get(&world(&text), &view(), ResourceType::Route, &name).expect("known");
        match &table.virtual_hosts[0].routes[0].action {
            Some(route::Action::Redirect(redirect)) => redirect.port_redirect,
            other => panic!("{other:?}"),
        }
    };
    let other = BASE.replace("port: 80,", "port: 8000,");
    for (text, filter, expected) in [
        (BASE, "{hostname: a.b}", 0),
        (&other, "{hostname: a.b}", 8000),
        (&other, "{hostname: a.b, port: 81}", 81),
        (&other, "{hostname: a.b, scheme: https}", 0),
        (&other, "{scheme: https}", 443),
        (&other, "{scheme: http}", 80),
    ] {
        assert_eq!(port(text, filter), expected, "{filter}");
    }
}
