//! What a change touches, and that nothing else makes a difference.

use std::collections::BTreeSet;
use std::fmt::Write;

use tulle_xds_proto::envoy::config::cluster::v3::Cluster;

use super::*;
use crate::store::{Kind, ObjectRef};

/// Whether a change may concern who asked for a name; what it does not reach by the subject, it does not touch.
fn touches(affected: &Affected, kind: ResourceType, name: &str, view: &ProxyView) -> bool {
    let subject = Subject::of(&MeshSettings::default(), kind, name, view);
    let touches = affected.touches(kind, &subject, view);
    let reached = match affected.reach(kind) {
        Reach::Nothing => false,
        Reach::Subjects(subjects) => subjects.contains(&subject),
        Reach::Everything => true,
    };
    assert!(reached || !touches, "{} {name}", kind.short_name());
    touches
}

#[test]
fn the_order_of_input_does_not_change_a_byte() {
    let route = http_route("r", "shop", "[{backendRefs: [{name: web, port: 80}]}]");
    let text = format!("{BASE}{route}");
    let (forwards, mut backwards) = (objects(&text), objects(&text));
    backwards.reverse();
    let (one, two) = (world_of(forwards), world_of(backwards));
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    let envoys = ProxyView {
        kind: ClientKind::Envoy,
        ..view.clone()
    };
    let cases = [&view, &envoys].map(|view| ResourceType::ALL.map(|kind| (view, kind)));
    for (view, kind) in cases.into_iter().flatten() {
        for name in [
            WEB,
            "inbound",
            "outbound",
            "passthrough",
            "outbound|10.0.0.1|81",
            "pod|80||web-1.shop",
            "/10.1.0.1",
            "inbound|8080||",
        ] {
            let first = resource(&one, view, kind, name);
            assert_eq!(first, resource(&two, view, kind, name), "{name}");
            assert_eq!(first, resource(&one, view, kind, name), "{name} again");
        }
    }
    assert_eq!(
        names(&one, &view, ResourceType::Cluster),
        names(&two, &view, ResourceType::Cluster)
    );
    assert_eq!(names(&one, &view, ResourceType::Listener).len(), 4);
    let cluster: Cluster = get(&one, &view, ResourceType::Cluster, WEB).expect("known");
    assert_eq!(
        cluster.load_balancing_policy.expect("named").policies.len(),
        2
    );
}

#[test]
fn a_change_of_one_slice_touches_its_own_endpoints_only() {
    let mut text = String::new();
    for i in 0..100 {
        let named = |text: &str| {
            text.replace("web", &format!("web{i}"))
                .replace("10.1.0.", &format!("10.{}.0.", i + 1))
        };
        let _ = write!(
            text,
            "---{}",
            named(BASE).replace("10.0.0.1", &format!("10.0.1.{i}"))
        );
    }
    let before = world(&text);
    let changed = ObjectRef {
        kind: Kind::EndpointSlice,
        key: ObjectKey::new("shop", "web7-a"),
    };
    let after = world(&text.replace(
        "{addresses: [10.8.0.2], targetRef",
        "{addresses: [10.8.0.2], conditions: {ready: false}, targetRef",
    ));
    let affected = Affected::between(&before, &after, &BTreeSet::from([changed]));
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web7-1")),
        ..client("shop")
    };
    let touched: Vec<String> = ResourceType::ALL
        .into_iter()
        .flat_map(|kind| {
            let names = (0..100).flat_map(|i| {
                [
                    format!("outbound|80||web{i}.shop.svc.cluster.local"),
                    format!("outbound|10.0.1.{i}|80"),
                    format!("pod|80||web{i}-1.shop"),
                    format!("/10.{}.0.1", i + 1),
                    "inbound".to_owned(),
                ]
            });
            names
                .filter(|name| touches(&affected, kind, name, &view))
                .map(|name| format!("{} {name}", kind.short_name()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(touched, ["EDS outbound|80||web7.shop.svc.cluster.local"]);
    let (view, name) = (client("x"), "outbound|80||web7.shop.svc.cluster.local");
    assert_ne!(
        endpoints(&before, &view, name),
        endpoints(&after, &view, name)
    );
}

#[test]
fn a_service_touches_the_routes_that_name_it_and_the_pods_that_it_selects() {
    let route = http_route("r", "shop", "[{backendRefs: [{name: late, port: 80}]}]");
    let late = "---\napiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let before = world(&format!("{BASE}{route}"));
    let after = world(&format!("{BASE}{route}{late}"));
    let changed = BTreeSet::from([ObjectRef {
        kind: Kind::Service,
        key: ObjectKey::new("shop", "late"),
    }]);
    let affected = Affected::between(&before, &after, &changed);
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    assert!(touches(&affected, ResourceType::Route, WEB, &view));
    assert!(touches(&affected, ResourceType::Listener, "inbound", &view));
    assert!(!touches(&affected, ResourceType::Endpoints, WEB, &view));
    assert_eq!(routes(&before, &view, WEB), ["shop/r 500"]);
    assert_eq!(routes(&after, &view, WEB), ["shop/r late.shop=1;"]);
}
