//! Route tables: `outbound|PORT||HOST`, one virtual host `*`.
//!
//! Which routes count for a client: those of its own namespace if it is not the Service's (consumer routes), else those of
//! the Service's namespace (producer routes); the two are never merged. Of the two kinds GRPCRoute wins. With no route
//! at all everything goes to the Service itself. A client whose request matches nothing gets 404 by itself.

mod action;
mod connection;
pub(super) mod matching;

use std::cmp::Reverse;
use std::sync::Arc;

use http::Method;
use tulle_xds_proto::envoy::config::route::v3::{
    Route as WireRoute, RouteConfiguration, RouteMatch, VirtualHost, route,
};
use tulle_xds_proto::google::protobuf::BoolValue;

use super::name::ResourceName;
use super::{ClientKind, ProxyView, attachment, grpc};
use crate::store::route::{Match, PathMatch, Route, RouteKind, Rule};
use crate::store::service::{Addressing, AppProtocol};
use crate::store::{ObjectKey, World};
use action::Methods;

pub(super) use action::{BACKOFF_BASE, BACKOFF_MAX};
pub(super) use connection::{Backends, has_opaque};

/// The table of a port of a Service.
pub(super) fn table(
    world: &World,
    view: &ProxyView,
    name: &str,
    key: &ObjectKey,
    port: u16,
) -> Option<RouteConfiguration> {
    let service = world
        .service(key)
        .filter(|service| service.addressing != Addressing::External)?;
    let port = service
        .port(port)
        .filter(|port| port.protocol != AppProtocol::Tcp)?;
    if view.kind == ClientKind::Grpc {
        return Some(grpc::table(world, view, name, service, port));
    }
    let routes = attachment::requests(world, view, key, port);
    if routes.is_empty() {
        let own = action::Own {
            cluster: name,
            sticky: service.client_ip_affinity.is_some(),
        };
        return Some(configuration(name, own_routes(view.kind, &own)));
    }
    let table = action::Table {
        world,
        kind: view.kind,
        port: port.port,
    };
    let routes = ordered(&routes)
        .into_iter()
        .flat_map(|(route, rule, matches)| {
            let named = |methods| WireRoute {
                name: rule_name(route, rule),
                ..table.route(rule, matches, methods)
            };
            let method = matches.method.as_ref();
            by_method(view.kind, matching::matches(matches), method, named)
        })
        .collect();
    Some(configuration(name, routes))
}

/// Everything, to a cluster of the destination's own.
fn own_routes(kind: ClientKind, own: &action::Own<'_>) -> Vec<WireRoute> {
    by_method(kind, matching::everything(), None, |methods| WireRoute {
        action: Some(own.forward(kind, methods)),
        ..WireRoute::default()
    })
}

/// The routes of one match. Envoy's retry policies do not mind methods, so it gets one route for the idempotent ones and
/// another one for the rest.
fn by_method(
    kind: ClientKind,
    matches: RouteMatch,
    method: Option<&Method>,
    route: impl Fn(Methods) -> WireRoute,
) -> Vec<WireRoute> {
    let of = |matches, methods| WireRoute {
        r#match: Some(matches),
        ..route(methods)
    };
    match (kind, method) {
        (ClientKind::Tulle | ClientKind::Grpc, _) => vec![of(matches, Methods::All)],
        (ClientKind::Envoy, Some(method)) if method.is_idempotent() => {
            vec![of(matches, Methods::Idempotent)]
        }
        (ClientKind::Envoy, Some(_)) => vec![of(matches, Methods::Others)],
        (ClientKind::Envoy, None) => vec![
            of(matching::idempotent(matches.clone()), Methods::Idempotent),
            of(matches, Methods::Others),
        ],
    }
}

/// The table that sends everything to a cluster of one pod, and is called like it.
pub(super) fn to_cluster(kind: ClientKind, cluster: &str) -> RouteConfiguration {
    let own = action::Own {
        cluster,
        sticky: false,
    };
    configuration(cluster, own_routes(kind, &own))
}

/// The table that sends everything to the app, once.
pub(super) fn to_app(cluster: &str) -> RouteConfiguration {
    configuration(cluster, vec![everything(action::once(cluster))])
}

/// Whether a namespace has consumer routes of some kinds for a Service.
pub(super) fn has_consumers(
    world: &World,
    kinds: &[RouteKind],
    service: &ObjectKey,
    namespace: &Arc<str>,
) -> bool {
    *namespace != service.namespace
        && kinds.iter().any(|kind| {
            world
                .routes_of(*kind, service)
                .any(|route| route.key.namespace == *namespace)
        })
}

/// All matches of all rules, in the order of precedence.
pub(super) fn ordered<'a>(routes: &[&'a Arc<Route>]) -> Vec<(&'a Route, &'a Rule, &'a Match)> {
    let mut matches: Vec<(&Route, &Rule, &Match)> = routes
        .iter()
        .flat_map(|route| route.rules.iter().map(move |rule| (&***route, rule)))
        .flat_map(|(route, rule)| {
            rule.matches
                .iter()
                .map(move |matches| (route, rule, matches))
        })
        .collect();
    // Stable: what is left equal stays in the order of the manifest.
    matches.sort_by(|(a_route, _, a), (b_route, _, b)| {
        precedence(a)
            .cmp(&precedence(b))
            .then_with(|| (a_route.created, &a_route.key).cmp(&(b_route.created, &b_route.key)))
    });
    matches
}

/// Smaller is matched first. For GRPCRoutes the longest service, then the longest method; for HTTPRoutes, where none is
/// named, an exact path, a regular expression, the longest prefix; then a method, the most headers, the most query
/// parameters.
fn precedence(matches: &Match) -> impl Ord {
    let path = match &matches.path {
        PathMatch::Exact(path) => (0, Reverse(path.len())),
        PathMatch::Regex(regex) => (1, Reverse(regex.len())),
        PathMatch::Prefix(path) => (2, Reverse(path.len())),
    };
    (
        Reverse(matches.named),
        path,
        Reverse(matches.method.is_some()),
        Reverse(matches.headers.len()),
        Reverse(matches.query.len()),
    )
}

pub(super) fn rule_name(route: &Route, rule: &Rule) -> String {
    match (&*rule.name, &route.key) {
        ("", key) => key.to_string(),
        (name, key) => format!("{key}/{name}"),
    }
}

fn everything(action: route::Action) -> WireRoute {
    WireRoute {
        r#match: Some(matching::everything()),
        action: Some(action),
        ..WireRoute::default()
    }
}

pub(super) fn configuration(name: &str, routes: Vec<WireRoute>) -> RouteConfiguration {
    let host = VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes,
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        validate_clusters: Some(BoolValue { value: false }),
        ..RouteConfiguration::default()
    }
}

/// The cluster of a backend, if the Service and its port exist.
pub(super) fn backend_cluster(world: &World, key: &ObjectKey, port: u16) -> (String, bool) {
    let exists = world.service(key).is_some_and(|service| {
        service.addressing != Addressing::External && service.port(port).is_some()
    });
    (
        ResourceName::Service {
            key: key.clone(),
            port,
        }
        .format(world.mesh()),
        exists,
    )
}
