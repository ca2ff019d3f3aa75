//! From a record to the series that counts it, remembered per worker.
//!
//! A key holds addresses of config; the entry keeps that config alive, so an address means the same thing for as long as
//! the entry exists. A new snapshot empties the cache: config that nobody uses any more goes, and workloads that were
//! unknown get their names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tulle_identity::SpiffeId;

use super::connection::ConnectionRecord;
use super::labels::{HttpLabels, Labels, Party, Policy};
use super::metrics::{GRPC, HttpSeries, TcpSeries};
use super::record::{RequestRecord, ResponseFlags};
use super::{Hub, Local};
use crate::config::cluster::Discovery;
use crate::config::{Cluster, Config, Endpoint, Workload};
use crate::conn::{Direction, Downstream};
use crate::map::Map;

/// Entries before the cache is emptied: peers and status codes are many in the worst case.
const MAX_ENTRIES: usize = 1_024;

/// The series that a worker counts in.
#[derive(Debug, Default)]
pub(super) struct Cache {
    generation: u64,
    http: Map<HttpKey, HttpEntry>,
    tcp: Map<HopKey, TcpEntry>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct HttpKey {
    hop: HopKey,
    grpc: bool,
    http: HttpLabels,
}

/// Between whom.
#[derive(Debug, PartialEq, Eq, Hash)]
struct HopKey {
    direction: Direction,
    cluster: usize,
    endpoint: usize,
    passthrough: bool,
    flags: ResponseFlags,
    /// Who called and which port, inbound only: outbound that is always our own app.
    caller: Option<(IpAddr, Option<SpiffeId>, u16)>,
}

/// Config whose addresses a key holds.
type Held = (Option<Arc<Cluster>>, Option<Arc<Endpoint>>);

#[derive(Debug)]
struct HttpEntry {
    series: Arc<HttpSeries>,
    _held: Held,
}

#[derive(Debug)]
struct TcpEntry {
    series: Arc<TcpSeries>,
    _held: Held,
}

/// What a record says about who talks to whom.
struct Hop<'a> {
    downstream: &'a Downstream,
    cluster: Option<&'a Arc<Cluster>>,
    endpoint: Option<&'a Arc<Endpoint>>,
    passthrough: bool,
    flags: ResponseFlags,
}

impl Cache {
    /// The series of a request.
    pub(super) fn http(&mut self, hub: &Hub, record: &RequestRecord) -> &HttpSeries {
        self.refresh(&hub.config);
        let hop = Hop {
            downstream: &record.downstream,
            cluster: record.cluster.as_ref(),
            endpoint: record.endpoint.as_ref(),
            passthrough: passes_through(record.cluster.as_deref(), record.upstream),
            flags: record.flags,
        };
        let http = HttpLabels::of(record.status, record.grpc_status);
        let key = HttpKey {
            hop: hop.key(),
            grpc: record.grpc,
            http,
        };
        let entry = self.http.entry(key).or_insert_with(|| {
            let protocol = if record.grpc { GRPC } else { "http" };
            let labels = hop.labels(hub, protocol, Some(http));
            HttpEntry {
                series: hub.metrics.http(&labels),
                _held: hop.held(),
            }
        });
        &entry.series
    }

    /// The series of an opaque connection.
    pub(super) fn tcp(&mut self, hub: &Hub, record: &ConnectionRecord) -> Arc<TcpSeries> {
        self.refresh(&hub.config);
        let hop = Hop {
            downstream: &record.downstream,
            cluster: record.cluster.as_ref(),
            endpoint: record.endpoint.as_ref(),
            passthrough: passes_through(record.cluster.as_deref(), record.upstream),
            flags: record.flags,
        };
        let entry = self.tcp.entry(hop.key()).or_insert_with(|| {
            let labels = hop.labels(hub, "tcp", None);
            TcpEntry {
                series: hub.metrics.tcp(&labels),
                _held: hop.held(),
            }
        });
        entry.series.clone()
    }

    fn refresh(&mut self, config: &Config) {
        let generation = config.load().generation;
        if generation != self.generation
            || self.http.len() >= MAX_ENTRIES
            || self.tcp.len() >= MAX_ENTRIES
        {
            self.generation = generation;
            self.http.clear();
            self.tcp.clear();
        }
    }
}

impl Hop<'_> {
    fn key(&self) -> HopKey {
        let downstream = self.downstream;
        let caller = || {
            (
                downstream.peer.ip(),
                downstream.peer_id().cloned(),
                downstream.original_dst.port(),
            )
        };
        HopKey {
            direction: downstream.direction,
            cluster: self
                .cluster
                .map_or(0, |cluster| Arc::as_ptr(cluster).addr()),
            endpoint: self
                .endpoint
                .map_or(0, |endpoint| Arc::as_ptr(endpoint).addr()),
            passthrough: self.passthrough,
            flags: self.flags,
            caller: (downstream.direction == Direction::Inbound).then(caller),
        }
    }

    fn held(&self) -> Held {
        (self.cluster.cloned(), self.endpoint.cloned())
    }

    fn labels(&self, hub: &Hub, protocol: &'static str, http: Option<HttpLabels>) -> Labels {
        let service = self.cluster.and_then(|cluster| cluster.service.clone());
        let labels = Labels {
            reporter: self.downstream.direction,
            source: Party::default(),
            destination: Party::default(),
            service,
            passthrough: false,
            protocol,
            http,
            flags: self.flags,
            policy: Policy::Unknown,
        };
        match self.downstream.direction {
            Direction::Outbound => self.outbound(hub, labels),
            Direction::Inbound => self.inbound(hub, labels),
        }
    }

    fn outbound(&self, hub: &Hub, labels: Labels) -> Labels {
        // Pinned by the handshake: an endpoint has one service account, and so one id.
        let peer = self
            .endpoint
            .and_then(|endpoint| endpoint.mtls.as_ref())
            .and_then(|peer| peer.0.first());
        let secured = peer.is_some();
        Labels {
            source: ourselves(hub, secured),
            destination: Party {
                workload: self.endpoint.map(|endpoint| endpoint.workload.clone()),
                principal: peer.cloned(),
            },
            passthrough: self.passthrough,
            ..labels
        }
    }

    fn inbound(&self, hub: &Hub, labels: Labels) -> Labels {
        let peer = self.downstream.peer_id();
        let port = self.downstream.original_dst.port();
        let declared = || {
            hub.config
                .load()
                .inbound
                .as_ref()
                .and_then(|inbound| inbound.port(port).service.clone())
        };
        let service = labels.service.clone().or_else(declared);
        Labels {
            source: Party {
                workload: peer
                    .and_then(|peer| proven(&hub.config, self.downstream.peer.ip(), peer)),
                principal: peer.cloned(),
            },
            destination: ourselves(hub, peer.is_some()),
            service,
            policy: if peer.is_some() {
                Policy::MutualTls
            } else {
                Policy::None
            },
            ..labels
        }
    }
}

/// Whether traffic goes where it meant to go without a cluster that has endpoints.
fn passes_through(cluster: Option<&Cluster>, upstream: Option<SocketAddr>) -> bool {
    cluster.map_or(upstream.is_some(), |cluster| {
        cluster.discovery == Discovery::OriginalDst
    })
}

/// Our own end; the principal counts only where it was shown.
fn ourselves(hub: &Hub, secured: bool) -> Party {
    let Local {
        address,
        id,
        workload,
    } = &hub.local;
    let workload = hub
        .config
        .workload(*address)
        .unwrap_or_else(|| workload.clone());
    Party {
        workload: Some(workload),
        principal: secured.then(|| id.clone()),
    }
}

/// The workload at an address, believed only if it has the identity that the peer has proven.
fn proven(config: &Config, address: IpAddr, peer: &SpiffeId) -> Option<Arc<Workload>> {
    config.workload(address).filter(|workload| {
        *workload.namespace == *peer.namespace()
            && *workload.service_account == *peer.service_account()
    })
}

/// Counts what moves on one opaque connection; dropping it counts the connection as closed.
#[derive(Debug, Default)]
pub struct TcpSession {
    series: Option<Arc<TcpSeries>>,
}

impl TcpSession {
    pub(super) fn new(series: Arc<TcpSeries>) -> Self {
        series.opened.fetch_add(1, Ordering::Relaxed);
        Self {
            series: Some(series),
        }
    }

    /// Bytes were written to the client.
    pub fn sent(&self, bytes: u64) {
        if let Some(series) = &self.series {
            series.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes were read from the client.
    pub fn received(&self, bytes: u64) {
        if let Some(series) = &self.series {
            series.received.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for TcpSession {
    fn drop(&mut self) {
        if let Some(series) = &self.series {
            series.closed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
