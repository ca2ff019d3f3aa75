//! Manifests, from a file's text to what a sidecar makes of them.
//!
//! The input is a file of YAML, or of JSON if it begins with a brace. Reading it ends, with every object once and every
//! problem at a line that the file has. What is read becomes a world, the world becomes resources, the same bytes
//! each time, and our own sidecar takes all of them, whatever the file said: the routes are used, and what they name is
//! there.

#![no_main]

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_control::store::{Event, MeshSettings, Store, World};
use tulle_control::translate::{ClientKind, ProxyView, names, resource};
use tulle_fuzz::{routes, snapshot};
use tulle_proxy::config::RouteTable;
use tulle_proxy::config::listener::RouteSource;
use tulle_proxy::config::route::RouteAction;
use tulle_proxy::fuzz::xds::{Decoded, decode};
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::google::protobuf::Any;

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (events, problems) = tulle_control::fuzz::manifest(text, text.starts_with('{'));
    let lines = text.split('\n').count() as u64;
    for problem in &problems {
        assert!(
            (1..=lines).contains(&problem.line),
            "{problem} of {lines} lines"
        );
        assert!(!problem.message.is_empty());
    }
    let objects = events.iter().map(|event| match event {
        Event::Apply(object) => object.reference(),
        Event::Delete(reference) => panic!("{reference} was never there"),
    });
    let distinct: BTreeSet<_> = objects.collect();
    assert_eq!(distinct.len(), events.len(), "an object twice");
    let (store, mut writer) = Store::new(MeshSettings::default());
    writer.apply(events);
    writer.set_synced();
    translate(&store.world());
});

fn translate(world: &World) {
    let pods = world.pods().take(2);
    let mut views: Vec<_> = pods
        .map(|pod| ProxyView::of_pod(world, ClientKind::Tulle, pod))
        .collect();
    views.push(ProxyView::of_kind(ClientKind::Tulle));
    for view in &views {
        let mut clusters: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut listeners = names(world, view, ResourceType::Listener);
        let ports: BTreeSet<u16> = world
            .services()
            .flat_map(|it| &it.ports)
            .map(|it| it.port)
            .collect();
        for pod in world.pods().take(2) {
            let ports = ports.iter().copied().chain([80, 8080]);
            listeners.extend(pod.ips.iter().flat_map(|ip| {
                ports
                    .clone()
                    .map(move |port| format!("outbound|{ip}|{port}"))
            }));
        }
        for name in listeners {
            if let Some(decoded) = told(world, view, ResourceType::Listener, &name) {
                clusters.extend(listener(world, view, decoded));
            }
        }
        clusters.extend(
            names(world, view, ResourceType::Cluster)
                .into_iter()
                .map(Arc::from),
        );
        for name in clusters {
            cluster(world, view, &name);
        }
    }
    for kind in [ClientKind::Envoy, ClientKind::Grpc] {
        let view = ProxyView {
            kind,
            ..views[0].clone()
        };
        for of in [ResourceType::Listener, ResourceType::Cluster] {
            for name in names(world, &view, of) {
                assert!(encoded(world, &view, of, &name).is_some(), "{name}");
            }
        }
    }
}

/// Uses a listener; gives the clusters to which it leads.
fn listener(world: &World, view: &ProxyView, decoded: Decoded) -> BTreeSet<Arc<str>> {
    let mut tables = Vec::new();
    let mut clusters: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut tcp = |route: Option<&tulle_proxy::config::listener::TcpRoute>| {
        clusters.extend(
            route
                .into_iter()
                .flat_map(|it| &it.clusters)
                .map(|(name, _)| name.clone()),
        );
    };
    match decoded {
        Decoded::Outbound(listener) => {
            snapshot::each(&listener.protocol, |source| match source {
                RouteSource::Inline(table) => tables.push(table.clone()),
                RouteSource::Named(name) => match told(world, view, ResourceType::Route, name) {
                    Some(Decoded::Routes(table)) => tables.push(Arc::new(table)),
                    other => panic!("no routes {name}: {other:?}"),
                },
            });
            tcp(opaque(&listener.protocol));
        }
        Decoded::Inbound(listener) => {
            snapshot::inbound(&listener);
            for port in listener.ports.values().chain([&listener.default]) {
                snapshot::each(&port.protocol, |table| tables.push(table.clone()));
                tcp(opaque(&port.protocol));
            }
        }
        other => panic!("{other:?}"),
    }
    for table in tables {
        routes::exercise(&table);
        clusters.extend(named(world, view, &table));
    }
    clusters
}

fn opaque<H>(
    protocol: &tulle_proxy::config::Protocol<H>,
) -> Option<&tulle_proxy::config::listener::TcpRoute> {
    use tulle_proxy::config::Protocol;
    match protocol {
        Protocol::Http(_) => None,
        Protocol::Tcp(tcp) | Protocol::Detect { tcp, .. } => Some(tcp),
    }
}

/// Clusters that routes name and that are there. A backend that is not takes its share and answers 500; a route has one
/// at least that is.
fn named(world: &World, view: &ProxyView, table: &RouteTable) -> BTreeSet<Arc<str>> {
    let mut there = BTreeSet::new();
    for route in &table.routes {
        if let RouteAction::Forward(forward) = &route.action {
            let shares = forward.clusters.iter().filter(|it| it.weight > 0);
            let known = shares.map(|it| it.name.clone()).filter(|name| {
                there.contains(name) || resource(world, view, ResourceType::Cluster, name).is_some()
            });
            let known: Vec<_> = known.collect();
            assert!(!known.is_empty(), "a route to nowhere");
            there.extend(known);
        }
    }
    there
}

fn cluster(world: &World, view: &ProxyView, name: &str) {
    assert!(
        told(world, view, ResourceType::Cluster, name).is_some(),
        "no cluster {name}"
    );
    if !name.starts_with("inbound|") {
        assert!(
            told(world, view, ResourceType::Endpoints, name).is_some(),
            "no endpoints of {name}"
        );
    }
}

/// What a sidecar makes of a resource, which it must not refuse.
fn told(world: &World, view: &ProxyView, kind: ResourceType, name: &str) -> Option<Decoded> {
    let any = Any {
        type_url: kind.type_url().to_owned(),
        value: encoded(world, view, kind, name)?,
    };
    Some(decode(kind, name, &any).unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn encoded(world: &World, view: &ProxyView, kind: ResourceType, name: &str) -> Option<Vec<u8>> {
    let bytes = resource(world, view, kind, name)?;
    assert_eq!(
        resource(world, view, kind, name),
        Some(bytes.clone()),
        "{name}: its bytes are its version"
    );
    Some(bytes.to_vec())
}
