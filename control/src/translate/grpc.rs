//! gRPC's view, without a proxy (gRFC A27, A28, A29, A31, A36, A44, A52): what a `xds:///HOST:PORT` channel and an
//! xDS-enabled server are told.
//!
//! - **Listeners** are asked for by target ([`target`]): `NAME:PORT` in the client's own namespace, `NAME.NS:PORT`,
//!   `NAME.NS.svc:PORT` or `NAME.NS.svc.DOMAIN:PORT`. Each is an API listener whose routes are in RDS under the usual name.
//!   A server asks by the address that it listens on ([`server`]).
//! - **Route tables** have only what gRPC can do ([`route`]): a request that could never come is left out, what cannot be
//!   done leads to a cluster without endpoints, so that it fails at once and by itself.
//! - **Clusters** are mTLS as a whole or not at all ([`cluster`]). One that has an mTLS endpoint is called with mTLS, with
//!   the ids of them all pinned, and its other endpoints are not called; the endpoints of either way have names of their own,
//!   so that no endpoint is ever called in the other way while things change.
//! - **Certificates** are the provider instance `default` of the bootstrap that `tulle agent` writes.
//!
//! There is no metadata of Tulle's own, and header changes, rewrites and per-try timeouts of routes do not exist in gRPC.

mod cluster;
mod endpoints;
mod route;
mod server;
mod target;
mod tls;

use std::sync::Arc;

use tulle_xds_proto::envoy::config::core::v3::TrafficDirection;
use tulle_xds_proto::envoy::config::listener::v3::{ApiListener, Listener};
use tulle_xds_proto::envoy::extensions::filters::http::router::v3::Router;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
};
use tulle_xds_proto::pack;

pub(super) use cluster::cluster;
pub(super) use endpoints::assignment;
pub(super) use route::table;

use super::filter;
use super::name::ResourceName;
use super::subject::Subject;
use super::{ProxyView, host_of};
use crate::store::service::{Addressing, AppProtocol};
use crate::store::{MeshSettings, ObjectKey, Service, World};

/// Cluster and load assignment of what leads nowhere: it exists, because a client waits long for one that does not, and it
/// has no endpoint.
pub(super) const NOWHERE: &str = "nowhere";

/// What a listener's name means.
enum Meaning {
    /// A port of a Service, for a channel.
    Target(target::Target),
    /// The client's own server.
    Server(std::net::SocketAddr),
}

fn meaning(mesh: &MeshSettings, namespace: Option<&Arc<str>>, name: &str) -> Option<Meaning> {
    server::address(name)
        .map(Meaning::Server)
        .or_else(|| target::parse(mesh, namespace, name).map(Meaning::Target))
}

/// What the target of a channel means, for fuzz targets: namespace, name and port.
#[cfg(feature = "fuzz")]
pub(crate) fn target_of(
    mesh: &MeshSettings,
    namespace: &Arc<str>,
    target: &str,
) -> Option<(String, String, u16)> {
    let target = target::parse(mesh, Some(namespace), target)?;
    let (namespace, name) = (&target.service.namespace, &target.service.name);
    Some((namespace.to_string(), name.to_string(), target.port))
}

/// The listener of a name.
pub(super) fn listener(world: &World, view: &ProxyView, name: &str) -> Option<Listener> {
    match meaning(world.mesh(), view.namespace.as_ref(), name)? {
        Meaning::Target(target) => channel(world, name, &target.service, target.port),
        Meaning::Server(address) => server::listener(world, name, view.pod.as_ref()?, address),
    }
}

/// What it is about.
pub(super) fn subject(mesh: &MeshSettings, view: &ProxyView, name: &str) -> Subject {
    match meaning(mesh, view.namespace.as_ref(), name) {
        Some(Meaning::Target(target)) => Subject::Service(target.service),
        Some(Meaning::Server(_)) => view.pod.clone().map_or(Subject::Nothing, Subject::Pod),
        None => Subject::Nothing,
    }
}

/// The part of a client's view that it depends on.
pub(super) fn view_part(mesh: &MeshSettings, view: &ProxyView, name: &str, part: &mut ProxyView) {
    match meaning(mesh, view.namespace.as_ref(), name) {
        Some(Meaning::Target(target)) if target.own_namespace => {
            part.namespace = view.namespace.clone();
        }
        Some(Meaning::Server(_)) => part.pod = view.pod.clone(),
        _ => {}
    }
}

/// The full name of a target, if it is one.
pub(super) fn target_name(world: &World, service: &Service, port: u16) -> Option<String> {
    serves(service, port).then(|| format!("{}:{port}", host_of(world.mesh(), &service.key)))
}

/// Whether a name is the full name of a target.
pub(super) fn is_target_name(world: &World, view: &ProxyView, name: &str) -> bool {
    let Some(Meaning::Target(target)) = meaning(world.mesh(), view.namespace.as_ref(), name) else {
        return false;
    };
    let service = world.service(&target.service);
    service.is_some_and(|it| target_name(world, it, target.port).as_deref() == Some(name))
}

/// Whether a port of a Service can be called: what is declared opaque takes no HTTP.
fn serves(service: &Service, port: u16) -> bool {
    service.addressing != Addressing::External
        && service
            .port(port)
            .is_some_and(|port| port.protocol != AppProtocol::Tcp)
}

fn channel(world: &World, name: &str, key: &ObjectKey, port: u16) -> Option<Listener> {
    world.service(key).filter(|service| serves(service, port))?;
    let routes = ResourceName::Service {
        key: key.clone(),
        port,
    };
    let rds = RouteSpecifier::Rds(Rds {
        config_source: Some(filter::ads()),
        route_config_name: routes.format(world.mesh()),
    });
    Some(Listener {
        name: name.to_owned(),
        traffic_direction: TrafficDirection::Outbound.into(),
        api_listener: Some(ApiListener {
            api_listener: Some(pack(&manager(rds))),
        }),
        ..Listener::default()
    })
}

/// The HTTP connection manager of either side.
fn manager(routes: RouteSpecifier) -> HttpConnectionManager {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(
            &Router::default(),
        ))),
        ..HttpFilter::default()
    };
    HttpConnectionManager {
        http_filters: vec![router],
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}
