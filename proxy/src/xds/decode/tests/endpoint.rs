//! `ClusterLoadAssignment`: identity and workload of endpoints, and which could not be called safely.

use tulle_xds_proto::envoy::config::core::v3::Metadata;
use tulle_xds_proto::{pack, tulle};

use super::check;
use crate::config::cluster::Health;
use crate::xds::decode::endpoints;
use crate::xds::tests::resources::{SERVICE, described, endpoint, garbage, load_assignment};

#[test]
fn endpoints_carry_identity_and_workload() {
    let metadata = tulle::v1::Endpoint {
        mtls: true,
        spiffe_ids: ["b", "a", "b"]
            .map(|sa| format!("spiffe://cluster.local/ns/demo/sa/{sa}"))
            .to_vec(),
        workload_name: "echo".into(),
        foreign: true,
        ..Default::default()
    };
    let mut draining = endpoint("10.1.0.2");
    draining.health_status = 3;
    let endpoint_list = vec![
        described("10.1.0.3", &metadata),
        draining,
        endpoint("10.1.0.2"),
    ];
    let set = endpoints(SERVICE, &pack(&load_assignment(SERVICE, endpoint_list))).expect("valid");
    let [plain, meshed] = set.0.as_slice() else {
        panic!("{set:?}")
    };
    assert_eq!(
        (plain.health, plain.weight, plain.mtls.is_some()),
        (Health::Draining, 1, false)
    );
    assert_eq!((plain.foreign, meshed.foreign), (false, true));
    let ids = &meshed.mtls.as_ref().expect("it is mtls").0;
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(
        ids,
        [
            "spiffe://cluster.local/ns/demo/sa/a",
            "spiffe://cluster.local/ns/demo/sa/b"
        ]
    );
    assert_eq!(&*meshed.workload.name, "echo");
}

#[test]
fn endpoints_that_cannot_be_called_safely_are_refused() {
    let at =
        |field: &str| -> &'static str { format!("endpoints[0].lb_endpoints[0].{field}").leak() };
    let decode = |endpoint| endpoints(SERVICE, &pack(&load_assignment(SERVICE, vec![endpoint])));
    let metadata = at("metadata.typed_filter_metadata[\"tulle.dev\"]");
    let ids = |ids: &[&str]| tulle::v1::Endpoint {
        mtls: true,
        spiffe_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    let without = decode(described("10.1.0.2", &ids(&[])));
    check(
        "mtls without identity",
        without,
        Err(format!("{metadata}.spiffe_ids").leak()),
    );
    let bad = decode(described(
        "10.1.0.2",
        &ids(&["spiffe://cluster.local/admin"]),
    ));
    check(
        "a bad identity",
        bad,
        Err(format!("{metadata}.spiffe_ids[0]").leak()),
    );
    let mut garbled = endpoint("10.1.0.2");
    garbled.metadata = Some(Metadata {
        typed_filter_metadata: [(
            "tulle.dev".to_owned(),
            garbage("type.googleapis.com/tulle.v1.Endpoint"),
        )]
        .into(),
        ..Default::default()
    });
    check("garbage for metadata", decode(garbled), Err(metadata));
    check(
        "a name for an address",
        decode(endpoint("echo.demo")),
        Err(at("endpoint.address")),
    );
    let mut nowhere = endpoint("10.1.0.2");
    nowhere.host_identifier = None;
    check("no address", decode(nowhere), Err(at("endpoint")));
    let mut prioritised = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    prioritised.endpoints[0].priority = 1;
    check(
        "a priority",
        endpoints(SERVICE, &pack(&prioritised)),
        Err("endpoints[0].priority"),
    );
    check("fine", decode(endpoint("10.1.0.2")), Ok(()));
}

#[test]
fn a_cluster_has_a_largest_size() {
    let sized = |count| {
        let message = load_assignment(SERVICE, vec![endpoint("10.1.0.2"); count]);
        endpoints(SERVICE, &pack(&message))
    };
    check("as many as may be", sized(50_000), Ok(()));
    check("one more", sized(50_001), Err("endpoints"));
}
