//! What follows from the resources of a foreign control plane, and from what it does not say.

use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3 as lds;
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

use super::super::MAX_REFUSED;
use super::super::tests::{MAX_ASKED, destination, removal, response, said};
use super::*;
use crate::config::cluster::Discovery;
use crate::xds::tests::resources::{
    SERVICE, chain, cluster, endpoint, inbound_chain, listener, load_assignment, rds_manager,
    routes, socket_address, tcp,
};

/// A listener of a foreign name.
fn named(name: &str, ip: &str, cluster: &str) -> lds::Listener {
    lds::Listener {
        address: Some(socket_address(ip, 80)),
        ..listener(name, vec![chain(tcp(cluster))])
    }
}

/// A cluster that needs no EDS.
fn send_cluster(state: &mut State, name: &str) {
    let mut message = cluster(name, 1);
    let kind = ClusterDiscoveryType::Type(DiscoveryType::Static.into());
    message.cluster_discovery_type = Some(kind);
    message.load_assignment = Some(load_assignment("", vec![endpoint("10.1.0.2")]));
    state.apply(response(ResourceType::Cluster, name, &message));
}

fn send_listener(state: &mut State, message: &lds::Listener) {
    state.apply(response(ResourceType::Listener, &message.name, message));
}

fn nothing(kind: ResourceType) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// The name of the listener of a destination; empty if it is unknown.
fn found(state: &State, n: u32) -> Option<&str> {
    let lookup = state.snapshot().outbound.get(&destination(n))?;
    Some(match lookup {
        Lookup::Known(listener) => &listener.name,
        Lookup::Unknown => "",
    })
}

#[test]
fn by_wildcard_listeners_are_found_by_address_and_others_are_unknown() {
    let mut state = State::new(true, MAX_ASKED);
    let star = |kind| (kind, vec!["*".to_owned()], vec![]);
    assert_eq!(said(&mut state), [star("CDS"), star("LDS")]);
    state.ask(Ask::Outbound(destination(1)));
    state.ask(Ask::Outbound(destination(2)));
    assert!(!state.assemble(), "nothing has been answered yet");

    let foreign = named("some-name", "10.0.0.1", SERVICE);
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 1),
    ));
    state.apply(response(ResourceType::Listener, "some-name", &foreign));
    state.assemble();
    assert_eq!(
        said(&mut state),
        [("EDS", vec![SERVICE.to_owned()], vec![])]
    );
    assert!(
        !state.snapshot().outbound.contains_key(&destination(1)),
        "its endpoints are missing"
    );
    assert!(matches!(
        state.snapshot().outbound[&destination(2)],
        Lookup::Unknown
    ));
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    state.assemble();
    assert!(matches!(
        state.snapshot().outbound[&destination(1)],
        Lookup::Known(_)
    ));

    state.apply(removal(ResourceType::Listener, "some-name"));
    state.assemble();
    assert!(matches!(
        state.snapshot().outbound[&destination(1)],
        Lookup::Unknown
    ));
}

#[test]
fn a_listener_on_any_address_is_for_what_no_other_is_for() {
    let mut state = State::new(true, MAX_ASKED);
    for n in 1..=3 {
        state.ask(Ask::Outbound(destination(n)));
    }
    state.ask(Ask::Outbound("[fd00::1]:80".parse().expect("an address")));
    state.ask(Ask::Outbound("10.0.0.1:81".parse().expect("an address")));
    send_cluster(&mut state, "a");
    send_listener(&mut state, &named("any", "0.0.0.0", "a"));
    send_listener(&mut state, &named("exact", "10.0.0.2", "a"));
    // Of two for one address the first by name counts, in whatever order they come.
    send_listener(&mut state, &named("double", "10.0.0.2", "a"));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some("any"));
    assert_eq!(found(&state, 2), Some("double"));
    let unknown = state.snapshot().outbound.values();
    let unknown = unknown.filter(|lookup| matches!(lookup, Lookup::Unknown));
    assert_eq!(unknown.count(), 2, "another port, and the other family");
    assert!(!state.assemble(), "nothing has changed");

    state.apply(removal(ResourceType::Listener, "double"));
    state.apply(removal(ResourceType::Listener, "any"));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some(""));
    assert_eq!(found(&state, 2), Some("exact"));
}

#[test]
fn endpoints_inside_a_cluster_need_no_eds() {
    let mut state = State::new(true, MAX_ASKED);
    state.ask(Ask::Outbound(destination(1)));
    send_listener(&mut state, &named("web", "10.0.0.1", "a"));
    send_cluster(&mut state, "a");
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some("web"));
    let cluster = &state.snapshot().clusters["a"];
    assert_eq!(cluster.discovery, Discovery::Inline);
    assert_eq!(cluster.endpoints.len(), 1);
    let eds = said(&mut state)
        .into_iter()
        .find(|(kind, ..)| *kind == "EDS");
    assert_eq!(eds, None);
}

#[test]
fn a_pod_about_which_nothing_is_said_takes_what_a_pod_without_policy_takes() {
    let mut state = State::new(true, MAX_ASKED);
    assert!(
        !state.assemble() && state.snapshot().inbound.is_none(),
        "not yet"
    );
    state.apply(nothing(ResourceType::Listener));
    assert!(state.assemble());
    let inbound = state.snapshot().inbound.clone().expect("by default");
    assert!(inbound.port(8080).plaintext);

    // What is said counts, and stays when it is taken back.
    state.apply(nothing(ResourceType::Cluster));
    let strict = listener(INBOUND, vec![inbound_chain(None, true, tcp("app"))]);
    send_listener(&mut state, &strict);
    assert!(state.assemble());
    let inbound = state.snapshot().inbound.clone().expect("as it was told");
    assert!(!inbound.port(8080).plaintext);
    state.apply(removal(ResourceType::Listener, INBOUND));
    assert!(!state.assemble());
    assert!(
        !state
            .snapshot()
            .inbound
            .as_ref()
            .expect("it stays")
            .port(8080)
            .plaintext
    );
}

#[test]
fn a_policy_that_is_refused_is_not_taken_for_none() {
    let mut state = State::new(true, MAX_ASKED);
    state.apply(nothing(ResourceType::Cluster));
    let mut bad = listener(INBOUND, vec![inbound_chain(None, true, tcp("app"))]);
    bad.filter_chains[0].filters.clear();
    send_listener(&mut state, &bad);
    assert!(!state.assemble() && state.snapshot().inbound.is_none());
    let strict = listener(INBOUND, vec![inbound_chain(None, true, tcp("app"))]);
    send_listener(&mut state, &strict);
    assert!(state.assemble() && state.snapshot().inbound.is_some());
}

#[test]
fn inbound_by_another_name_is_refused() {
    let mut state = State::new(true, MAX_ASKED);
    let mut message = named("ingress", "0.0.0.0", "a");
    message.traffic_direction = TrafficDirection::Inbound.into();
    let outcome = state.apply(response(ResourceType::Listener, "ingress", &message));
    let rejected = outcome.expect("a known type").rejected;
    let reason = rejected[0].1.to_string();
    assert!(
        reason.contains("traffic_direction") && reason.contains("`inbound`"),
        "{reason}"
    );
}

#[test]
fn what_is_described_badly_is_not_unknown() {
    let mut state = State::new(true, MAX_ASKED);
    state.apply(nothing(ResourceType::Listener));
    state.ask(Ask::Outbound(destination(1)));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some(""));

    let mut bad = named("web", "10.0.0.1", "a");
    bad.filter_chains.clear();
    send_listener(&mut state, &bad);
    assert!(state.assemble());
    assert_eq!(
        found(&state, 1),
        None,
        "whoever asks is refused, not passed through"
    );
    state.ask(Ask::Outbound(destination(2)));
    assert!(state.assemble());
    assert_eq!(found(&state, 2), Some(""));

    send_cluster(&mut state, "a");
    send_listener(&mut state, &named("web", "10.0.0.1", "a"));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some("web"));
    // A bad version after a good one: the good one stays.
    send_listener(&mut state, &bad);
    assert!(!state.assemble());
    assert_eq!(found(&state, 1), Some("web"));
    state.apply(removal(ResourceType::Listener, "web"));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some(""));
}

#[test]
fn what_was_refused_is_not_unknown_while_there_is_no_control_plane() {
    let mut state = State::new(true, MAX_ASKED);
    state.ask(Ask::Outbound(destination(1)));
    let mut bad = named("web", "10.0.0.1", "a");
    bad.filter_chains.clear();
    let mut inbound = listener(INBOUND, vec![inbound_chain(None, true, tcp("app"))]);
    inbound.filter_chains[0].filters.clear();
    send_listener(&mut state, &bad);
    send_listener(&mut state, &inbound);
    state.reconnect();
    state.reconnect();
    state.ask(Ask::Outbound(destination(2)));
    assert!(state.assemble());
    assert_eq!(found(&state, 1), None, "not passed through");
    assert_eq!(found(&state, 2), Some(""));
    assert!(state.snapshot().inbound.is_none(), "not without policy");
    // On the new stream it counts what is refused there.
    send_listener(&mut state, &inbound);
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some(""), "it is gone");
    assert!(state.snapshot().inbound.is_none());
}

#[test]
fn after_a_restart_nothing_is_unknown_if_something_was_refused() {
    for (is_bad, expected) in [(false, Some("")), (true, None)] {
        let mut before = State::new(true, MAX_ASKED);
        let mut web = named("web", "10.0.0.1", "a");
        if is_bad {
            web.filter_chains.clear();
        }
        send_listener(&mut before, &web);
        let mut state = State::new(true, MAX_ASKED);
        state.import(before.export());
        state.reconnect();
        state.ask(Ask::Outbound(destination(2)));
        state.assemble();
        assert_eq!(found(&state, 2), expected);
        assert_eq!(state.snapshot().inbound.is_none(), is_bad);
        state.apply(nothing(ResourceType::Listener));
        state.assemble();
        assert_eq!(found(&state, 2), Some(""), "until it is said again");
    }
}

#[test]
fn with_more_refused_than_is_remembered_nothing_is_unknown() {
    let mut state = State::new(true, MAX_ASKED);
    for n in 0..=MAX_REFUSED {
        let mut bad = named(&format!("bad-{n}"), "10.0.0.9", "a");
        bad.filter_chains.clear();
        send_listener(&mut state, &bad);
    }
    assert_eq!(state.refused.len(), MAX_REFUSED);
    state.ask(Ask::Outbound(destination(1)));
    state.assemble();
    assert_eq!(found(&state, 1), None);
    assert!(state.snapshot().inbound.is_none());
    let mut gone = nothing(ResourceType::Listener);
    gone.removed_resources = (0..=MAX_REFUSED).map(|n| format!("bad-{n}")).collect();
    state.apply(gone);
    assert!(state.assemble());
    assert_eq!(found(&state, 1), Some(""));
}

#[test]
fn a_changed_cluster_counts_although_its_endpoints_are_not_sent_again() {
    let mut state = State::new(true, MAX_ASKED);
    state.ask(Ask::Outbound(destination(1)));
    send_listener(&mut state, &named("web", "10.0.0.1", SERVICE));
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 1),
    ));
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    assert!(state.assemble());
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 2),
    ));
    assert!(state.assemble());
    let cluster = &state.snapshot().clusters[SERVICE];
    assert_eq!(
        (cluster.limits.max_requests, cluster.endpoints.len()),
        (2, 1)
    );
}

#[test]
fn endpoints_and_routes_that_nobody_answers_for_are_given_up_and_may_still_come() {
    let mut state = State::new(true, MAX_ASKED);
    state.ask(Ask::Outbound(destination(1)));
    let mut web = named("web", "10.0.0.1", SERVICE);
    web.filter_chains = vec![chain(rds_manager("routes"))];
    send_listener(&mut state, &web);
    send_listener(&mut state, &named("tcp", "10.0.0.2", SERVICE));
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 1),
    ));
    assert!(!state.give_up(2).iter().any(|_| true));
    state.reconnect();
    assert!(state.give_up(2).is_empty(), "a new stream has its own time");
    let mut absent = state.give_up(2);
    absent.sort();
    assert_eq!(
        absent.iter().map(|name| &**name).collect::<Vec<_>>(),
        [SERVICE, "routes"]
    );
    assert!(state.assemble());
    assert_eq!(
        found(&state, 1),
        Some("web"),
        "its requests are answered 404"
    );
    assert_eq!(found(&state, 2), Some("tcp"), "its connections are reset");
    assert!(state.snapshot().clusters[SERVICE].endpoints.is_empty());
    assert!(state.give_up(2).is_empty(), "once is enough");

    state.apply(response(
        ResourceType::Route,
        "routes",
        &routes("routes", &[SERVICE]),
    ));
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    assert!(state.assemble());
    assert!(state.snapshot().routes.contains_key("routes"));
    assert_eq!(state.snapshot().clusters[SERVICE].endpoints.len(), 1);
}

#[test]
fn workloads_are_not_asked_for() {
    let mut state = State::new(true, MAX_ASKED);
    said(&mut state);
    assert!(state.ask(Ask::Workload(destination(1).ip())));
    assert_eq!(said(&mut state), []);
}
