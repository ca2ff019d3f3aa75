//! What the control plane has said, and the snapshot that follows from it.
//!
//! Pure: responses and questions go in, requests and a snapshot come out; time and sockets are the client's. A resource
//! reaches the snapshot only when everything it names is there (make before break): clusters with their endpoints,
//! then route tables whose clusters are there, then listeners. Until then the version before stays.

mod assemble;
mod weight;
mod wildcard;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::time::Instant;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::decode::{self, ClusterSpec, EndpointSet, EndpointSource, INBOUND, Listener};
use super::tracker::{Applied, Tracker};
use crate::config::store::{Ask, Used};
use crate::config::{RouteTable, Snapshot, Workload};

/// Refused listeners that are remembered, and the bytes of a name.
const MAX_REFUSED: usize = 4096;
const MAX_REFUSED_NAME: usize = 1024;
/// What stands for a nonce in saved listeners that are not all: others were refused.
const REFUSED: &str = "refused";
/// Sweeps without use after which a subscription is dropped.
pub(super) const MAX_IDLE_SWEEPS: u32 = 10;

/// Everything known, and everything asked.
#[derive(Debug)]
pub(super) struct State {
    listeners: Tracker<Listener>,
    routes: Tracker<RouteTable>,
    clusters: Tracker<ClusterSpec>,
    endpoints: Tracker<EndpointSet>,
    workloads: Tracker<Workload>,
    asked: HashMap<Ask, Asked>,
    /// Listeners, and as many workloads, that are asked about at a time.
    max_asked: usize,
    /// Clusters by the EDS name that they use.
    eds_users: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Changed clusters whose endpoints have not been sent since.
    awaiting: HashSet<Arc<str>>,
    /// Listeners that were refused, and their destinations: they are not unknown.
    refused: HashMap<String, Option<SocketAddr>>,
    /// Others were refused that are not remembered, so that nothing is unknown.
    refused_more: bool,
    /// They were refused on an earlier stream, and this one has not said anything about listeners yet.
    refused_before: bool,
    /// Clusters to look at when the next snapshot is assembled.
    touched: HashSet<Arc<str>>,
    /// What was last assembled.
    snapshot: Snapshot,
}

#[derive(Debug)]
struct Asked {
    name: Arc<str>,
    used: Arc<Used>,
    idle_sweeps: u32,
}

/// What a response did, for logs and metrics.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) kind: ResourceType,
    pub(super) accepted: usize,
    pub(super) rejected: Vec<(String, decode::DecodeError)>,
    pub(super) changed: bool,
    pub(super) subscribed: usize,
}

impl State {
    /// Nothing known yet; `inbound` is wanted, or everything. Of listeners, and of workloads, at most so many are asked about.
    pub(super) fn new(wildcard: bool, max_asked: usize) -> Self {
        let mut state = Self {
            listeners: Tracker::new(ResourceType::Listener, wildcard),
            routes: Tracker::new(ResourceType::Route, false),
            clusters: Tracker::new(ResourceType::Cluster, wildcard),
            endpoints: Tracker::new(ResourceType::Endpoints, false),
            workloads: Tracker::new(ResourceType::Address, false),
            asked: HashMap::new(),
            max_asked,
            eds_users: HashMap::new(),
            awaiting: HashSet::new(),
            refused: HashMap::new(),
            refused_more: false,
            refused_before: false,
            touched: HashSet::new(),
            snapshot: Snapshot::default(),
        };
        state.resubscribe();
        state
    }

    /// The snapshot that was assembled last.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A new stream begins: everything is to be said again.
    pub(super) fn reconnect(&mut self) {
        for cluster in &self.awaiting {
            if let Some(spec) = self.clusters.known(cluster)
                && let EndpointSource::Eds(eds) = &spec.source
            {
                self.endpoints.forget_version(eds);
            }
        }
        // They are sent again if they are still there; until then, and that may be an outage, they count.
        self.refused_before = true;
        self.listeners.reconnect();
        self.routes.reconnect();
        self.clusters.reconnect();
        self.endpoints.reconnect();
        self.workloads.reconnect();
    }

    /// The next thing to tell the control plane, in push order of the types; acknowledgements only if `acks`.
    pub(super) fn next_request(&mut self, acks: bool) -> Option<DeltaDiscoveryRequest> {
        let request = self
            .clusters
            .next_request(acks)
            .or_else(|| self.endpoints.next_request(acks));
        let request = request.or_else(|| self.listeners.next_request(acks));
        let request = request.or_else(|| self.routes.next_request(acks));
        request.or_else(|| self.workloads.next_request(acks))
    }

    /// Whether [`State::next_request`] has something to say.
    pub(super) fn has_request(&self, acks: bool) -> bool {
        self.clusters.has_request(acks)
            || self.endpoints.has_request(acks)
            || self.listeners.has_request(acks)
            || self.routes.has_request(acks)
            || self.workloads.has_request(acks)
    }

    /// Whether so many acknowledgements wait that the control plane should not be listened to.
    pub(super) fn is_full(&self) -> bool {
        self.clusters.is_full()
            || self.endpoints.is_full()
            || self.listeners.is_full()
            || self.routes.is_full()
            || self.workloads.is_full()
    }

    /// Whether something that was asked for has never been answered.
    pub(super) fn is_waiting(&self) -> bool {
        self.clusters.is_waiting()
            || self.endpoints.is_waiting()
            || self.listeners.is_waiting()
            || self.routes.is_waiting()
            || self.workloads.is_waiting()
    }

    /// Whether a response of this type was asked for on this stream.
    pub(super) fn expects(&self, type_url: &str) -> bool {
        match ResourceType::from_type_url(type_url) {
            Some(ResourceType::Listener) => self.listeners.is_asked(),
            Some(ResourceType::Route) => self.routes.is_asked(),
            Some(ResourceType::Cluster) => self.clusters.is_asked(),
            Some(ResourceType::Endpoints) => self.endpoints.is_asked(),
            Some(ResourceType::Address) => self.workloads.is_asked(),
            Some(ResourceType::Secret) | None => false,
        }
    }

    /// Takes a question of the data path. False: too many are asked already.
    pub(super) fn ask(&mut self, ask: Ask) -> bool {
        if let Some(asked) = self.asked.get_mut(&ask) {
            asked.idle_sweeps = 0;
            return true;
        }
        if matches!(ask, Ask::Workload(_)) && self.listeners.is_wildcard() {
            // Not a type that a foreign control plane knows: it might end the stream for it.
            return true;
        }
        if self.count_like(ask) >= self.max_asked && !self.evict_like(ask) {
            return false;
        }
        let name: Arc<str> = match ask {
            Ask::Outbound(destination) => decode::listener_name(destination).into(),
            Ask::Workload(address) => workload_name(address).into(),
        };
        match ask {
            Ask::Outbound(_) if self.listeners.is_wildcard() => {}
            Ask::Outbound(_) => self.listeners.want(&name),
            Ask::Workload(_) => self.workloads.want(&name),
        }
        let used = Arc::new(Used::default());
        self.snapshot.used.insert(ask, used.clone());
        self.asked.insert(
            ask,
            Asked {
                name,
                used,
                idle_sweeps: 0,
            },
        );
        true
    }

    /// Drops what has not been used for [`MAX_IDLE_SWEEPS`] calls; true if something was dropped.
    pub(super) fn sweep(&mut self) -> bool {
        let mut idle = Vec::new();
        for (ask, asked) in &mut self.asked {
            asked.idle_sweeps = if asked.used.take() {
                0
            } else {
                asked.idle_sweeps + 1
            };
            if asked.idle_sweeps >= MAX_IDLE_SWEEPS {
                idle.push(*ask);
            }
        }
        for ask in &idle {
            self.forget(*ask);
        }
        if !idle.is_empty() {
            self.resubscribe();
        }
        !idle.is_empty()
    }

    /// Takes a response; `None` if its type is not one that was asked for.
    pub(super) fn apply(&mut self, response: DeltaDiscoveryResponse) -> Option<Outcome> {
        let kind = ResourceType::from_type_url(&response.type_url)?;
        let applied = match kind {
            ResourceType::Listener => self.apply_listeners(response),
            ResourceType::Route => self.routes.apply(response, decode::route_table),
            ResourceType::Cluster => {
                let applied = self.clusters.apply(response, decode::cluster);
                self.clusters_changed(&applied);
                applied
            }
            ResourceType::Endpoints => {
                let applied = self.endpoints.apply(response, decode::endpoints);
                self.endpoints_confirmed(&applied);
                self.endpoints_refused(&applied);
                applied
            }
            ResourceType::Address => self
                .workloads
                .apply(response, |_, any| decode::workload(any)),
            ResourceType::Secret => return None,
        };
        if kind != ResourceType::Endpoints
            && kind != ResourceType::Address
            && !applied.changed.is_empty()
        {
            self.resubscribe();
        }
        Some(Outcome {
            kind,
            accepted: applied.confirmed.len(),
            changed: !applied.changed.is_empty(),
            rejected: applied.rejected,
            subscribed: self.subscribed(kind),
        })
    }

    fn apply_listeners(&mut self, response: DeltaDiscoveryResponse) -> Applied {
        if std::mem::take(&mut self.refused_before) {
            self.refused.clear();
            self.refused_more = false;
        }
        for name in &response.removed_resources {
            self.refused.remove(name);
        }
        let (known, wildcard) = (&mut self.refused, self.listeners.is_wildcard());
        let refused = RefCell::new((known, &mut self.refused_more));
        let applied = self.listeners.apply(response, |name, any| {
            let decoded = decode::listener(name, any);
            if decoded.is_err() && wildcard {
                let (known, more) = &mut *refused.borrow_mut();
                let is_room = known.len() < MAX_REFUSED && name.len() <= MAX_REFUSED_NAME;
                if is_room || known.contains_key(name) {
                    known.insert(name.to_owned(), decode::destination(any));
                } else {
                    **more = true;
                }
            }
            decoded
        });
        for name in &applied.confirmed {
            self.refused.remove(&**name);
        }
        self.refused_more &= !self.refused.is_empty();
        applied
    }

    /// Counts a look at a stream that works; route tables and endpoints that nobody answered for by now are not there.
    /// True if there are such.
    pub(super) fn give_up(&mut self, looks: u32) -> Vec<Arc<str>> {
        let mut absent = self.routes.give_up(looks);
        let endpoints = self.endpoints.give_up(looks);
        for eds in &endpoints {
            self.touched
                .extend(self.eds_users.get(eds).into_iter().flatten().cloned());
        }
        absent.extend(endpoints);
        absent
    }

    /// Takes away what has had its time. Returns its types and names.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(ResourceType, Arc<str>)> {
        let listeners = self.listeners.expire(now).changed;
        let routes = self.routes.expire(now).changed;
        let clusters = self.clusters.expire(now);
        self.clusters_changed(&clusters);
        let endpoints = self.endpoints.expire(now);
        self.endpoints_confirmed(&endpoints);
        let workloads = self.workloads.expire(now).changed;
        let all = [
            (ResourceType::Listener, listeners),
            (ResourceType::Route, routes),
            (ResourceType::Cluster, clusters.changed),
            (ResourceType::Endpoints, endpoints.changed),
            (ResourceType::Address, workloads),
        ];
        let named = |(kind, names): (_, Vec<_>)| names.into_iter().map(move |name| (kind, name));
        let expired: Vec<_> = all.into_iter().flat_map(named).collect();
        if !expired.is_empty() {
            self.resubscribe();
        }
        expired
    }

    /// When [`State::expire`] may have something to do.
    pub(super) fn expires(&self) -> Option<Instant> {
        let all = [
            self.listeners.expires(),
            self.routes.expires(),
            self.clusters.expires(),
            self.endpoints.expires(),
            self.workloads.expires(),
        ];
        all.into_iter().flatten().min()
    }

    /// Everything known, as responses; [`State::import`] takes them.
    pub(super) fn export(&self) -> Vec<DeltaDiscoveryResponse> {
        let mut listeners = self.listeners.export();
        if self.refused_more || !self.refused.is_empty() {
            listeners.nonce = REFUSED.to_owned();
        }
        vec![
            listeners,
            self.routes.export(),
            self.clusters.export(),
            self.endpoints.export(),
            self.workloads.export(),
        ]
    }

    /// Learns what [`State::export`] gave, as far as it decodes. Returns how many resources that were.
    pub(super) fn import(&mut self, responses: Vec<DeltaDiscoveryResponse>) -> usize {
        let mut accepted = 0;
        for response in responses {
            let sent = response
                .resources
                .iter()
                .map(|resource| resource.name.as_str());
            let removed = response.removed_resources.iter().map(String::as_str);
            let asks: Vec<Ask> = sent
                .chain(removed)
                .filter_map(|name| ask_of(&response.type_url, name))
                .collect();
            for ask in asks {
                self.ask(ask);
            }
            let is_all = response.nonce != REFUSED;
            accepted += self.apply(response).map_or(0, |outcome| outcome.accepted);
            self.refused_more |= !is_all;
        }
        accepted
    }

    fn subscribed(&self, kind: ResourceType) -> usize {
        match kind {
            ResourceType::Listener => self.listeners.len(),
            ResourceType::Route => self.routes.len(),
            ResourceType::Cluster => self.clusters.len(),
            ResourceType::Endpoints => self.endpoints.len(),
            ResourceType::Address => self.workloads.len(),
            ResourceType::Secret => 0,
        }
    }

    /// How many destinations, and how many addresses of clients, are asked about.
    pub(super) fn asked(&self) -> (usize, usize) {
        let workloads = self.workloads.len();
        (
            self.asked.len() - workloads.min(self.asked.len()),
            workloads,
        )
    }

    fn count_like(&self, ask: Ask) -> usize {
        let (outbound, workloads) = self.asked();
        match ask {
            Ask::Workload(_) => workloads,
            Ask::Outbound(_) => outbound,
        }
    }

    /// Makes room by dropping what was idle longest, at least since the last sweep.
    fn evict_like(&mut self, ask: Ask) -> bool {
        let alike = |other: &Ask| std::mem::discriminant(other) == std::mem::discriminant(&ask);
        let idle = self
            .asked
            .iter()
            .filter(|(other, asked)| alike(other) && asked.idle_sweeps > 0);
        let Some(victim) = idle
            .max_by_key(|(_, asked)| asked.idle_sweeps)
            .map(|(ask, _)| *ask)
        else {
            return false;
        };
        self.forget(victim);
        self.resubscribe();
        true
    }

    fn forget(&mut self, ask: Ask) {
        self.asked.remove(&ask);
        self.snapshot.used.remove(&ask);
        match ask {
            Ask::Outbound(address) => drop(self.snapshot.outbound.remove(&address)),
            Ask::Workload(address) => drop(self.snapshot.workloads.remove(&address)),
        }
    }

    /// A changed cluster that is in use waits for its endpoints to be sent again, and asks for that.
    fn clusters_changed(&mut self, applied: &Applied) {
        for name in &applied.changed {
            self.touched.insert(name.clone());
            self.awaiting.remove(name);
            // A foreign control plane may see no reason to send endpoints again that have not changed.
            if !self.clusters.is_wildcard()
                && let Some(spec) = self.clusters.known(name)
                && let EndpointSource::Eds(eds) = &spec.source
                && self.snapshot.clusters.contains_key(name)
            {
                self.awaiting.insert(name.clone());
                self.endpoints.want_again(eds);
            }
        }
    }

    /// A cluster whose endpoints were refused has none, if it has had none before.
    fn endpoints_refused(&mut self, applied: &Applied) {
        for (eds, _) in &applied.rejected {
            let users = self.eds_users.get(eds.as_str());
            self.touched.extend(users.into_iter().flatten().cloned());
        }
    }

    fn endpoints_confirmed(&mut self, applied: &Applied) {
        for eds in &applied.confirmed {
            for cluster in self.eds_users.get(eds).into_iter().flatten() {
                self.awaiting.remove(cluster);
                self.touched.insert(cluster.clone());
            }
        }
    }
}

fn workload_name(address: IpAddr) -> String {
    // The network comes first; ours has no name.
    format!("/{address}")
}

/// The question that a resource answers, if it is one that the data path asks.
fn ask_of(type_url: &str, name: &str) -> Option<Ask> {
    match ResourceType::from_type_url(type_url)? {
        ResourceType::Listener if name != INBOUND => {
            decode::listener_address(name).map(Ask::Outbound)
        }
        ResourceType::Address => name.strip_prefix('/')?.parse().ok().map(Ask::Workload),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
