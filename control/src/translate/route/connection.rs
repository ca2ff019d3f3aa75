//! Where connections go: TCPRoute and TLSRoute.
//!
//! They count where nothing is known of requests: at ports that are declared opaque, and at ports that declare nothing and
//! have no route of requests. A port of the latter kind is opaque by its route. As with requests, a backend that does
//! not exist takes its share, whose connections are closed.

use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
};

use super::super::attachment;
use super::{ProxyView, backend_cluster};
use crate::store::route::{Action, BackendTarget, Route, RouteKind};
use crate::store::service::{AppProtocol, ServicePort};
use crate::store::{ObjectKey, Service, World};

/// The name of a cluster that never exists.
const NOWHERE: &str = "invalid";

/// The clusters that connections go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Backends {
    /// Names and weights, of which the sum is not zero.
    clusters: Vec<(String, u32)>,
    /// Whether a client stays with one endpoint.
    pub(in super::super) sticky: bool,
}

impl Backends {
    /// One cluster.
    pub(in super::super) fn one(cluster: &str, sticky: bool) -> Self {
        Self {
            clusters: vec![(cluster.to_owned(), 1)],
            sticky,
        }
    }

    /// What the routes of connections say that count for a client at a port of a Service, if there are any.
    pub(in super::super) fn of(
        world: &World,
        view: &ProxyView,
        service: &Service,
        port: &ServicePort,
    ) -> Option<Self> {
        if matches!(
            port.protocol,
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc
        ) {
            return None;
        }
        let kinds = attachment::kinds(port.protocol);
        let routes = attachment::for_client(world, view, kinds, &service.key, port);
        let oldest = attachment::oldest(&routes)?;
        Some(Self::of_route(world, oldest))
    }

    fn of_route(world: &World, route: &Route) -> Self {
        let rules = route.rules.iter();
        let backends = rules.filter_map(|rule| match &rule.action {
            Action::Forward(forward) => Some(&forward.backends),
            Action::Redirect(_) => None,
        });
        let mut clusters = Vec::new();
        let mut sticky = false;
        for backend in backends.flatten().filter(|backend| backend.weight > 0) {
            let name = match &backend.target {
                BackendTarget::Service(key, port) => {
                    let service = world.service(key);
                    sticky |= service.is_some_and(|it| it.client_ip_affinity.is_some());
                    backend_cluster(world, key, *port).0
                }
                BackendTarget::Invalid => NOWHERE.to_owned(),
            };
            clusters.push((name, backend.weight));
        }
        if clusters.is_empty() {
            clusters.push((NOWHERE.to_owned(), 1));
        }
        Self { clusters, sticky }
    }

    /// As a TCP proxy has them.
    pub(in super::super) fn specifier(&self) -> ClusterSpecifier {
        if let [(name, _)] = &self.clusters[..] {
            return ClusterSpecifier::Cluster(name.clone());
        }
        let weight = |(name, weight): &(String, u32)| ClusterWeight {
            name: name.clone(),
            weight: *weight,
            ..ClusterWeight::default()
        };
        ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: self.clusters.iter().map(weight).collect(),
        })
    }
}

/// Whether a Service has routes of connections, of whatever namespace.
pub(in super::super) fn has_opaque(world: &World, service: &ObjectKey) -> bool {
    let kinds = RouteKind::ALL.into_iter().filter(|kind| kind.is_opaque());
    let mut routes = kinds.flat_map(|kind| world.routes_of(kind, service));
    routes.next().is_some()
}
