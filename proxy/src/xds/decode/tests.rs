//! Tables of what is taken and what is refused, and by which field. One file a kind of resource.

mod cluster;
mod endpoint;
mod listener;
mod matching;
mod route;
mod virtual_host;

use proptest::prelude::*;
use tulle_xds_proto::envoy::config::route::v3 as rds;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::{ResourceType, pack, tulle};

use super::*;
use crate::xds::tests::resources::{
    LISTENER, SERVICE, cluster as a_cluster, described, endpoint as an_endpoint, inbound_chain,
    inline_manager, listener as a_listener, load_assignment, routes, tcp, workload as a_workload,
};

/// What a row of a table expects: a success, or the field that is to blame.
type Expected = Result<(), &'static str>;

fn check<T>(name: &str, found: Result<T, DecodeError>, expected: Expected) {
    match (found, expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(field)) => {
            assert_eq!(error.field(), field, "{name}: {error}");
            assert!(
                error.to_string().contains("; ") || error.to_string().contains("malformed"),
                "{name}: {error}"
            );
        }
        (Ok(_), Err(field)) => panic!("{name}: taken in spite of {field}"),
        (Err(error), Ok(())) => panic!("{name}: {error}"),
    }
}

/// A route configuration with one route, changed by the row.
fn with_route(change: impl FnOnce(&mut rds::Route)) -> Result<RouteTable, DecodeError> {
    let mut message = routes(SERVICE, &[SERVICE]);
    change(&mut message.virtual_hosts[0].routes[0]);
    route_table(SERVICE, &pack(&message))
}

fn with_match(change: impl FnOnce(&mut rds::RouteMatch)) -> Result<RouteTable, DecodeError> {
    with_route(|route| change(route.r#match.as_mut().expect("it has one")))
}

fn with_action(change: impl FnOnce(&mut rds::RouteAction)) -> Result<RouteTable, DecodeError> {
    with_route(|route| match &mut route.action {
        Some(Action::Route(action)) => change(action),
        other => panic!("{other:?}"),
    })
}

#[test]
fn names_of_listeners_and_destinations() {
    for text in ["10.0.0.1:80", "[fd00::1]:443"] {
        let address: SocketAddr = text.parse().expect("an address");
        assert_eq!(listener_address(&listener_name(address)), Some(address));
    }
    assert_eq!(
        listener_name("[fd00::1]:443".parse().expect("an address")),
        "outbound|fd00::1|443"
    );
    for bad in [
        "inbound",
        "outbound|10.0.0.1",
        "outbound|host|80",
        "outbound|10.0.0.1|99999",
        "",
    ] {
        assert_eq!(listener_address(bad), None, "{bad:?}");
    }
}

#[test]
fn workloads() {
    check("one", workload(&pack(&a_workload("web"))), Ok(()));
    let empty = tulle_xds_proto::istio::workload::Address::default();
    check("none", workload(&pack(&empty)), Err("workload"));
}

/// Feeds an `Any` to every decoder.
fn decode_all(any: &Any) {
    let _ = listener(INBOUND, any);
    let _ = listener(LISTENER, any);
    let _ = route_table(SERVICE, any);
    let _ = cluster(SERVICE, any);
    let _ = endpoints(SERVICE, any);
    let _ = workload(any);
}

#[test]
fn what_a_refusal_repeats_is_cut() {
    let long = "x".repeat(100_000);
    let misnamed = route_table(&long, &pack(&routes(&long[1..], &[SERVICE])));
    let no_address = load_assignment(SERVICE, vec![an_endpoint(&long)]);
    let pattern = matching::safe_regex(&"(".repeat(1_000));
    let pattern = with_match(|m| {
        m.path_specifier = Some(rds::route_match::PathSpecifier::SafeRegex(pattern))
    });
    let refusals = [
        misnamed.map(drop),
        endpoints(SERVICE, &pack(&no_address)).map(drop),
        pattern.map(drop),
        workload(&Any {
            type_url: long,
            value: Vec::new(),
        })
        .map(drop),
    ];
    for refusal in refusals {
        let reason = refusal.expect_err("bad").to_string();
        assert!(
            reason.len() < 4_096,
            "{} bytes: {reason:.200}",
            reason.len()
        );
    }
}

fn any_of<M: Message + Name>(message: &M, at: usize, byte: u8) -> Any {
    let mut any = pack(message);
    if !any.value.is_empty() {
        let at = at % any.value.len();
        any.value[at] = byte;
    }
    any
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(value in proptest::collection::vec(any::<u8>(), 0..512)) {
        for kind in ResourceType::ALL {
            decode_all(&Any { type_url: kind.type_url().to_owned(), value: value.clone() });
        }
    }

    #[test]
    fn valid_resources_with_a_wrong_byte_never_panic(at in any::<usize>(), byte in any::<u8>()) {
        let listener = a_listener(
            INBOUND,
            vec![inbound_chain(Some(80), true, inline_manager(SERVICE)), inbound_chain(None, true, tcp(SERVICE))],
        );
        decode_all(&any_of(&listener, at, byte));
        decode_all(&any_of(&routes(SERVICE, &[SERVICE, SERVICE]), at, byte));
        decode_all(&any_of(&a_cluster(SERVICE, 9), at, byte));
        let metadata = tulle::v1::Endpoint {
            mtls: true,
            spiffe_ids: vec!["spiffe://cluster.local/ns/demo/sa/a".to_owned()],
            ..Default::default()
        };
        let endpoints = load_assignment(SERVICE, vec![described("10.1.0.2", &metadata), an_endpoint("fd00::1")]);
        decode_all(&any_of(&endpoints, at, byte));
        decode_all(&any_of(&a_workload("web"), at, byte));
    }
}
