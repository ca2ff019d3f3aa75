//! Which routes count at a port of a Service.
//!
//! Of those that clients of one namespace see, one kind counts: of requests GRPCRoute before HTTPRoute, of connections TLSRoute
//! before TCPRoute, and of those two only the oldest. At a headless Service none does: it has no front, and whoever calls it has
//! chosen a pod. See GEP-1294, <https://gateway-api.sigs.k8s.io/geps/gep-1294/>.

use std::sync::Arc;

use super::ProxyView;
use crate::store::route::{Route, RouteKind};
use crate::store::service::{Addressing, AppProtocol, ServicePort};
use crate::store::{ObjectKey, World};

/// The kinds of routes of requests, the one that wins first.
pub(super) const REQUESTS: [RouteKind; 2] = [RouteKind::Grpc, RouteKind::Http];

/// The kinds that can count at a port which declares that, the one that wins first.
pub(crate) fn kinds(protocol: AppProtocol) -> &'static [RouteKind] {
    use RouteKind::{Grpc, Http, Tcp, Tls};
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => &REQUESTS,
        AppProtocol::Tcp => &[Tls, Tcp],
        AppProtocol::Detect => &[Grpc, Http, Tls, Tcp],
    }
}

/// The routes of a namespace that count at a port of a Service: all of the kind that wins, or the one of connections.
pub(crate) fn in_force<'a>(
    world: &'a World,
    namespace: &Arc<str>,
    service: &ObjectKey,
    port: &ServicePort,
) -> Vec<&'a Arc<Route>> {
    let routes = of_namespace(world, namespace, kinds(port.protocol), service, port);
    match oldest(&routes) {
        Some(one) => vec![one],
        None => routes,
    }
}

/// The one route that counts among those of connections.
pub(super) fn oldest<'a>(routes: &[&'a Arc<Route>]) -> Option<&'a Arc<Route>> {
    let opaque = routes.iter().filter(|route| route.kind.is_opaque());
    opaque
        .min_by_key(|route| (route.created, &route.key))
        .copied()
}

/// The routes of requests that count for a client.
pub(super) fn requests<'a>(
    world: &'a World,
    view: &ProxyView,
    service: &ObjectKey,
    port: &ServicePort,
) -> Vec<&'a Arc<Route>> {
    for_client(world, view, &REQUESTS, service, port)
}

/// The routes of some kinds that count for a client: those of its own namespace, or else those of the Service's.
pub(super) fn for_client<'a>(
    world: &'a World,
    view: &ProxyView,
    kinds: &[RouteKind],
    service: &ObjectKey,
    port: &ServicePort,
) -> Vec<&'a Arc<Route>> {
    let consumer = view.namespace.as_ref();
    let consumer = consumer.filter(|namespace| **namespace != service.namespace);
    let mut namespaces = consumer.into_iter().chain([&service.namespace]);
    let found = namespaces.find_map(|namespace| {
        let routes = of_namespace(world, namespace, kinds, service, port);
        (!routes.is_empty()).then_some(routes)
    });
    found.unwrap_or_default()
}

/// Of these kinds, the first one wins.
fn of_namespace<'a>(
    world: &'a World,
    namespace: &Arc<str>,
    kinds: &[RouteKind],
    service: &ObjectKey,
    port: &ServicePort,
) -> Vec<&'a Arc<Route>> {
    let known = world.service(service);
    if known.is_some_and(|it| it.addressing == Addressing::Headless) {
        return Vec::new();
    }
    let found = kinds.iter().find_map(|kind| {
        let routes: Vec<_> = world
            .routes_of(*kind, service)
            .filter(|route| route.key.namespace == *namespace && attaches(route, service, port))
            .collect();
        (!routes.is_empty()).then_some(routes)
    });
    found.unwrap_or_default()
}

fn attaches(route: &Route, service: &ObjectKey, port: &ServicePort) -> bool {
    route.parents.iter().any(|parent| {
        parent.service == *service
            && parent.port.is_none_or(|number| number == port.port)
            && parent
                .section
                .as_ref()
                .is_none_or(|name| *name == port.name)
    })
}
