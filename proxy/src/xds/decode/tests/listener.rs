//! `Listener`: outbound kinds, what is refused, and what makes inbound STRICT.

use tulle_xds_proto::envoy::config::cluster::v3 as cds;
use tulle_xds_proto::envoy::config::core::v3::{Metadata, TransportSocket};
use tulle_xds_proto::envoy::config::listener::v3 as lds;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use tulle_xds_proto::google::protobuf;
use tulle_xds_proto::pack;

use super::{Expected, check};
use crate::config::Protocol;
use crate::xds::decode::{INBOUND, Listener, listener};
use crate::xds::tests::resources::{
    LISTENER, SERVICE, chain, garbage, http_chain, inbound_chain, inline_manager, inspectors,
    listener as a_listener, network_filter, rds_manager, routes, tcp,
};

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
fn managers_that_change_the_host_are_refused() {
    use hcm::http_connection_manager::RouteSpecifier;
    use hcm::http_connection_manager::StripPortMode::StripAnyHostPort;
    type Change = fn(&mut hcm::HttpConnectionManager);
    let port = Err("filter_chains[0].filters[0].typed_config.strip_any_host_port");
    let dot = Err("filter_chains[0].filters[0].typed_config.strip_trailing_host_dot");
    let table: [(&str, Change, Expected); 5] = [
        ("as it is", |_| {}, Ok(())),
        (
            "no port is stripped",
            |m| m.strip_port_mode = Some(StripAnyHostPort(false)),
            Ok(()),
        ),
        (
            "the port",
            |m| m.strip_port_mode = Some(StripAnyHostPort(true)),
            port,
        ),
        (
            "the listener's port",
            |m| m.strip_matching_host_port = true,
            port,
        ),
        ("the last dot", |m| m.strip_trailing_host_dot = true, dot),
    ];
    for (name, change, expected) in table {
        let mut manager = hcm::HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::RouteConfig(routes(SERVICE, &[SERVICE]))),
            ..Default::default()
        };
        change(&mut manager);
        let message = a_listener(LISTENER, vec![chain(network_filter(&manager))]);
        check(name, listener(LISTENER, &pack(&message)), expected);
    }
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

#[test]
fn opaque_connections_are_hashed_by_source() {
    use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
    use tulle_xds_proto::envoy::r#type::v3::HashPolicy;
    use tulle_xds_proto::envoy::r#type::v3::hash_policy::{FilterState, PolicySpecifier, SourceIp};
    let decode = |policies: Vec<PolicySpecifier>| {
        let hash_policy = |policy_specifier| HashPolicy {
            policy_specifier: Some(policy_specifier),
        };
        let proxy = tcp_proxy::TcpProxy {
            hash_policy: policies.into_iter().map(hash_policy).collect(),
            cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
                SERVICE.to_owned(),
            )),
            ..Default::default()
        };
        let message = a_listener(LISTENER, vec![chain(network_filter(&proxy))]);
        listener(LISTENER, &pack(&message))
    };
    for (policies, expected) in [
        (vec![], false),
        (vec![PolicySpecifier::SourceIp(SourceIp::default())], true),
    ] {
        let Ok(Listener::Outbound(outbound)) = decode(policies) else {
            panic!("it is valid, and outbound");
        };
        let Protocol::Tcp(route) = &outbound.protocol else {
            panic!("it is opaque");
        };
        assert_eq!(route.by_source, expected);
    }
    let other = PolicySpecifier::FilterState(FilterState::default());
    let field = "filter_chains[0].filters[0].typed_config.hash_policy[0].policy_specifier";
    check("by something else", decode(vec![other]), Err(field));
}
