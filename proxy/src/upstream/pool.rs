//! The idle and shared connections of one worker.
//!
//! A [`Shelf`] holds the connections of one key. An HTTP/1 connection is either on its shelf or leased; an HTTP/2
//! connection stays on the shelf and counts its streams. A shelf whose endpoint, or SVID, is gone is retired: what
//! comes back to it is closed.

mod limits;
mod shelf;
mod sweep;
mod turns;

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{ConnectError, Lease, Target, UpstreamError, connect, drive};
use crate::balance::{self, Unreachable};
use crate::config::cluster::{
    CircuitBreaker, Discovery, Health, LbPolicy, OutlierDetection, PeerIdentity,
};
use crate::config::{Cluster, Config, Endpoints, Snapshot};
use crate::conn::HttpVersion;
use crate::map::Map;
use crate::net::Reach;
use crate::scout;
use crate::telemetry::Limit;
use crate::worker::Worker;

pub(super) use limits::{ConnectionGuard, Freed};
use limits::{PendingGuard, Starved};
use shelf::Connecting;
pub(super) use shelf::{Http2Connection, Idle, Shelf};
use sweep::{give, tend};

/// Name of the cluster of destinations that the mesh does not know.
const PASSTHROUGH: &str = "passthrough";
/// How long connecting to the app may take: an app whose queue is full answers the kernel's second or third attempt,
/// after 1 and 3 s.
const APP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting to a destination outside the mesh may take.
const PASSTHROUGH_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections of one worker.
#[derive(Debug)]
pub struct Pools {
    inner: Rc<RefCell<Inner>>,
    passthrough: Arc<Cluster>,
    app: Arc<Cluster>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Snapshot that the pools were last compared with.
    generation: u64,
    /// SVID that new connections present.
    svid: u64,
    clusters: Map<Arc<str>, ClusterPool>,
    /// Whether a task looks after idle connections.
    tended: bool,
}

#[derive(Debug)]
struct ClusterPool {
    shelves: Map<Key, Rc<Shelf>>,
    freed: Freed,
    giver: AbortHandle,
}

impl Drop for ClusterPool {
    fn drop(&mut self) {
        self.giver.abort();
    }
}

/// What connections must have in common to be exchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    address: SocketAddr,
    identity: Option<Arc<PeerIdentity>>,
    svid: u64,
    version: HttpVersion,
    reach: Reach,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            inner: Rc::default(),
            passthrough: Arc::new(Cluster {
                connect_timeout: PASSTHROUGH_TIMEOUT,
                limits: CircuitBreaker::NONE,
                ..original_dst(PASSTHROUGH)
            }),
            app: Arc::new(original_dst("app")),
        }
    }
}

/// A cluster for destinations that no config describes.
fn original_dst(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        service: None,
        discovery: Discovery::OriginalDst,
        lb_policy: LbPolicy::default(),
        http: Default::default(),
        connect_timeout: APP_TIMEOUT,
        limits: CircuitBreaker::default(),
        outlier: OutlierDetection::default(),
        endpoints: Endpoints::default(),
        state: Arc::default(),
    }
}

impl Pools {
    /// The cluster of destinations that the mesh does not know. It has no limits: they would be those of all such
    /// destinations together, and one that hangs would take the others along.
    #[must_use]
    pub fn passthrough(&self) -> &Arc<Cluster> {
        &self.passthrough
    }

    /// The cluster of ports of the app that no config describes.
    #[must_use]
    pub fn app(&self) -> &Arc<Cluster> {
        &self.app
    }

    /// Compares the pools with a snapshot, once per snapshot: connections to endpoints that it removed or that drain
    /// are closed as soon as nothing runs on them.
    pub fn sync(&self, snapshot: &Snapshot) {
        self.inner.borrow_mut().sync(snapshot);
    }

    /// A connection for one exchange, pooled or fresh. `careful`: a pooled HTTP/1 connection is probed first, because
    /// the request could not be repeated if its peer has closed it.
    ///
    /// # Errors
    ///
    /// When no connection can be made, or a limit of the cluster is reached.
    pub async fn lease(
        &self,
        worker: &Worker,
        target: &Target,
        version: HttpVersion,
        careful: bool,
    ) -> Result<Lease, UpstreamError> {
        let shelf = self.shelf(worker, target, version);
        if let Some(lease) = shelf.take(careful) {
            return Ok(lease);
        }
        // Boxed: rare, and its state would be carried by every request.
        Box::pin(self.make(worker, target, version, careful, shelf)).await
    }

    async fn make(
        &self,
        worker: &Worker,
        target: &Target,
        version: HttpVersion,
        careful: bool,
        shelf: Rc<Shelf>,
    ) -> Result<Lease, UpstreamError> {
        let _pending = PendingGuard::new(&target.cluster)?;
        let until = Instant::now() + target.cluster.connect_timeout;
        // HTTP/2 makes one at a time anyhow.
        let costly = version == HttpVersion::Http1 && target.identity().is_some();
        let most = worker.settings.bounds.connecting;
        let mut told = false;
        let mut starved: Option<Starved> = None;
        let connection = loop {
            if let Some(lease) = shelf.take(careful) {
                // Whoever was woken for a turn and did not need it leaves it to the next one.
                if !shelf.turns().are_taken(most) {
                    shelf.turns().one();
                }
                return Ok(lease);
            }
            if let Some(connecting) = shelf.connecting() {
                if let Err(error) = connecting.wait().await {
                    return shelf.take(careful).ok_or_else(|| error.into());
                }
                continue;
            }
            if costly && shelf.turns().are_taken(most) {
                if !std::mem::replace(&mut told, true) {
                    let what = "a request waits for its turn to connect";
                    target.reached(&worker.limits, Limit::Connecting, what);
                }
                shelf.turns().wait(until).await?;
                continue;
            }
            let connection = ConnectionGuard::new(&target.cluster);
            if connection.is_none() {
                // A turn is of no use to it: the next one looks, and waits for a connection too.
                shelf.turns().one();
            }
            match (connection, &starved) {
                (Some(connection), _) => break connection,
                (None, None) => {
                    starved = Some(Starved::new(&target.cluster, shelf.freed().clone()));
                }
                (None, Some(waiting)) => {
                    if !self.evict_idle(&target.cluster) {
                        waiting.ask();
                    }
                    waiting.wait().await?;
                }
            }
        };
        drop(starved);
        let turn = costly.then(|| shelf.turns().take());
        let abandoned = Abandoned(Some(target));
        let made = match version {
            HttpVersion::Http1 => self.make_http1(worker, target, &shelf, connection).await,
            HttpVersion::Http2 => self.make_http2(worker, target, &shelf, connection).await,
        };
        abandoned.disarm();
        if let Some(turn) = turn {
            turn.end(made.is_ok());
        }
        report(worker, target, &made);
        self.tend_later(&worker.config);
        // One that is about to be left may still do.
        made.or_else(|error| shelf.take(careful).ok_or_else(|| error.into()))
    }

    async fn make_http1(
        &self,
        worker: &Worker,
        target: &Target,
        shelf: &Rc<Shelf>,
        connection: ConnectionGuard,
    ) -> Result<Lease, ConnectError> {
        let io = connect::connect(worker, target, HttpVersion::Http1).await?;
        let idle = drive::http1(io, connection, &worker.settings.bounds).await?;
        Ok(Shelf::lease_http1(shelf, idle, false))
    }

    async fn make_http2(
        &self,
        worker: &Worker,
        target: &Target,
        shelf: &Rc<Shelf>,
        connection: ConnectionGuard,
    ) -> Result<Lease, ConnectError> {
        let connecting = Connecting::begin(shelf);
        let io = connect::connect(worker, target, HttpVersion::Http2).await;
        let made = match io {
            Ok(io) => drive::http2(io, connection, worker, target).await,
            Err(error) => Err(error),
        };
        connecting.end(made.is_ok());
        Ok(shelf.put_http2(made?))
    }

    fn shelf(&self, worker: &Worker, target: &Target, version: HttpVersion) -> Rc<Shelf> {
        let svid = match target.identity() {
            Some(_) => worker.identity.load().generation(),
            None => 0,
        };
        let mut inner = self.inner.borrow_mut();
        if svid != 0 {
            inner.svid = svid;
        }
        let name = &target.cluster.name;
        let known = inner.clusters.get(name);
        if !known.is_some_and(|pool| pool.freed.is_of(&target.cluster)) {
            let pool = self.open(&target.cluster);
            if let Some(before) = inner.clusters.insert(name.clone(), pool) {
                before.retire();
            }
        }
        let pool = inner
            .clusters
            .get_mut(name)
            .expect("it was put there just now");
        let key = Key {
            address: target.address,
            identity: target.identity().cloned(),
            svid,
            version,
            reach: target.reach,
        };
        let freed = &pool.freed;
        pool.shelves
            .entry(key)
            .or_insert_with(|| Rc::new(Shelf::new(freed.clone())))
            .clone()
    }

    /// A cluster's pool, with nothing in it.
    fn open(&self, cluster: &Cluster) -> ClusterPool {
        let giver = give(
            Rc::downgrade(&self.inner),
            cluster.name.clone(),
            cluster.state.clone(),
        );
        ClusterPool {
            shelves: Map::default(),
            freed: Freed::new(cluster),
            giver: tokio::task::spawn_local(giver).abort_handle(),
        }
    }

    /// Makes room for a connection by closing an idle one of the same cluster, if there is any.
    fn evict_idle(&self, cluster: &Cluster) -> bool {
        let inner = self.inner.borrow();
        let pool = inner.clusters.get(&cluster.name);
        pool.is_some_and(ClusterPool::evict)
    }

    /// Makes sure that idle connections are looked at from now on.
    fn tend_later(&self, config: &Config) {
        if !std::mem::replace(&mut self.inner.borrow_mut().tended, true) {
            tokio::task::spawn_local(tend(Rc::downgrade(&self.inner), config.clone()));
        }
    }

    /// Connections on the shelves, for tests.
    #[cfg(test)]
    pub(crate) fn pooled(&self) -> usize {
        let inner = self.inner.borrow();
        inner
            .clusters
            .values()
            .flat_map(|pool| pool.shelves.values())
            .map(|s| s.len())
            .sum()
    }
}

impl Hash for Key {
    /// The address tells nearly all keys of a cluster apart.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

impl Key {
    /// Whether a cluster still wants connections like these.
    fn is_in(&self, cluster: &Cluster) -> bool {
        if cluster.discovery == Discovery::OriginalDst {
            return true;
        }
        let found = cluster
            .endpoints
            .binary_search_by_key(&self.address, |endpoint| endpoint.address);
        found.is_ok_and(|index| {
            let endpoint = &cluster.endpoints[index];
            endpoint.health != Health::Draining && endpoint.mtls == self.identity
        })
    }
}

/// An attempt to connect. Dropped before it has ended, because the request's time was up, it counts as failed: else an
/// endpoint that swallows everything would never be ejected where requests have less time than connecting. A client
/// that goes away says nothing about the endpoint.
struct Abandoned<'t>(Option<&'t Target>);

impl Abandoned<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(target) = self.0
            && target.ends.is_some_and(|ends| ends <= Instant::now())
        {
            // Whoever drops it may be at the end of all, where nothing can be begun any more.
            if let Some(endpoint) = &target.endpoint {
                let (cluster, now) = (&target.cluster, balance::now_ms());
                balance::report_connect_failure(cluster, endpoint, Unreachable::Failed, now);
            }
        }
    }
}

/// Tells the balancer whether the endpoint could be reached.
fn report(worker: &Worker, target: &Target, made: &Result<Lease, ConnectError>) {
    let Some(endpoint) = &target.endpoint else {
        return;
    };
    match made {
        Ok(_) => balance::report_connect_success(endpoint),
        Err(error) => {
            let late = matches!(error, ConnectError::Timeout);
            let ejected = scout::connect_failed(worker, &target.cluster, endpoint, late);
            tracing::debug!(server.addr = %target.address, cluster = %target.cluster.name, %error, ejected, "connect failed");
        }
    }
}
