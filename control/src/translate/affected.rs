//! Which resources may differ between two worlds.
//!
//! Errs on the side of too many: what is named and did not change encodes to the same bytes and is not sent.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use tulle_xds_proto::ResourceType;

use super::name::ResourceName;
use super::{ClientKind, ProxyView};
use crate::store::policy::PolicyTarget;
use crate::store::route::{Action, BackendTarget, RouteKind};
use crate::store::{Kind, MeshSettings, ObjectKey, ObjectRef, World};

/// The resources that may differ.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    everything: bool,
    all_endpoints: bool,
    all_inbound: bool,
    /// Listeners of any port of an address, and its workload.
    addresses: HashSet<IpAddr>,
    /// Clusters and endpoints of any port of a pod, and its `inbound`.
    pods: HashSet<ObjectKey>,
    /// Clusters of any port of a Service.
    service_clusters: HashSet<ObjectKey>,
    /// Endpoints of any port of a Service.
    service_endpoints: HashSet<ObjectKey>,
    /// Route tables of any port of a Service.
    service_routes: HashSet<ObjectKey>,
    mesh: MeshSettings,
}

impl Affected {
    /// What may differ, given the objects that do.
    #[must_use]
    pub fn between(before: &World, after: &World, changed: &BTreeSet<ObjectRef>) -> Self {
        let mut affected = Self {
            mesh: after.mesh().clone(),
            ..Self::default()
        };
        affected.everything = before.synced() != after.synced();
        for reference in changed {
            for world in [before, after] {
                affected.add(world, reference);
            }
        }
        affected
    }

    /// Whether any resource of a type may differ for any client; if not, no name of it needs asking.
    #[must_use]
    pub fn touches_type(&self, resource: ResourceType) -> bool {
        let endpoints =
            self.all_endpoints || !self.service_endpoints.is_empty() || !self.pods.is_empty();
        self.everything
            || match resource {
                ResourceType::Listener => {
                    self.all_inbound || !self.addresses.is_empty() || !self.pods.is_empty()
                }
                ResourceType::Address => !self.addresses.is_empty(),
                ResourceType::Route => !self.service_routes.is_empty(),
                ResourceType::Cluster => endpoints || !self.service_clusters.is_empty(),
                ResourceType::Endpoints => endpoints,
                ResourceType::Secret => false,
            }
    }

    /// Whether a resource may differ for a client.
    #[must_use]
    pub fn touches(&self, resource: ResourceType, name: &str, view: &ProxyView) -> bool {
        if self.everything {
            return true;
        }
        if resource == ResourceType::Address {
            let ip = name
                .strip_prefix('/')
                .and_then(|ip| ip.parse::<IpAddr>().ok());
            return ip.is_some_and(|ip| self.addresses.contains(&ip));
        }
        match (resource, ResourceName::parse(&self.mesh, name)) {
            (ResourceType::Listener, Some(ResourceName::Outbound(address))) => {
                self.addresses.contains(&address.ip())
            }
            (ResourceType::Listener, Some(ResourceName::Inbound)) => {
                self.all_inbound || view.pod.as_ref().is_some_and(|pod| self.pods.contains(pod))
            }
            (ResourceType::Route, Some(ResourceName::Service { key, .. })) => {
                self.service_routes.contains(&key)
            }
            (ResourceType::Cluster, Some(ResourceName::Service { key, .. })) => {
                // Foreign clients have the identities of the endpoints in the cluster.
                self.service_clusters.contains(&key)
                    || (view.kind != ClientKind::Tulle
                        && (self.all_endpoints || self.service_endpoints.contains(&key)))
            }
            (ResourceType::Endpoints, Some(ResourceName::Service { key, .. })) => {
                self.all_endpoints || self.service_endpoints.contains(&key)
            }
            (ResourceType::Endpoints, Some(ResourceName::Pod { key, .. })) => {
                self.all_endpoints || self.pods.contains(&key)
            }
            (ResourceType::Cluster, Some(ResourceName::Pod { key, .. })) => {
                self.pods.contains(&key)
            }
            _ => false,
        }
    }

    /// Adds what depends on an object in a world.
    fn add(&mut self, world: &World, reference: &ObjectRef) {
        let key = &reference.key;
        match reference.kind {
            Kind::Namespace | Kind::ServiceAccount => {}
            // Zones are part of the view of every client on the node.
            Kind::Node => self.all_endpoints = true,
            Kind::Pod => self.add_pod(world, key, true),
            Kind::Service => self.add_service(world, key),
            Kind::EndpointSlice => {
                self.service_endpoints
                    .extend(world.slice(key).map(|slice| slice.service_key()));
            }
            Kind::HttpRoute => self.add_route(world, RouteKind::Http, key),
            Kind::GrpcRoute => self.add_route(world, RouteKind::Grpc, key),
            Kind::PeerAuthentication | Kind::IstioPeerAuthentication => {
                self.add_policies(world, &key.namespace)
            }
        }
    }

    fn add_pod(&mut self, world: &World, key: &ObjectKey, itself: bool) {
        let Some(pod) = world.pod(key) else { return };
        self.pods.insert(key.clone());
        for ip in &pod.ips {
            if itself {
                self.addresses.insert(*ip);
            }
            self.service_endpoints.extend(
                world
                    .slices_by_address(*ip)
                    .map(|slice| slice.service_key()),
            );
        }
    }

    fn add_service(&mut self, world: &World, key: &ObjectKey) {
        let Some(service) = world.service(key) else {
            return;
        };
        self.addresses.extend(service.vips());
        self.service_clusters.insert(key.clone());
        self.service_endpoints.insert(key.clone());
        self.service_routes.insert(key.clone());
        // What the ports of its pods speak.
        for pod in world
            .pods_in(&key.namespace)
            .filter(|pod| service.selects(pod))
        {
            self.pods.insert(pod.key.clone());
            self.addresses.extend(&pod.ips);
        }
        // Whether it is there for routes that name it as a backend.
        for route in world.routes() {
            let backends = route.rules.iter().filter_map(|rule| match &rule.action {
                Action::Forward(forward) => Some(&forward.backends),
                Action::Redirect(_) => None,
            });
            if backends.flatten().any(
                |it| matches!(&it.target, BackendTarget::Service(backend, _) if backend == key),
            ) {
                self.service_routes
                    .extend(route.parents.iter().map(|parent| parent.service.clone()));
            }
        }
        let selects = |target: &PolicyTarget| matches!(target, PolicyTarget::Services(keys) if keys.contains(key));
        if world
            .policies_in(&key.namespace)
            .any(|policy| selects(&policy.target))
        {
            self.add_policies(world, &key.namespace);
        }
    }

    fn add_route(&mut self, world: &World, kind: RouteKind, key: &ObjectKey) {
        let parents = world
            .route(kind, key)
            .into_iter()
            .flat_map(|route| &route.parents);
        self.service_routes
            .extend(parents.map(|parent| parent.service.clone()));
    }

    fn add_policies(&mut self, world: &World, namespace: &Arc<str>) {
        if *namespace == world.mesh().root_namespace {
            self.all_endpoints = true;
            self.all_inbound = true;
            return;
        }
        for pod in world.pods_in(namespace) {
            self.add_pod(world, &pod.key, false);
        }
    }
}
