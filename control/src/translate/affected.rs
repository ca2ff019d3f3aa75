//! Which resources may differ between two worlds.
//!
//! Errs on the side of too many: what is named and did not change encodes to the same bytes and is not sent.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use tulle_xds_proto::ResourceType;

use super::subject::{Reach, Subject};
use super::{ClientKind, ProxyView, route};
use crate::store::policy::PolicyTarget;
use crate::store::route::{Action, BackendTarget, RouteKind};
use crate::store::service::Addressing;
use crate::store::{Endpoint, EndpointSlice, Kind, ObjectKey, ObjectRef, Route, World};

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
}

impl Affected {
    /// What may differ, given the objects that do.
    #[must_use]
    pub fn between(before: &World, after: &World, changed: &BTreeSet<ObjectRef>) -> Self {
        let mut affected = Self {
            everything: before.synced() != after.synced(),
            ..Self::default()
        };
        for reference in changed {
            for world in [before, after] {
                affected.add(world, reference);
            }
            if reference.kind == Kind::EndpointSlice {
                affected.add_endpoints(before, after, &reference.key);
                affected.add_endpoints(after, before, &reference.key);
            }
        }
        // An address may have become another pod's: what is named after either may come or go.
        let addresses = affected.addresses.iter();
        let pods = addresses.flat_map(|ip| [before.pod_by_ip(*ip), after.pod_by_ip(*ip)]);
        affected
            .pods
            .extend(pods.flatten().map(|pod| pod.key.clone()));
        affected
    }

    /// How far the change reaches among the resources of a type.
    #[must_use]
    pub fn reach(&self, resource: ResourceType) -> Reach {
        let services = |keys: &HashSet<ObjectKey>| -> Vec<Subject> {
            keys.iter().cloned().map(Subject::Service).collect()
        };
        let pods = || self.pods.iter().cloned().map(Subject::Pod);
        let addresses = || self.addresses.iter().copied().map(Subject::Address);
        let (anything, subjects) = match resource {
            ResourceType::Listener => {
                // gRPC asks for them by Service.
                let named = services(&self.service_clusters);
                let all = addresses().chain(pods()).chain(named);
                (self.all_inbound, all.collect())
            }
            ResourceType::Address => (false, addresses().collect()),
            ResourceType::Route => (false, services(&self.service_routes)),
            ResourceType::Cluster | ResourceType::Endpoints => {
                let mut subjects = services(&self.service_endpoints);
                if resource == ResourceType::Cluster {
                    let more = self.service_clusters.difference(&self.service_endpoints);
                    subjects.extend(more.cloned().map(Subject::Service));
                }
                subjects.extend(pods());
                (self.all_endpoints, subjects)
            }
            ResourceType::Secret => (false, Vec::new()),
        };
        if self.everything || anything {
            Reach::Everything
        } else if subjects.is_empty() {
            Reach::Nothing
        } else {
            Reach::Subjects(subjects)
        }
    }

    /// Whether a resource with a subject may differ for a client.
    #[must_use]
    pub fn touches(&self, resource: ResourceType, subject: &Subject, view: &ProxyView) -> bool {
        if self.everything {
            return true;
        }
        match (resource, subject) {
            (ResourceType::Listener | ResourceType::Address, Subject::Address(ip)) => {
                self.addresses.contains(ip)
            }
            (ResourceType::Listener, Subject::Pod(key)) => {
                self.all_inbound || self.pods.contains(key)
            }
            (ResourceType::Listener, Subject::Service(key)) => self.service_clusters.contains(key),
            (ResourceType::Route, Subject::Service(key)) => self.service_routes.contains(key),
            (ResourceType::Cluster, Subject::Service(key)) => {
                // Foreign clients have the identities of the endpoints in the cluster.
                self.service_clusters.contains(key)
                    || (view.kind != ClientKind::Tulle
                        && (self.all_endpoints || self.service_endpoints.contains(key)))
            }
            (ResourceType::Endpoints, Subject::Service(key)) => {
                self.all_endpoints || self.service_endpoints.contains(key)
            }
            (ResourceType::Endpoints, Subject::Pod(key)) => {
                self.all_endpoints || self.pods.contains(key)
            }
            (ResourceType::Cluster, Subject::Pod(key)) => self.pods.contains(key),
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
            Kind::EndpointSlice => self.add_slice(world, key),
            Kind::HttpRoute => self.add_route(world, RouteKind::Http, key),
            Kind::GrpcRoute => self.add_route(world, RouteKind::Grpc, key),
            Kind::TcpRoute => self.add_route(world, RouteKind::Tcp, key),
            Kind::TlsRoute => self.add_route(world, RouteKind::Tls, key),
            Kind::PeerAuthentication | Kind::IstioPeerAuthentication => {
                self.add_policies(world, &key.namespace)
            }
        }
    }

    fn add_pod(&mut self, world: &World, key: &ObjectKey, itself: bool) {
        let Some(pod) = world.pod(key) else { return };
        self.pods.insert(key.clone());
        if itself && !pod.proxied {
            // It may be called at addresses that are none of its status.
            let is_elsewhere =
                |it: &Endpoint| !pod.ips.contains(&it.address) && it.pod.as_ref() == Some(key);
            let slices = world.slices_in(&key.namespace);
            let slices = slices.filter(|slice| slice.endpoints.iter().any(is_elsewhere));
            self.service_endpoints
                .extend(slices.map(|slice| slice.service_key()));
        }
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

    fn add_slice(&mut self, world: &World, key: &ObjectKey) {
        let Some(slice) = world.slice(key) else {
            return;
        };
        self.service_endpoints.insert(slice.service_key());
    }

    /// Whoever wants all listeners and clusters gets those of a headless Service's endpoints: adds the addresses that are
    /// in `world` and not in another, of all endpoints if they have other ports.
    fn add_endpoints(&mut self, world: &World, other: &World, key: &ObjectKey) {
        let Some(slice) = world.slice(key) else {
            return;
        };
        if !is_headless(world, slice) {
            return;
        }
        let alike = other.slice(key).filter(|other_slice| {
            (&other_slice.service, &other_slice.ports) == (&slice.service, &slice.ports)
                && is_headless(other, other_slice)
        });
        let kept = alike.into_iter().flat_map(|slice| addresses(slice));
        let kept: HashSet<_> = kept.collect();
        self.addresses
            .extend(addresses(slice).filter(|address| !kept.contains(address)));
    }

    fn add_service(&mut self, world: &World, key: &ObjectKey) {
        let Some(service) = world.service(key) else {
            return;
        };
        self.addresses.extend(service.vips());
        if service.addressing == Addressing::Headless {
            let slices = world.slices_of(key);
            self.addresses
                .extend(slices.flat_map(|slice| addresses(slice)));
        }
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
                self.add_parents(world, route);
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
        if let Some(route) = world.route(kind, key) {
            self.add_parents(world, route);
        }
    }

    /// Adds what is routed: requests in tables, connections in the listeners themselves.
    fn add_parents(&mut self, world: &World, route: &Route) {
        for parent in &route.parents {
            let service = &parent.service;
            self.service_routes.insert(service.clone());
            // Routes of requests come before those of connections.
            if route.kind.is_opaque() || route::has_opaque(world, service) {
                let service = world.service(service).into_iter();
                self.addresses
                    .extend(service.flat_map(|service| service.vips()));
            }
        }
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

fn is_headless(world: &World, slice: &EndpointSlice) -> bool {
    let service = world.service(&slice.service_key());
    service.is_some_and(|service| service.addressing == Addressing::Headless)
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.address)
}
