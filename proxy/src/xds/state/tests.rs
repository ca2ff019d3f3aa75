//! Subscriptions over time, without a server.

use std::net::SocketAddr;

use tulle_xds_proto::envoy::config::cluster::v3::cluster::LbPolicy;
use tulle_xds_proto::envoy::service::discovery::v3::Resource;
use tulle_xds_proto::pack;
use tulle_xds_proto::prost::{Message, Name};

use super::*;
use crate::config::Lookup;
use crate::xds::tests::resources::{
    LISTENER, SERVICE, chain, cluster, endpoint, listener, load_assignment, tcp, workload,
};

/// Fewer than what a sidecar has if nothing is said.
pub(super) const MAX_ASKED: usize = 64;

pub(super) fn destination(n: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 80)
}

pub(super) fn response<M: Message + Name>(
    kind: ResourceType,
    name: &str,
    message: &M,
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources: vec![Resource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(pack(message)),
            ..Resource::default()
        }],
        ..DeltaDiscoveryResponse::default()
    }
}

pub(super) fn removal(kind: ResourceType, name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        removed_resources: vec![name.to_owned()],
        ..DeltaDiscoveryResponse::default()
    }
}

/// Everything that is to be said now, as (type, subscribed, unsubscribed).
pub(super) fn said(state: &mut State) -> Vec<(&'static str, Vec<String>, Vec<String>)> {
    let mut said = Vec::new();
    while let Some(request) = state.next_request(true) {
        let kind = ResourceType::from_type_url(&request.type_url).expect("a type of ours");
        let names = (
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        );
        if !names.0.is_empty() || !names.1.is_empty() {
            said.push((kind.short_name(), names.0, names.1));
        }
    }
    said
}

/// A state that knows one opaque destination and has said everything.
fn opaque() -> State {
    let mut state = State::new(false, MAX_ASKED);
    assert!(state.ask(Ask::Outbound(destination(1))));
    state.apply(response(
        ResourceType::Listener,
        LISTENER,
        &listener(LISTENER, vec![chain(tcp(SERVICE))]),
    ));
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 1),
    ));
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    assert!(state.assemble());
    said(&mut state);
    state
}

#[test]
fn what_is_not_used_for_long_is_dropped_with_all_that_it_named() {
    let mut state = opaque();
    for _ in 1..MAX_IDLE_SWEEPS {
        assert!(!state.sweep());
    }
    state.snapshot().used[&Ask::Outbound(destination(1))].mark();
    for _ in 0..MAX_IDLE_SWEEPS {
        assert!(!state.sweep(), "it was used in between");
    }
    let hold = state.snapshot().used[&Ask::Outbound(destination(1))].hold();
    for _ in 0..2 * MAX_IDLE_SWEEPS {
        assert!(!state.sweep(), "a connection is open");
    }
    drop(hold);
    for _ in 1..MAX_IDLE_SWEEPS {
        assert!(!state.sweep());
    }
    assert!(state.sweep());
    assert!(state.snapshot().outbound.is_empty());
    let one = |name: &str| vec![name.to_owned()];
    assert_eq!(
        said(&mut state),
        [
            ("CDS", vec![], one(SERVICE)),
            ("EDS", vec![], one(SERVICE)),
            ("LDS", vec![], one(LISTENER)),
        ]
    );
    assert!(state.snapshot().clusters.is_empty());
}

#[test]
fn subscriptions_are_capped_and_an_idle_one_makes_room() {
    let mut state = State::new(false, MAX_ASKED);
    for n in 0..MAX_ASKED {
        assert!(state.ask(Ask::Outbound(destination(n as u32))));
    }
    let one_more = Ask::Outbound(destination(MAX_ASKED as u32));
    assert!(!state.ask(one_more));
    assert!(state.ask(Ask::Outbound(destination(7))), "asked before");
    assert!(
        state.ask(Ask::Workload(destination(7).ip())),
        "workloads count by themselves"
    );
    for used in state
        .snapshot()
        .used
        .iter()
        .filter(|(ask, _)| **ask != Ask::Outbound(destination(9)))
    {
        used.1.mark();
    }
    state.sweep();
    assert!(state.ask(one_more));
    assert!(
        !state
            .snapshot()
            .used
            .contains_key(&Ask::Outbound(destination(9))),
        "the idle one went"
    );
}

#[test]
fn a_changed_cluster_still_waits_for_its_endpoints_after_a_reconnect() {
    let mut state = opaque();
    state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 2),
    ));
    assert!(!state.assemble());
    state.reconnect();
    let requests: Vec<_> = std::iter::from_fn(|| state.next_request(true)).collect();
    let eds = requests
        .iter()
        .find(|request| request.type_url == ResourceType::Endpoints.type_url());
    let versions = &eds.expect("it is subscribed").initial_resource_versions;
    assert!(
        versions.is_empty(),
        "or the server would not send it: {versions:?}"
    );
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    assert!(state.assemble());
    assert_eq!(state.snapshot().clusters[SERVICE].limits.max_requests, 2);
}

#[test]
fn endpoint_changes_touch_nothing_else() {
    let mut state = opaque();
    let before = state.snapshot().clone();
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2"), endpoint("10.1.0.3")]);
    state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
    assert!(state.assemble());
    let after = state.snapshot();
    assert_eq!(after.clusters[SERVICE].endpoints.len(), 2);
    assert!(Arc::ptr_eq(
        &before.clusters[SERVICE].endpoints[0],
        &after.clusters[SERVICE].endpoints[0]
    ));
    assert_eq!(before.outbound.len(), after.outbound.len());
    assert_eq!(said(&mut state), []);
    state.apply(response(
        ResourceType::Endpoints,
        SERVICE,
        &load_assignment(SERVICE, vec![]),
    ));
    assert!(state.assemble());
    assert!(
        state.snapshot().clusters[SERVICE].endpoints.is_empty(),
        "none is an answer too"
    );
}

#[test]
fn the_last_inbound_listener_outlives_its_removal() {
    use crate::xds::tests::resources::inbound_chain;
    let mut state = State::new(false, MAX_ASKED);
    let chains = vec![inbound_chain(None, true, tcp("inbound|0||"))];
    state.apply(response(
        ResourceType::Listener,
        INBOUND,
        &listener(INBOUND, chains),
    ));
    state.apply(removal(ResourceType::Cluster, "inbound|0||"));
    assert!(state.assemble());
    state.apply(removal(ResourceType::Listener, INBOUND));
    assert!(!state.assemble());
    assert!(state.snapshot().inbound.is_some());
}

#[test]
fn unasked_resources_and_types_are_ignored() {
    let mut state = State::new(false, MAX_ASKED);
    let outcome = state.apply(response(
        ResourceType::Cluster,
        SERVICE,
        &cluster(SERVICE, 1),
    ));
    assert_eq!(outcome.expect("a known type").accepted, 0);
    let mut unknown = removal(ResourceType::Cluster, SERVICE);
    unknown.type_url = "type.googleapis.com/evil.Type".to_owned();
    assert!(state.apply(unknown).is_none());
    assert!(!state.assemble());
}

#[test]
fn what_was_exported_can_be_imported() {
    let mut state = opaque();
    state.ask(Ask::Outbound(destination(2)));
    state.apply(removal(ResourceType::Listener, "outbound|10.0.0.2|80"));
    let ip = destination(3).ip();
    state.ask(Ask::Workload(ip));
    state.apply(response(
        ResourceType::Address,
        "/10.0.0.3",
        &workload("web"),
    ));
    let mut exported = state.export();
    for response in &mut exported {
        for resource in &mut response.resources {
            if resource.name == "/10.0.0.3" {
                resource.resource.as_mut().expect("it has one").value = vec![0xff];
            }
        }
    }
    let mut other = State::new(false, MAX_ASKED);
    other.import(exported);
    assert!(other.assemble());
    assert!(matches!(
        other.snapshot().outbound[&destination(1)],
        Lookup::Known(_)
    ));
    assert!(matches!(
        other.snapshot().outbound[&destination(2)],
        Lookup::Unknown
    ));
    assert!(
        !other.snapshot().workloads.contains_key(&ip),
        "what does not decode is left out"
    );
}

#[test]
fn a_cluster_that_hashes_has_a_ring_whenever_its_endpoints_change_and_others_have_none() {
    let mut state = opaque();
    let rings = |state: &State| {
        state.snapshot().clusters[SERVICE]
            .endpoints
            .ring()
            .is_some()
    };
    assert!(!rings(&state));
    let mut hashing = cluster(SERVICE, 1);
    hashing.lb_policy = LbPolicy::Maglev.into();
    state.apply(response(ResourceType::Cluster, SERVICE, &hashing));
    for count in [1, 2] {
        let addresses = ["10.1.0.2", "10.1.0.3"].into_iter().take(count);
        let endpoints = load_assignment(SERVICE, addresses.map(endpoint).collect());
        state.apply(response(ResourceType::Endpoints, SERVICE, &endpoints));
        assert!(state.assemble());
        assert!(rings(&state), "{count}");
        assert_eq!(state.snapshot().clusters[SERVICE].endpoints.len(), count);
    }
}
