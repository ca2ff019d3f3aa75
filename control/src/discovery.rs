//! Discovery: configuration for proxies over Envoy's xDS v3, as aggregated streams (ADS), incremental or state of the world.
//!
//! A [`Discovery`] follows the store. It keeps each resource encoded once ([`catalog`]), knows who wants what
//! ([`index`]), and serves one [`session`] a stream, whose caller is whom TLS proved and nobody else ([`admission`]).
//! An endpoint change goes to its subscribers at once, and touches nobody else.

mod account;
mod admission;
mod catalog;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod index;
mod intake;
mod metrics;
mod node;
mod refused;
mod resource;
mod service;
mod session;
mod subscription;
mod variant;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tulle_identity::SpiffeId;
use tulle_runtime::admin::CONNECTIONS;
use tulle_runtime::gate::Gates;
use tulle_runtime::names::agent;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::ResourceType;

use crate::app::listener::{Bounds, Stranger};
use crate::ca::Requests;
use crate::limit::{Reached, Slack};
use crate::store::{Kind, ObjectKey, Store, Update, Updates, World};
use crate::translate::{self, Affected, ClientKind, Overruled, ProxyView, ROOT_CA, Reach, Subject};
use account::Accounts;
use catalog::Catalog;
use index::{Change, Index, Mailbox, StreamId};
use metrics::Metrics;
use resource::Name;
use subscription::Subscription;

/// Reads a `node.id`, for fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn node_id(id: &str, domain: &str) -> Option<node::NodeId> {
    node::NodeId::parse(id, domain).ok()
}

/// What one client may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Explicit subscriptions of one type on one stream.
    pub(crate) subscriptions: usize,
    /// Names that a client may ask for in a second, on average.
    pub(crate) names_a_second: u32,
    /// Names that it may ask for at once; more, where there is more.
    pub(crate) names_at_once: u32,
    /// Open streams of one pod.
    pub(crate) streams_per_pod: usize,
    /// Bytes of one request: a reconnecting client lists every name and version that it has.
    pub(crate) request_bytes: usize,
    /// How long the first request of a stream may take.
    pub(crate) first_request: Duration,
    /// Bytes of resources in one response, unless a single one is larger.
    pub(crate) response_bytes: usize,
    /// How long a stream waits for its pod to appear.
    pub(crate) pod_wait: Duration,
    /// Connections that clients may have.
    pub(crate) connections: Bounds,
    /// Connections of operators.
    pub(crate) admin_connections: usize,
    /// What a client may ask of the CA.
    pub(crate) certificates: Requests,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subscriptions: 10_000,
            names_a_second: 2_000,
            names_at_once: 50_000,
            streams_per_pod: agent::STREAMS as usize,
            request_bytes: 4 << 20,
            first_request: Duration::from_secs(10),
            response_bytes: 1 << 20,
            pod_wait: Duration::from_secs(5),
            connections: Bounds::default(),
            admin_connections: CONNECTIONS,
            certificates: Requests::default(),
        }
    }
}

/// Whom a connection belongs to, as TLS proved it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) address: SocketAddr,
    /// Its verified identity, if it showed one.
    pub(crate) id: Option<SpiffeId>,
    /// Why it is told to go: it has more connections than its share.
    pub(crate) over: Option<&'static str>,
    /// The room that its connection has without a certificate.
    pub(crate) stranger: Weak<Stranger>,
}

impl Peer {
    /// Its client has asked for something that it may ask for.
    pub(crate) fn spoke(&self) {
        if let Some(stranger) = self.stranger.upgrade() {
            stranger.spoke();
        }
    }

    /// Refuses whatever comes over a connection that is one too many.
    pub(crate) fn within_its_share(&self) -> Result<(), Status> {
        self.over
            .map_or(Ok(()), |why| Err(Status::resource_exhausted(why)))
    }
}

/// The discovery server. Clones are the same server.
#[derive(Clone, Debug)]
pub(crate) struct Discovery(Arc<Shared>);

struct Shared {
    catalog: Catalog,
    index: Index,
    /// The world that the catalog has.
    worlds: watch::Sender<Arc<World>>,
    proxies: Mutex<BTreeMap<StreamId, Arc<Proxy>>>,
    accounts: Accounts,
    /// For streams that have much to do: half of the cores, so that the others are free for who has little.
    turns: Arc<Semaphore>,
    next_stream: AtomicU64,
    limits: Limits,
    metrics: Metrics,
    reached: Reached,
    slack: Slack,
    /// Lines about streams that end for what came over them, by the code they end with.
    ends_told: Gates<i32>,
    tasks: Tasks,
    /// Cancelled when streams should end.
    ending: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A client with an open stream.
#[derive(Debug)]
struct Proxy {
    pod: ObjectKey,
    kind: ClientKind,
    id: SpiffeId,
    address: SocketAddr,
    build: String,
    since: SystemTime,
    mailbox: Arc<Mailbox>,
    subscriptions: Mutex<Subscriptions>,
}

/// The state of a stream's types, in push order.
#[derive(Debug)]
struct Subscriptions(BTreeMap<ResourceType, Subscription>);

/// What an operator may see of a proxy.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct ProxyStatus {
    pod: String,
    kind: String,
    identity: String,
    address: SocketAddr,
    build: String,
    connected_seconds: u64,
    /// By type: `CDS`, `EDS` ...
    types: BTreeMap<&'static str, subscription::Status>,
}

impl Discovery {
    /// A server of what `store` holds. Streams end when `ending` is cancelled. Also returns the task that follows the
    /// store and gives memory back, to be spawned.
    pub(crate) fn new(
        store: &Store,
        limits: Limits,
        registry: &mut Registry,
        reached: Reached,
        tasks: Tasks,
        ending: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (world, updates) = store.subscribe();
        let metrics = Metrics::register(registry);
        let slack = Slack::default();
        let discovery = Self(Arc::new(Shared {
            catalog: Catalog::new(world.clone(), metrics.clone()),
            index: Index::new(world.mesh().clone()),
            worlds: watch::Sender::new(world.clone()),
            proxies: Mutex::default(),
            accounts: Accounts::new(limits),
            turns: Arc::new(Semaphore::new(turns())),
            next_stream: AtomicU64::new(1),
            limits,
            metrics,
            reached,
            slack: slack.clone(),
            ends_told: Gates::default(),
            tasks,
            ending,
        }));
        let follow = discovery.clone().follow(world, updates);
        let both = async move {
            tokio::join!(follow, slack.give_back());
        };
        (discovery, both)
    }

    /// Replaces the trust bundle (PEM) that `ROOTCA` serves.
    pub(crate) fn set_bundle(&self, pem: &str) {
        if self.0.catalog.set_bundle(pem) {
            self.0
                .index
                .tell_of(ResourceType::Secret, ROOT_CA, Instant::now());
        }
    }

    /// Every connected proxy and what it has acknowledged.
    pub(crate) fn proxies(&self) -> Vec<ProxyStatus> {
        let proxies: Vec<_> = self.0.proxies.lock().values().cloned().collect();
        proxies.iter().map(|proxy| proxy.status()).collect()
    }

    /// Whether streams are being told to go.
    pub(crate) fn is_ending(&self) -> bool {
        self.0.ending.is_cancelled()
    }

    /// The newest world that is being served.
    pub(crate) fn world(&self) -> Arc<World> {
        self.0.catalog.world()
    }

    /// The world that is being served, now and whenever it changes.
    pub(crate) fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.0.worlds.subscribe()
    }

    async fn follow(self, mut before: Arc<World>, mut updates: Updates) {
        while let Some(update) = updates.next().await {
            let at = Instant::now();
            let affected = Affected::between(&before, &update.world, &update.changed);
            self.0.catalog.update(update.world.clone(), &affected);
            self.0.worlds.send_replace(update.world.clone());
            let change = Changed {
                before: &before,
                after: &update.world,
                affected: &affected,
            };
            let told = self.0.index.tell(&change, at);
            self.check_pods(&update.changed);
            report_overruled(&before, &update);
            tracing::debug!(
                changed = update.changed.len(),
                streams = told,
                "the world changed"
            );
            before = update.world;
        }
    }

    /// Tells streams whose pod or node changed to look at who they are.
    fn check_pods(&self, changed: &BTreeSet<crate::store::ObjectRef>) {
        let nodes = changed.iter().any(|object| object.kind == Kind::Node);
        if !nodes && !changed.iter().any(|object| object.kind == Kind::Pod) {
            return;
        }
        for proxy in self.0.proxies.lock().values() {
            let is_its_pod = || {
                changed.contains(&crate::store::ObjectRef {
                    kind: Kind::Pod,
                    key: proxy.pod.clone(),
                })
            };
            if nodes || is_its_pod() {
                proxy.mailbox.pod_changed();
            }
        }
    }

    fn new_stream(&self) -> StreamId {
        StreamId(self.0.next_stream.fetch_add(1, Ordering::Relaxed))
    }
}

/// Streams that may have much to do at a time.
fn turns() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// From one world to the next.
struct Changed<'w> {
    before: &'w World,
    after: &'w World,
    affected: &'w Affected,
}

impl Change for Changed<'_> {
    fn reach(&self, kind: ResourceType) -> Reach {
        self.affected.reach(kind)
    }

    fn touches(&self, kind: ResourceType, subject: &Subject, view: &ProxyView) -> bool {
        self.affected.touches(kind, subject, view)
    }

    fn names(&self, kind: ResourceType, subject: &Subject, view: &ProxyView) -> Vec<Name> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for world in [self.before, self.after] {
            names.extend(translate::names_about(world, view, kind, subject));
        }
        names.into_iter().map(Name::from).collect()
    }
}

/// Says which policies no longer count where they say they do.
fn report_overruled(before: &World, update: &Update) {
    let is_policy = |kind| {
        matches!(
            kind,
            Kind::PeerAuthentication | Kind::IstioPeerAuthentication
        )
    };
    if !update.changed.iter().any(|object| is_policy(object.kind)) {
        return;
    }
    let known = translate::overruled(before);
    for overruled in translate::overruled(&update.world) {
        let is_same = |it: &Overruled| it.policy == overruled.policy && it.by == overruled.by;
        if !known.iter().any(is_same) {
            tracing::warn!(resource.name = %overruled.policy, reason = %overruled, "policy overruled");
        }
    }
}

impl Proxy {
    fn status(&self) -> ProxyStatus {
        let types = self
            .subscriptions
            .lock()
            .0
            .iter()
            .map(|(kind, state)| (kind.short_name(), state.status()))
            .collect();
        ProxyStatus {
            pod: self.pod.to_string(),
            kind: format!("{:?}", self.kind).to_lowercase(),
            identity: self.id.to_string(),
            address: self.address,
            build: self.build.clone(),
            connected_seconds: self.since.elapsed().unwrap_or_default().as_secs(),
            types,
        }
    }
}
