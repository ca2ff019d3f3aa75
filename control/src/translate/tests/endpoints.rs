//! Which endpoints a Service has for whom, as Kubernetes means it.

use std::collections::BTreeSet;

use super::*;
use crate::store::{Kind, ObjectRef};

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

/// A client in a place.
fn at(node: Option<&str>, zone: Option<&str>) -> ProxyView {
    ProxyView {
        node: node.map(Into::into),
        zone: zone.map(Into::into),
        ..client("x")
    }
}

/// BASE with other endpoints: one `addresses` list and what follows it for each.
fn with_endpoints(service: &str, lines: &[&str]) -> String {
    let (before, _) = BASE
        .split_once("endpoints:\n")
        .expect("BASE ends with them");
    let mut text = before.replace(
        "clusterIP: 10.0.0.1",
        &format!("clusterIP: 10.0.0.1{service}"),
    );
    text.push_str("endpoints:\n");
    for line in lines {
        let _ = writeln!(text, "- {{addresses: [{line}}}");
    }
    text
}

fn found(text: &str, view: &ProxyView) -> Vec<String> {
    let all = endpoints(&world(text), view, WEB);
    all.iter()
        .map(|it| it.rsplit_once(' ').map_or("", |(it, _)| it).to_owned())
        .collect()
}

#[test]
fn a_local_service_has_the_endpoints_of_the_clients_node_only() {
    let local = with_endpoints(
        "\n  internalTrafficPolicy: Local",
        &[
            "10.2.0.1], nodeName: n1",
            "10.2.0.2], nodeName: n2",
            "10.2.0.3]",
        ],
    );
    assert_eq!(found(&local, &at(Some("n1"), None)), ["10.2.0.1 HEALTHY"]);
    assert_eq!(found(&local, &at(Some("n2"), None)), ["10.2.0.2 HEALTHY"]);
    for nowhere in [Some("n3"), None] {
        assert_eq!(found(&local, &at(nowhere, None)), [""; 0], "{nowhere:?}");
    }
    let cluster = local.replace("Local", "Cluster");
    assert_eq!(found(&cluster, &at(Some("n1"), None)).len(), 3);
}

#[test]
fn endpoints_that_are_not_ready_count_where_the_service_publishes_them() {
    let lines = [
        "10.2.0.1], conditions: {ready: false}",
        "10.2.0.2], conditions: {ready: false, serving: false, terminating: true}",
        "10.2.0.3]",
    ];
    let published = with_endpoints("\n  publishNotReadyAddresses: true", &lines);
    assert_eq!(found(&published, &client("x")).len(), 3);
    assert_eq!(
        found(&with_endpoints("", &lines), &client("x")),
        ["10.2.0.3 HEALTHY"]
    );
}

#[test]
fn serving_endpoints_that_terminate_are_all_there_is_when_none_is_ready() {
    let ending = "10.2.0.1], conditions: {ready: false, serving: true, terminating: true}";
    let dead = "10.2.0.2], conditions: {ready: false, serving: false, terminating: true}";
    let foreign = |kind| ProxyView {
        kind,
        ..client("x")
    };
    let alone = with_endpoints("", &[ending, dead]);
    let beside = with_endpoints("", &[ending, dead, "10.2.0.3]"]);
    for kind in [ClientKind::Envoy, ClientKind::Grpc] {
        // They would not use a draining one, whatever else there is.
        assert_eq!(found(&alone, &foreign(kind)), ["10.2.0.1 HEALTHY"]);
        assert_eq!(
            found(&beside, &foreign(kind)),
            ["10.2.0.1 DRAINING", "10.2.0.3 HEALTHY"]
        );
    }
    // Ours uses it if there is nothing else.
    assert_eq!(found(&alone, &client("x")), ["10.2.0.1 DRAINING"]);
}

#[test]
fn hints_keep_traffic_close_if_every_ready_endpoint_has_them() {
    let hinted = [
        "10.2.0.1], hints: {forZones: [{name: a}], forNodes: [{name: n1}]}",
        "10.2.0.2], hints: {forZones: [{name: a}], forNodes: [{name: n2}]}",
        "10.2.0.3], hints: {forZones: [{name: b}], forNodes: [{name: n3}]}",
    ];
    let all = ["10.2.0.1", "10.2.0.2", "10.2.0.3"];
    let mut unhinted = hinted.to_vec();
    unhinted.push("10.2.0.4]");
    let everywhere = ["10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4"];
    let (zone, node) = ("PreferSameZone", "PreferSameNode");
    let table: [(&str, &[&str], ProxyView, &[&str]); 9] = [
        ("", &hinted, at(Some("n1"), Some("a")), &all),
        (zone, &hinted, at(Some("n1"), Some("a")), &all[..2]),
        ("PreferClose", &hinted, at(None, Some("b")), &all[2..]),
        (zone, &hinted, at(None, Some("c")), &all),
        (zone, &hinted, at(None, None), &all),
        (zone, &unhinted, at(None, Some("a")), &everywhere),
        (node, &hinted, at(Some("n2"), Some("a")), &all[1..2]),
        (node, &hinted, at(Some("n9"), Some("a")), &all[..2]),
        (node, &hinted, at(Some("n9"), Some("z")), &all),
    ];
    for (distribution, lines, view, expected) in table {
        let service = if distribution.is_empty() {
            String::new()
        } else {
            format!("\n  trafficDistribution: {distribution}")
        };
        let found = found(&with_endpoints(&service, lines), &view);
        let addresses: Vec<_> = found.iter().map(|it| it.replace(" HEALTHY", "")).collect();
        assert_eq!(addresses, expected, "{distribution:?} {view:?}");
    }
}

#[test]
fn several_slices_of_a_service_are_one_set_of_endpoints() {
    let slice = |name: &str, port: &str, lines: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{port}]\nendpoints: [{lines}]\n"
        )
    };
    // A named targetPort may be another number in another pod, and an endpoint moves from slice to slice.
    let text = with_endpoints("", &["10.2.0.1]", "10.2.0.2], conditions: {ready: false}"])
        + &slice(
            "web-b",
            "{name: http, port: 9090}",
            "{addresses: [10.2.0.3]}",
        )
        + &slice(
            "web-c",
            "{name: http, port: 8080}, {name: any, port: 8081}, {name: http, port: 53, protocol: UDP}",
            "{addresses: [10.2.0.2]}",
        )
        + &slice(
            "other",
            "{name: http, port: 8080}",
            "{addresses: [10.2.0.9]}",
        )
        .replace("service-name: web", "service-name: other");
    assert_eq!(
        found(&text, &client("x")),
        ["10.2.0.1 HEALTHY", "10.2.0.2 HEALTHY", "10.2.0.3 HEALTHY"]
    );
    let any = "outbound|81||web.shop.svc.cluster.local";
    assert_eq!(
        endpoints(&world(&text), &client("x"), any),
        ["10.2.0.2 HEALTHY false"],
        "each port by its name"
    );
}

#[test]
fn endpoints_written_by_hand_need_neither_selector_nor_pod() {
    let text =
        with_endpoints("", &["192.0.2.7]", "10.1.0.1]"]).replace("  selector: {app: web}\n", "");
    assert!(!text.contains("selector"));
    assert_eq!(
        endpoints(&world(&text), &client("x"), WEB),
        ["10.1.0.1 HEALTHY true", "192.0.2.7 HEALTHY false"],
        "a meshed pod is known by its address, and nothing is known of a stranger"
    );
    let metadata = |address: usize| {
        let assignment: ClusterLoadAssignment =
            get(&world(&text), &client("x"), ResourceType::Endpoints, WEB).expect("known");
        assignment.endpoints[0].lb_endpoints[address]
            .metadata
            .is_some()
    };
    assert_eq!((metadata(0), metadata(1)), (true, false));
}

#[test]
fn a_dual_stack_service_has_listeners_and_endpoints_of_both_families() {
    let text = BASE
        .replace(
            "clusterIP: 10.0.0.1",
            "clusterIP: 10.0.0.1\n  clusterIPs: [10.0.0.1, \"fd00::1\"]",
        )
        .replace(
            "status: {podIP: 10.1.0.1}",
            "status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: \"fd00:1::1\"}]}",
        );
    let six = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-6, namespace: shop, \
               labels: {kubernetes.io/service-name: web}}\naddressType: IPv6\nports: [{name: http, port: 8080}]\n\
               endpoints: [{addresses: [\"fd00:1::1\"], targetRef: {kind: Pod, name: web-1}}]\n";
    let world = world(&(text + six));
    assert_eq!(
        endpoints(&world, &client("x"), WEB),
        [
            "10.1.0.1 HEALTHY true",
            "10.1.0.2 HEALTHY false",
            "fd00:1::1 HEALTHY true"
        ]
    );
    for (address, known) in [
        ("outbound|10.0.0.1|80", true),
        ("outbound|fd00::1|80", true),
        ("outbound|fd00:1::1|8080", true),
        ("outbound|fd00::2|80", false),
    ] {
        let listener = resource(&world, &client("x"), ResourceType::Listener, address);
        assert_eq!(listener.is_some(), known, "{address}");
    }
}

#[test]
fn a_pod_of_the_nodes_network_is_an_endpoint_without_mutual_tls() {
    let text = BASE
        .replace(
            "serviceAccountName: web,",
            "serviceAccountName: web, hostNetwork: true,",
        )
        .replace("10.1.0.1", "172.16.0.1");
    assert_eq!(
        endpoints(&world(&text), &client("x"), WEB),
        ["10.1.0.2 HEALTHY false", "172.16.0.1 HEALTHY false"]
    );
    let world = world(&text);
    for (kind, name) in [
        (ResourceType::Listener, "outbound|172.16.0.1|8080"),
        (ResourceType::Cluster, "pod|8080||web-1.shop"),
        (ResourceType::Endpoints, "pod|8080||web-1.shop"),
        (ResourceType::Address, "/172.16.0.1"),
    ] {
        assert!(
            resource(&world, &client("x"), kind, name).is_none(),
            "{name}: the address is the node's"
        );
    }
}

#[test]
fn a_pod_is_called_at_the_address_of_the_family_that_was_asked_for() {
    let text = BASE.replace(
        "status: {podIP: 10.1.0.1}",
        "status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: \"fd00::1\"}]}",
    );
    let world = world(&text);
    for (address, family, expected) in [
        ("10.1.0.1", "", "10.1.0.1 HEALTHY true"),
        ("fd00::1", "ipv6", "fd00::1 HEALTHY true"),
    ] {
        let cluster = format!("pod|9|{family}|web-1.shop");
        let name = format!("outbound|{address}|9");
        let listener = resource(&world, &client("x"), ResourceType::Listener, &name);
        let listener = String::from_utf8_lossy(&listener.expect("known")).into_owned();
        assert!(listener.contains(&cluster), "{listener}");
        assert_eq!(endpoints(&world, &client("x"), &cluster), [expected]);
    }
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        let absent = resource(&world, &client("x"), kind, "pod|9|ipv6|web-2.shop");
        assert!(absent.is_none(), "{kind:?}: the pod has no such address");
    }
}

#[test]
fn a_finished_pods_address_is_its_successors() {
    let successor = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: next, namespace: other, labels: {tulle.dev/proxied: \"true\"}}\n\
                     spec: {serviceAccountName: next, containers: []}\nstatus: {phase: Running, podIP: 10.1.0.2}\n";
    for phase in ["Succeeded", "Failed"] {
        let finished = BASE.replace(
            "status: {podIP: 10.1.0.2}",
            &format!("status: {{phase: {phase}, podIP: 10.1.0.2}}"),
        );
        let world = world(&(finished + successor));
        assert_eq!(
            endpoints(&world, &client("x"), WEB),
            ["10.1.0.1 HEALTHY true"],
            "its Service does not lead to the pod that has its address now"
        );
        assert!(
            resource(
                &world,
                &client("x"),
                ResourceType::Cluster,
                "pod|80||web-2.shop"
            )
            .is_none()
        );
        assert_eq!(
            endpoints(&world, &client("x"), "pod|80||next.other"),
            ["10.1.0.2 HEALTHY true"]
        );
    }
}

#[test]
fn a_pod_outside_of_the_mesh_is_called_at_an_address_of_another_network() {
    const OWN: &str = "addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}";
    let named = |address: &str, rest: &str| {
        format!("addresses: [{address}], targetRef: {{kind: Pod, name: {rest}}}")
    };
    let base = BASE
        .replace("labels: {app: web}}", "uid: u2, labels: {app: web}}")
        .replace("name: web-1, namespace", "name: web-1, uid: u1, namespace");
    assert!(base.contains("uid: u1") && base.contains("uid: u2"));
    let no_address = base.replace("status: {podIP: 10.1.0.2}", "status: {}");
    let proxied = base.replace("labels: {app: web}}", "labels: {tulle.dev/proxied: grpc}}");
    for (name, base, address, target, expected) in [
        ("it", &base, "192.168.9.9", "web-2, uid: u2", true),
        (
            "an earlier or later one of its name",
            &base,
            "192.168.9.9",
            "web-2, uid: u3",
            false,
        ),
        (
            "whichever of its name",
            &base,
            "192.168.9.9",
            "web-2",
            false,
        ),
        (
            "one of another namespace",
            &base,
            "192.168.9.9",
            "web-2, uid: u2, namespace: x",
            false,
        ),
        (
            "one of the mesh",
            &base,
            "192.168.9.9",
            "web-1, uid: u1",
            false,
        ),
        (
            "one of the mesh by itself",
            &proxied,
            "192.168.9.9",
            "web-2, uid: u2",
            false,
        ),
        (
            "one without an address yet",
            &no_address,
            "192.168.9.9",
            "web-2, uid: u2",
            false,
        ),
        (
            "an address of somebody else",
            &base,
            "10.1.0.1",
            "web-2, uid: u2",
            false,
        ),
    ] {
        let text = base.replace(OWN, &named(address, target));
        let text = text.replace(
            "- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1}}\n",
            "",
        );
        let found = endpoints(&world(&text), &client("x"), WEB);
        let whole: &[&str] = if expected {
            &["192.168.9.9 HEALTHY false"]
        } else {
            &[]
        };
        assert_eq!(found, whole, "{name}");
    }
}

#[test]
fn what_becomes_of_a_pod_touches_what_it_serves_at_another_address() {
    let with = BASE
        .replace("labels: {app: web}}", "uid: u2, labels: {app: web}}")
        .replace(
            "addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}",
            "addresses: [192.168.9.9], targetRef: {kind: Pod, name: web-2, uid: u2}",
        );
    let labelled = with.replace(
        "uid: u2, labels: {app: web}",
        "uid: u2, labels: {tulle.dev/proxied: grpc}",
    );
    let known = world(&with);
    let gone = world(&with.replace(
        "name: web-2, namespace: shop",
        "name: web-3, namespace: shop",
    ));
    let changed = BTreeSet::from([ObjectRef {
        kind: Kind::Pod,
        key: ObjectKey::new("shop", "web-2"),
    }]);
    for other in [gone, world(&labelled)] {
        for (before, after) in [(&known, &other), (&other, &known)] {
            let affected = Affected::between(before, after, &changed);
            let subject = Subject::Service(ObjectKey::new("shop", "web"));
            assert!(affected.touches(ResourceType::Endpoints, &subject, &client("x")));
            let [one, two] = [before, after].map(|it| endpoints(it, &client("x"), WEB));
            assert_ne!(one, two);
        }
    }
}
