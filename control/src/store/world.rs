//! The world: every object by its key, and by what is asked about it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::index::Index;
use super::route::RouteKind;
use super::{
    EndpointSlice, Event, Kind, Namespace, Node, Object, ObjectKey, ObjectRef, PeerAuthentication,
    Pod, Route, Service,
};

/// What the operator chose for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// DNS domain of the cluster.
    pub cluster_domain: Arc<str>,
    /// Namespace of the control plane, whose policies count for the whole mesh.
    pub root_namespace: Arc<str>,
    /// Name of the cluster in telemetry.
    pub cluster: Arc<str>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        use tulle_runtime::names;
        Self {
            trust_domain: names::DEFAULT_TRUST_DOMAIN.into(),
            cluster_domain: names::DEFAULT_CLUSTER_DOMAIN.into(),
            root_namespace: names::CONTROL_NAMESPACE.into(),
            cluster: "Kubernetes".into(),
        }
    }
}

type Table<T> = Arc<BTreeMap<ObjectKey, Arc<T>>>;

/// The mesh at one moment. A clone shares everything that is not changed afterwards.
#[derive(Clone, Debug)]
pub struct World {
    mesh: Arc<MeshSettings>,
    synced: bool,
    generations: [u64; Kind::ALL.len()],
    namespaces: Table<Namespace>,
    service_accounts: Table<()>,
    nodes: Table<Node>,
    pods: Table<Pod>,
    services: Table<Service>,
    slices: Table<EndpointSlice>,
    /// By kind.
    routes: [Table<Route>; RouteKind::ALL.len()],
    policies: Table<PeerAuthentication>,
    istio_policies: Table<PeerAuthentication>,
    pods_by_ip: Index<IpAddr>,
    services_by_vip: Index<IpAddr>,
    slices_by_service: Index<ObjectKey>,
    slices_by_address: Index<IpAddr>,
    routes_by_parent: [Index<ObjectKey>; RouteKind::ALL.len()],
}

impl World {
    /// A world without objects.
    #[must_use]
    pub fn new(mesh: MeshSettings) -> Self {
        Self {
            mesh: Arc::new(mesh),
            synced: false,
            generations: [0; Kind::ALL.len()],
            namespaces: Arc::default(),
            service_accounts: Arc::default(),
            nodes: Arc::default(),
            pods: Arc::default(),
            services: Arc::default(),
            slices: Arc::default(),
            routes: Default::default(),
            policies: Arc::default(),
            istio_policies: Arc::default(),
            pods_by_ip: Index::default(),
            services_by_vip: Index::default(),
            slices_by_service: Index::default(),
            slices_by_address: Index::default(),
            routes_by_parent: Default::default(),
        }
    }

    /// Whether all that existed at the start has arrived: only then does "not there" mean "does not exist".
    #[must_use]
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Grows with every change of an object of the kind.
    #[must_use]
    pub fn generation(&self, kind: Kind) -> u64 {
        self.generations[kind as usize]
    }

    /// What the operator chose.
    #[must_use]
    pub fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// All namespaces, sorted.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, name: &Arc<str>) -> Option<&Arc<Namespace>> {
        self.namespaces.get(&ObjectKey {
            namespace: "".into(),
            name: name.clone(),
        })
    }

    /// Whether a service account exists.
    #[must_use]
    pub fn has_service_account(&self, key: &ObjectKey) -> bool {
        self.service_accounts.contains_key(key)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &Arc<str>) -> Option<&Arc<Node>> {
        self.nodes.get(&ObjectKey {
            namespace: "".into(),
            name: name.clone(),
        })
    }

    /// A pod.
    #[must_use]
    pub fn pod(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// All pods, sorted.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// The pods of a namespace, sorted.
    pub fn pods_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<Pod>> {
        in_namespace(&self.pods, namespace)
    }

    /// The pod that has an address of its own (not its node's).
    #[must_use]
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.pods_by_ip.get(&ip).find_map(|key| self.pods.get(key))
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, key: &ObjectKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All Services, sorted.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Services of a namespace, sorted.
    pub fn services_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<Service>> {
        in_namespace(&self.services, namespace)
    }

    /// The Service that has a virtual address.
    #[must_use]
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_vip(ip).next()
    }

    /// All Services that claim a virtual address, the one that has it first.
    pub fn services_by_vip(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_vip
            .get(&ip)
            .filter_map(|key| self.services.get(key))
    }

    /// The EndpointSlices of a Service, sorted.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_by_service
            .get(service)
            .filter_map(|key| self.slices.get(key))
    }

    /// The EndpointSlices that name an address, sorted.
    pub fn slices_by_address(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_by_address
            .get(&ip)
            .filter_map(|key| self.slices.get(key))
    }

    /// An EndpointSlice.
    #[must_use]
    pub fn slice(&self, key: &ObjectKey) -> Option<&Arc<EndpointSlice>> {
        self.slices.get(key)
    }

    /// The EndpointSlices of a namespace, sorted.
    pub fn slices_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        in_namespace(&self.slices, namespace)
    }

    /// A route.
    #[must_use]
    pub fn route(&self, kind: RouteKind, key: &ObjectKey) -> Option<&Arc<Route>> {
        self.routes[kind as usize].get(key)
    }

    /// All routes, those of connections first.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter().flat_map(|table| table.values())
    }

    /// The routes of a kind that name a Service as a parent, sorted by key.
    pub fn routes_of(
        &self,
        kind: RouteKind,
        service: &ObjectKey,
    ) -> impl Iterator<Item = &Arc<Route>> {
        let table = &self.routes[kind as usize];
        self.routes_by_parent[kind as usize]
            .get(service)
            .filter_map(|key| table.get(key))
    }

    /// The PeerAuthentications of a namespace; Tulle's before Istio's.
    pub fn policies_in(
        &self,
        namespace: &Arc<str>,
    ) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        in_namespace(&self.policies, namespace).chain(in_namespace(&self.istio_policies, namespace))
    }

    /// All PeerAuthentications; Tulle's before Istio's.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.policies.values().chain(self.istio_policies.values())
    }

    pub(super) fn set_synced(&mut self) {
        self.synced = true;
    }

    /// Takes in one event; says what changed, if anything did.
    pub(super) fn apply(&mut self, event: Event) -> Option<ObjectRef> {
        let reference = match &event {
            Event::Apply(object) => object.reference(),
            Event::Delete(reference) => reference.clone(),
        };
        let changed = match event {
            Event::Apply(object) => self.insert(object),
            Event::Delete(reference) => self.remove(&reference),
        };
        changed.then(|| {
            self.generations[reference.kind as usize] += 1;
            reference
        })
    }

    fn insert(&mut self, object: Object) -> bool {
        match object {
            Object::Namespace(namespace) => {
                set(&mut self.namespaces, namespace.key.clone(), Some(namespace)).is_some()
            }
            Object::ServiceAccount(key) => set(&mut self.service_accounts, key, Some(())).is_some(),
            Object::Node(node) => set(&mut self.nodes, node.key.clone(), Some(node)).is_some(),
            Object::Pod(pod) => self.set_pod(pod.key.clone(), Some(pod)),
            Object::Service(service) => self.set_service(service.key.clone(), Some(service)),
            Object::EndpointSlice(slice) => self.set_slice(slice.key.clone(), Some(slice)),
            Object::Route(route) => self.set_route(route.kind, route.key.clone(), Some(route)),
            Object::PeerAuthentication(policy) => {
                let table = if policy.istio {
                    &mut self.istio_policies
                } else {
                    &mut self.policies
                };
                set(table, policy.key.clone(), Some(policy)).is_some()
            }
        }
    }

    fn remove(&mut self, reference: &ObjectRef) -> bool {
        let key = reference.key.clone();
        match reference.kind {
            Kind::Namespace => set(&mut self.namespaces, key, None).is_some(),
            Kind::ServiceAccount => set(&mut self.service_accounts, key, None).is_some(),
            Kind::Node => set(&mut self.nodes, key, None).is_some(),
            Kind::Pod => self.set_pod(key, None),
            Kind::Service => self.set_service(key, None),
            Kind::EndpointSlice => self.set_slice(key, None),
            Kind::HttpRoute => self.set_route(RouteKind::Http, key, None),
            Kind::GrpcRoute => self.set_route(RouteKind::Grpc, key, None),
            Kind::TcpRoute => self.set_route(RouteKind::Tcp, key, None),
            Kind::TlsRoute => self.set_route(RouteKind::Tls, key, None),
            Kind::PeerAuthentication => set(&mut self.policies, key, None).is_some(),
            Kind::IstioPeerAuthentication => set(&mut self.istio_policies, key, None).is_some(),
        }
    }

    fn set_pod(&mut self, key: ObjectKey, pod: Option<Pod>) -> bool {
        fn own_ips(pod: &Pod) -> &[IpAddr] {
            if pod.host_network { &[] } else { &pod.ips }
        }
        let after = pod.as_ref().map_or(vec![], |pod| own_ips(pod).to_vec());
        let Some(before) = set(&mut self.pods, key.clone(), pod) else {
            return false;
        };
        self.pods_by_ip
            .replace(&key, before.as_deref().map_or(&[], own_ips), &after);
        true
    }

    fn set_service(&mut self, key: ObjectKey, service: Option<Service>) -> bool {
        let after = service
            .as_ref()
            .map_or(vec![], |service| service.vips().to_vec());
        let Some(before) = set(&mut self.services, key.clone(), service) else {
            return false;
        };
        self.services_by_vip
            .replace(&key, before.as_deref().map_or(&[], Service::vips), &after);
        true
    }

    fn set_slice(&mut self, key: ObjectKey, slice: Option<EndpointSlice>) -> bool {
        let addresses = |slice: &EndpointSlice| {
            let mut addresses: Vec<_> = slice
                .endpoints
                .iter()
                .map(|endpoint| endpoint.address)
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        };
        let service_after: Vec<_> = slice.iter().map(EndpointSlice::service_key).collect();
        let addresses_after = slice.as_ref().map_or(vec![], addresses);
        let Some(before) = set(&mut self.slices, key.clone(), slice) else {
            return false;
        };
        let service_before: Vec<_> = before.iter().map(|slice| slice.service_key()).collect();
        let addresses_before = before.as_deref().map_or(vec![], addresses);
        self.slices_by_service
            .replace(&key, &service_before, &service_after);
        self.slices_by_address
            .replace(&key, &addresses_before, &addresses_after);
        true
    }

    fn set_route(&mut self, kind: RouteKind, key: ObjectKey, route: Option<Route>) -> bool {
        let index = &mut self.routes_by_parent[kind as usize];
        let table = &mut self.routes[kind as usize];
        let services = |route: &Route| {
            route
                .parents
                .iter()
                .map(|parent| parent.service.clone())
                .collect::<Vec<_>>()
        };
        let after = route.as_ref().map_or(vec![], services);
        let Some(before) = set(table, key.clone(), route) else {
            return false;
        };
        index.replace(&key, &before.as_deref().map_or(vec![], services), &after);
        true
    }
}

/// Puts an object in, or takes it out. `None` if nothing changed by it, else what was there before.
fn set<T: PartialEq>(
    table: &mut Table<T>,
    key: ObjectKey,
    object: Option<T>,
) -> Option<Option<Arc<T>>> {
    if table.get(&key).map(|known| &**known) == object.as_ref() {
        return None;
    }
    let table = Arc::make_mut(table);
    Some(match object {
        Some(object) => table.insert(key, Arc::new(object)),
        None => table.remove(&key),
    })
}

fn in_namespace<'a, T>(
    table: &'a Table<T>,
    namespace: &Arc<str>,
) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
    let first = ObjectKey {
        namespace: namespace.clone(),
        name: "".into(),
    };
    let namespace = namespace.clone();
    table
        .range((Bound::Included(first), Bound::Unbounded))
        .take_while(move |(key, _)| key.namespace == namespace)
        .map(|(_, object)| object)
}
