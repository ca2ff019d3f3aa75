//! Which names are wanted, and the snapshot that what has arrived of them makes.

use std::collections::HashSet;
use std::sync::Arc;

use super::State;
use crate::config::cluster::{Discovery, Endpoint, LbPolicy};
use crate::config::listener::RouteSource;
use crate::config::route::RouteAction;
use crate::config::store::Ask;
use crate::config::{
    Cluster, Endpoints, InboundListener, Lookup, OutboundListener, Protocol, RouteTable, Snapshot,
};
use crate::xds::decode::{ClusterSpec, EndpointSource, EndpointSpec, INBOUND, Listener};
use crate::xds::tracker::Answer;

type Names = HashSet<Arc<str>>;

impl State {
    /// Subscribes to what the asked listeners lead to, and lets go of everything else.
    pub(super) fn resubscribe(&mut self) {
        let mut names: Names = Names::from([INBOUND.into()]);
        let mut addresses = Names::new();
        for (ask, asked) in &self.asked {
            match ask {
                Ask::Outbound(_) => names.insert(asked.name.clone()),
                Ask::Workload(_) => addresses.insert(asked.name.clone()),
            };
        }
        self.listeners.want_only(&names);
        self.workloads.want_only(&addresses);

        let (mut routes, mut clusters) = (Names::new(), Names::new());
        for (_, answer) in self.listeners.answers() {
            match answer {
                Answer::Known(listener) => listener_names(listener, &mut routes, &mut clusters),
                Answer::Waiting | Answer::Refused | Answer::Removed => {}
            }
        }
        // What is in use stays until what comes after it is ready.
        published_names(&self.snapshot, &mut routes, &mut clusters);
        for name in self.routes.want_only(&routes) {
            self.snapshot.routes.remove(&name);
        }
        for name in &routes {
            if let Some(table) = self.routes.known(name) {
                table_names(table, &mut clusters);
            }
            if let Some(table) = self.snapshot.routes.get(name) {
                table_names(table, &mut clusters);
            }
        }
        for name in self.clusters.want_only(&clusters) {
            self.snapshot.clusters.remove(&name);
            self.awaiting.remove(&name);
        }
        self.resubscribe_endpoints();
    }

    fn resubscribe_endpoints(&mut self) {
        let mut names = Names::new();
        self.eds_users.clear();
        for (cluster, answer) in self.clusters.answers() {
            if let Answer::Known(spec) = answer
                && let EndpointSource::Eds(eds) = &spec.source
            {
                names.insert(eds.clone());
                self.eds_users
                    .entry(eds.clone())
                    .or_default()
                    .push(cluster.clone());
            }
        }
        self.endpoints.want_only(&names);
    }

    /// Moves into the snapshot what is complete now; true if the snapshot is another one.
    pub(in crate::xds) fn assemble(&mut self) -> bool {
        let endpoints = self.assemble_clusters();
        let routes = self.assemble_routes();
        let listeners = self.assemble_listeners();
        if routes || listeners {
            // What only an older version named is no longer in use.
            self.resubscribe();
        }
        let workloads = self.assemble_workloads();
        endpoints || routes || listeners || workloads
    }

    fn assemble_clusters(&mut self) -> bool {
        let mut changed = false;
        for name in std::mem::take(&mut self.touched) {
            let spec = match self.clusters.answer(&name) {
                Some(Answer::Known(spec)) => spec,
                Some(Answer::Waiting | Answer::Refused) => continue,
                // By wildcard, what is removed is not even an entry.
                Some(Answer::Removed) | None => {
                    changed |= self.snapshot.clusters.remove(&name).is_some();
                    continue;
                }
            };
            let endpoints: &[EndpointSpec] = match &spec.source {
                EndpointSource::OriginalDst => &[],
                EndpointSource::Inline(set) => &set.0,
                EndpointSource::Eds(_) if self.awaiting.contains(&name) => continue,
                EndpointSource::Eds(eds) => match self.endpoints.answer(eds) {
                    Some(Answer::Known(set)) => &set.0,
                    Some(Answer::Removed | Answer::Refused) => &[],
                    Some(Answer::Waiting) | None => continue,
                },
            };
            let cluster = build_cluster(&name, spec, endpoints, self.snapshot.clusters.get(&name));
            self.snapshot.clusters.insert(name, Arc::new(cluster));
            changed = true;
        }
        changed
    }

    fn assemble_routes(&mut self) -> bool {
        let mut changed = false;
        for (name, answer) in self.routes.answers() {
            match answer {
                Answer::Waiting => {}
                Answer::Removed => changed |= self.snapshot.routes.remove(name).is_some(),
                Answer::Refused if self.snapshot.routes.contains_key(name) => {}
                Answer::Refused => {
                    let table = Arc::new(RouteTable::refused(name.clone()));
                    self.snapshot.routes.insert(name.clone(), table);
                    changed = true;
                }
                Answer::Known(table) => {
                    let old = self.snapshot.routes.get(name);
                    if old.is_some_and(|old| Arc::ptr_eq(old, table)) {
                        continue;
                    }
                    let mut clusters = Names::new();
                    table_names(table, &mut clusters);
                    if clusters.iter().all(|cluster| self.has_cluster(cluster)) {
                        self.snapshot.routes.insert(name.clone(), table.clone());
                        changed = true;
                    }
                }
            }
        }
        changed
    }

    fn assemble_listeners(&mut self) -> bool {
        if self.listeners.is_wildcard() {
            return self.assemble_all_listeners();
        }
        let mut next_inbound = None;
        let mut next = Vec::new();
        for (name, answer) in self.listeners.answers() {
            match answer {
                Answer::Waiting | Answer::Refused => {}
                // Whoever deletes a pod may still want it to finish its work: the last `inbound` stays.
                Answer::Removed if &**name == INBOUND => {}
                Answer::Removed => {
                    if let Some(address) = super::decode::listener_address(name) {
                        next.push((address, Lookup::Unknown));
                    }
                }
                Answer::Known(listener) if !self.is_complete(listener) => {}
                Answer::Known(listener) => match &**listener {
                    Listener::Inbound(inbound) => next_inbound = Some(inbound.clone()),
                    Listener::Outbound(outbound) => {
                        next.push((outbound.address, Lookup::Known(outbound.clone())));
                    }
                },
            }
        }
        let mut changed = self.publish_inbound(next_inbound);
        for (address, lookup) in next {
            changed |= self.publish_outbound(address, lookup);
        }
        changed
    }

    pub(super) fn publish_inbound(&mut self, next: Option<Arc<InboundListener>>) -> bool {
        let Some(next) = next else { return false };
        if self
            .snapshot
            .inbound
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &next))
        {
            return false;
        }
        self.snapshot.inbound = Some(next);
        true
    }

    fn publish_outbound(
        &mut self,
        address: std::net::SocketAddr,
        lookup: Lookup<Arc<OutboundListener>>,
    ) -> bool {
        let old = self.snapshot.outbound.get(&address);
        let same = old.is_some_and(|old| same(old, &lookup));
        if !same {
            self.snapshot.outbound.insert(address, lookup);
        }
        !same
    }

    fn assemble_workloads(&mut self) -> bool {
        let mut changed = false;
        for (ask, asked) in &self.asked {
            let Ask::Workload(address) = ask else {
                continue;
            };
            let lookup = match self.workloads.answer(&asked.name) {
                Some(Answer::Known(workload)) => Lookup::Known(workload.clone()),
                Some(Answer::Removed) => Lookup::Unknown,
                Some(Answer::Waiting | Answer::Refused) | None => continue,
            };
            if self.snapshot.workloads.get(address) != Some(&lookup) {
                self.snapshot.workloads.insert(*address, lookup);
                changed = true;
            }
        }
        changed
    }

    pub(super) fn is_complete(&self, listener: &Listener) -> bool {
        let (mut routes, mut clusters) = (Names::new(), Names::new());
        listener_names(listener, &mut routes, &mut clusters);
        let has_route = |name: &Arc<str>| {
            let removed = matches!(self.routes.answer(name), Some(Answer::Removed));
            removed || self.snapshot.routes.contains_key(name)
        };
        routes.iter().all(has_route) && clusters.iter().all(|name| self.has_cluster(name))
    }

    fn has_cluster(&self, name: &Arc<str>) -> bool {
        if self.snapshot.clusters.contains_key(name) {
            return true;
        }
        match self.clusters.answer(name) {
            Some(Answer::Removed) => true,
            Some(Answer::Waiting | Answer::Refused | Answer::Known(_)) => false,
            None => self.clusters.is_wildcard() && self.clusters.is_answered(),
        }
    }
}

/// Whether an answer is the very same.
pub(super) fn same<T>(old: &Lookup<Arc<T>>, new: &Lookup<Arc<T>>) -> bool {
    match (old, new) {
        (Lookup::Known(old), Lookup::Known(new)) => Arc::ptr_eq(old, new),
        (Lookup::Unknown, Lookup::Unknown) => true,
        _ => false,
    }
}

/// Counters are carried over from the cluster and the endpoints of the same names.
fn build_cluster(
    name: &Arc<str>,
    spec: &ClusterSpec,
    endpoints: &[EndpointSpec],
    old: Option<&Arc<Cluster>>,
) -> Cluster {
    let build = |spec: &EndpointSpec| {
        let old = old.and_then(|cluster| {
            let found = cluster
                .endpoints
                .binary_search_by_key(&spec.address, |old| old.address);
            found.ok().map(|at| &cluster.endpoints[at])
        });
        if let Some(old) = old
            && (old.weight, old.health) == (spec.weight, spec.health)
            && (&old.mtls, old.foreign) == (&spec.mtls, spec.foreign)
            && old.workload == spec.workload
        {
            return old.clone();
        }
        Arc::new(Endpoint {
            address: spec.address,
            weight: spec.weight,
            health: spec.health,
            mtls: spec.mtls.clone(),
            foreign: spec.foreign,
            workload: spec.workload.clone(),
            state: old.map(|old| old.state.clone()).unwrap_or_default(),
        })
    };
    Cluster {
        name: name.clone(),
        service: spec.service.clone(),
        discovery: match spec.source {
            EndpointSource::Eds(_) => Discovery::Eds,
            EndpointSource::Inline(_) => Discovery::Inline,
            EndpointSource::OriginalDst => Discovery::OriginalDst,
        },
        lb_policy: spec.lb_policy,
        http: spec.http,
        connect_timeout: spec.connect_timeout,
        limits: spec.limits,
        outlier: spec.outlier,
        endpoints: match spec.lb_policy {
            LbPolicy::ConsistentHash => Endpoints::with_ring(endpoints.iter().map(build)),
            _ => endpoints.iter().map(build).collect(),
        },
        state: old.map(|old| old.state.clone()).unwrap_or_default(),
    }
}

fn listener_names(listener: &Listener, routes: &mut Names, clusters: &mut Names) {
    match listener {
        Listener::Outbound(outbound) => outbound_names(outbound, routes, clusters),
        Listener::Inbound(inbound) => inbound_names(inbound, clusters),
    }
}

fn outbound_names(listener: &OutboundListener, routes: &mut Names, clusters: &mut Names) {
    let source = match &listener.protocol {
        Protocol::Http(http) | Protocol::Detect { http, .. } => Some(http),
        Protocol::Tcp(_) => None,
    };
    match source {
        Some(RouteSource::Named(name)) => drop(routes.insert(name.clone())),
        Some(RouteSource::Inline(table)) => table_names(table, clusters),
        None => {}
    }
    tcp_names(&listener.protocol, clusters);
}

fn inbound_names(listener: &InboundListener, clusters: &mut Names) {
    for port in listener.ports.values().chain([&listener.default]) {
        match &port.protocol {
            Protocol::Http(table) | Protocol::Detect { http: table, .. } => {
                table_names(table, clusters)
            }
            Protocol::Tcp(_) => {}
        }
        tcp_names(&port.protocol, clusters);
    }
}

fn tcp_names<H>(protocol: &Protocol<H>, clusters: &mut Names) {
    match protocol {
        Protocol::Tcp(tcp) | Protocol::Detect { tcp, .. } => {
            clusters.extend(tcp.clusters.iter().map(|(name, _)| name.clone()));
        }
        Protocol::Http(_) => {}
    }
}

fn table_names(table: &RouteTable, clusters: &mut Names) {
    for route in &table.routes {
        if let RouteAction::Forward(forward) = &route.action {
            clusters.extend(forward.clusters.iter().map(|cluster| cluster.name.clone()));
        }
    }
}

fn published_names(snapshot: &Snapshot, routes: &mut Names, clusters: &mut Names) {
    for lookup in snapshot.outbound.values() {
        if let Lookup::Known(listener) = lookup {
            outbound_names(listener, routes, clusters);
        }
    }
    if let Some(inbound) = &snapshot.inbound {
        inbound_names(inbound, clusters);
    }
}
