//! From pods and Services to EndpointSlices and ClusterIPs.

use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    serde_json::from_value(
        json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": spec }),
    )
    .expect("a service")
}

fn backend(number: u16, serving: bool, terminating: bool) -> Backend {
    Backend {
        key: ObjectKey::new("shop", format!("web-{number}")),
        uid: format!("u{number}"),
        ips: PodIps::of(number, true),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ports: BTreeMap::from([("http".to_owned(), 8080)]),
        hostname: Some(format!("web-{number}")),
        subdomain: Some("web".to_owned()),
        serving,
        terminating,
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

fn translated(service: &Service, backends: &[Backend]) -> Vec<Translation> {
    let slices = slices(&key(), service, backends);
    translations(
        service,
        &slices.iter().map(|(_, slice)| slice).collect::<Vec<_>>(),
    )
}

fn plain() -> Service {
    service(json!({
        "clusterIP": "10.96.0.1",
        "selector": { "app": "web" },
        "ports": [{ "name": "a", "port": 80, "targetPort": "http" }, { "name": "b", "port": 81, "targetPort": 9 }],
    }))
}

#[test]
fn a_slice_lists_pods_with_their_conditions_and_ports() {
    let other = Backend {
        labels: BTreeMap::new(),
        ..backend(9, true, false)
    };
    let elsewhere = Backend {
        key: ObjectKey::new("elsewhere", "web-8"),
        ..backend(8, true, false)
    };
    let backends = [
        backend(2, true, false),
        backend(3, false, false),
        backend(4, true, true),
        other,
        elsewhere,
    ];
    let slices = slices(&key(), &plain(), &backends);
    let [(_, slice)] = &slices[..] else {
        panic!("{slices:?}")
    };
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| {
            let all = endpoint.conditions.as_ref().expect("conditions");
            (
                endpoint.addresses[0].as_str(),
                all.ready == Some(true),
                all.serving == Some(true),
                all.terminating == Some(true),
            )
        })
        .collect();
    let expected = [
        ("10.244.0.2", true, true, false),
        ("10.244.0.3", false, false, false),
        ("10.244.0.4", false, true, true),
    ];
    assert_eq!(conditions, expected);
    let ports: Vec<_> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| (port.name.as_deref(), port.port))
        .collect();
    assert_eq!(ports, [(Some("a"), Some(8080)), (Some("b"), Some(9))]);
    let first = slice.endpoints.iter().flatten().next();
    let hostname = first.and_then(|it| it.hostname.as_deref());
    assert_eq!(hostname, Some("web-2"));
    assert_eq!(service_of(&key(), slice), Some(key()));
}

#[test]
fn pods_whose_named_port_differs_get_slices_of_their_own() {
    let other = Backend {
        ports: BTreeMap::from([("http".to_owned(), 9090)]),
        ..backend(3, true, false)
    };
    let found = translated(&plain(), &[backend(2, true, false), other]);
    let to: Vec<_> = found[0].to.iter().map(ToString::to_string).collect();
    assert_eq!(to, ["10.244.0.2:8080", "10.244.0.3:9090"]);
}

#[test]
fn both_families_are_served_when_asked_for() {
    let dual = service(json!({
        "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
        "ipFamilyPolicy": "PreferDualStack",
        "selector": { "app": "web" },
        "ports": [{ "port": 80 }],
    }));
    let found = translated(&dual, &[backend(2, true, false)]);
    let text: Vec<_> = found
        .iter()
        .map(|found| format!("{} {}", found.from, found.to[0]))
        .collect();
    assert_eq!(
        text,
        [
            "10.96.0.1:80 10.244.0.2:80",
            "[fd00:10:96::1]:80 [fd00:10:244::2]:80"
        ]
    );
}

#[test]
fn traffic_goes_to_ready_endpoints_or_else_to_those_that_still_serve() {
    let table = [
        (
            "ready wins",
            vec![backend(2, true, false), backend(3, true, true)],
            vec!["10.244.0.2:8080"],
        ),
        (
            "serving while terminating",
            vec![backend(2, false, false), backend(3, true, true)],
            vec!["10.244.0.3:8080"],
        ),
        (
            "nobody",
            vec![backend(2, false, false), backend(3, false, true)],
            vec![],
        ),
    ];
    for (case, backends, expected) in table {
        let found = translated(&plain(), &backends);
        let to: Vec<_> = found[0].to.iter().map(ToString::to_string).collect();
        assert_eq!(to, expected, "{case}");
    }
    let mut always = plain();
    always
        .spec
        .as_mut()
        .expect("a spec")
        .publish_not_ready_addresses = Some(true);
    assert_eq!(
        translated(&always, &[backend(2, false, false)])[0].to.len(),
        1
    );
}

#[test]
fn services_without_selector_or_with_another_name_have_no_slices_of_ours() {
    for spec in [
        json!({ "ports": [{ "port": 1 }] }),
        json!({ "type": "ExternalName", "externalName": "example.org", "selector": { "app": "web" } }),
    ] {
        assert!(slices(&key(), &service(spec), &[backend(2, true, false)]).is_empty());
    }
}
