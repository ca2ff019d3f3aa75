//! What has a listener, and what an address is known as.

use tulle_xds_proto::envoy::config::listener::v3::Listener;
use tulle_xds_proto::istio::workload::{Address, address};

use super::*;

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

const KIND: &str = "---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 90, targetPort: metrics}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.com, ports: [{name: http, port: 80}]}
";

#[test]
fn a_headless_service_is_its_pods_and_an_external_name_is_nothing() {
    let text = BASE.replace(
        "containers: []}\nstatus: {podIP: 10.1.0.1}",
        "containers: [{name: c, ports: [{name: metrics, containerPort: 7000}]}]}\nstatus: {podIP: 10.1.0.1}",
    );
    let world = world(&format!("{text}{KIND}"));
    let view = client("shop");
    let names = |kind| names(&world, &view, kind);
    assert!(
        names(ResourceType::Listener)
            .iter()
            .all(|name| name.contains("10.0.0.1")),
        "neither has an address of its own"
    );
    // A route may lead to the one as a whole, never to the other.
    for (name, exists) in [
        ("outbound|90||pods.shop.svc.cluster.local", true),
        ("outbound|80||outside.shop.svc.cluster.local", false),
    ] {
        for kind in [
            ResourceType::Cluster,
            ResourceType::Endpoints,
            ResourceType::Route,
        ] {
            assert_eq!(
                resource(&world, &view, kind, name).is_some(),
                exists,
                "{name}"
            );
        }
        let listed = names(ResourceType::Cluster).contains(&name.to_owned());
        assert_eq!(listed, exists, "{name}");
    }
    // The pod speaks what the Services that target its port declare; a target may be a name.
    let detects = |name: &str| {
        let listener: Listener =
            get(&world, &view, ResourceType::Listener, name).expect("a pod's address");
        !listener.listener_filters.is_empty()
    };
    assert!(!detects("outbound|10.1.0.1|7000"), "declared by name");
    assert!(detects("outbound|10.1.0.2|7000"), "it names no such port");
    assert!(!detects("outbound|10.1.0.2|8080"), "declared by number");
    assert!(detects("outbound|10.1.0.1|90"), "the Service's own number");
}

#[test]
fn ports_that_services_disagree_about_are_detected() {
    let more = "---\napiVersion: v1\nkind: Service\nmetadata: {name: more, namespace: shop}\n\
                spec: {clusterIP: 10.0.0.2, selector: {app: web}, ports: [{name: NAME, port: 70, targetPort: 8080}]}\n";
    let detects = |name: &str| {
        let world = world(&format!("{BASE}{}", more.replace("NAME", name)));
        let address = "outbound|10.1.0.1|8080";
        let listener: Listener =
            get(&world, &client("x"), ResourceType::Listener, address).expect("a pod's");
        !listener.listener_filters.is_empty()
    };
    assert!(detects("tcp"));
    assert!(!detects("http"));
}
