//! Where the data path finds its config, and where it asks for what is not there yet.
//!
//! One writer (`xds`) publishes snapshots; any number of workers read them without a lock. A question that the
//! snapshot cannot answer goes to the writer once, and everybody who asked waits for the snapshot that answers it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{mpsc, watch};

use super::{Lookup, OutboundListener, Snapshot, Workload};

/// How long a connection waits for the control plane to say what its destination is.
pub const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Questions that may wait for the writer at a time; more are not asked again until there is room.
const MAX_ASKS: usize = 4096;

/// A question to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// What stands behind an outbound destination?
    Outbound(SocketAddr),
    /// Which workload has this address?
    Workload(IpAddr),
}

/// Whether an answer is in use, so that the writer can drop answers that nobody uses.
#[derive(Debug, Default)]
pub struct Used {
    recently: AtomicBool,
    holders: AtomicU32,
}

/// Keeps an answer in use for as long as it lives.
#[derive(Debug)]
pub struct Hold(Arc<Used>);

impl Used {
    /// The answer is in use now.
    pub fn mark(&self) {
        // Mostly it is set already: reading leaves the cache line shared between workers.
        if !self.recently.load(Ordering::Relaxed) {
            self.recently.store(true, Ordering::Relaxed);
        }
    }

    /// The answer is in use until the guard is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.holders.fetch_add(1, Ordering::Relaxed);
        Hold(self.clone())
    }

    /// Whether it is held, or was marked since the last call.
    #[must_use]
    pub fn take(&self) -> bool {
        self.recently.swap(false, Ordering::Relaxed) || self.holders.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of an outbound destination.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The mesh knows it.
    Known(Arc<OutboundListener>),
    /// The mesh does not know it.
    Unknown,
    /// The control plane did not answer in time.
    Unanswered,
}

/// The reading side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Config {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<u64>,
    asks: mpsc::Sender<Ask>,
}

/// The writing side; there is one.
#[derive(Debug)]
pub struct ConfigWriter {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
    /// Questions of the data path.
    pub asks: mpsc::Receiver<Ask>,
}

impl Config {
    /// A store that starts with the given snapshot, and its writer.
    #[must_use]
    pub fn new(initial: Snapshot) -> (Self, ConfigWriter) {
        let (changed_tx, changed) = watch::channel(initial.generation);
        let (asks, asks_rx) = mpsc::channel(MAX_ASKS);
        let snapshot = Arc::new(ArcSwap::from_pointee(initial));
        let writer = ConfigWriter {
            snapshot: snapshot.clone(),
            changed: changed_tx,
            asks: asks_rx,
        };
        (
            Self {
                snapshot,
                changed,
                asks,
            },
            writer,
        )
    }

    /// The current snapshot. Load it once per request and let it go before awaiting.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Follows the generations of snapshots.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// What stands behind an outbound destination; asks the control plane and waits up to [`DISCOVERY_TIMEOUT`].
    ///
    /// Cheap when the answer is there: call it for every request, which also keeps the answer in use.
    pub async fn resolve(&self, destination: SocketAddr) -> Resolution {
        // An IPv4 connection to an IPv6 socket shows a mapped address; the control plane knows none of these.
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        if let Some(known) = self.outbound(destination) {
            return known;
        }
        // Watch before asking, so that an answer in between is not missed.
        let mut changed = self.changed.clone();
        changed.mark_unchanged();
        // A full queue means that the writer is busy with thousands of others: time out as if unanswered.
        let _ = self.asks.try_send(Ask::Outbound(destination));
        let answered = async {
            loop {
                if let Some(known) = self.outbound(destination) {
                    return known;
                }
                if changed.changed().await.is_err() {
                    return Resolution::Unanswered;
                }
            }
        };
        tokio::time::timeout(DISCOVERY_TIMEOUT, answered)
            .await
            .unwrap_or(Resolution::Unanswered)
    }

    /// The workload that has an address, if that is known now; asks for it in the background if not.
    #[must_use]
    pub fn workload(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let address = address.to_canonical();
        let snapshot = self.load();
        snapshot.mark(Ask::Workload(address));
        match snapshot.workloads.get(&address) {
            Some(Lookup::Known(workload)) => Some(workload.clone()),
            Some(Lookup::Unknown) => None,
            None => {
                let _ = self.asks.try_send(Ask::Workload(address));
                None
            }
        }
    }

    /// Keeps what is known of a destination up to date for as long as the guard lives: for connections that outlast
    /// their last question.
    #[must_use]
    pub fn hold(&self, destination: SocketAddr) -> Option<Hold> {
        self.load()
            .used
            .get(&Ask::Outbound(destination))
            .map(Used::hold)
    }

    fn outbound(&self, destination: SocketAddr) -> Option<Resolution> {
        match self.load().lookup(destination) {
            Some(Lookup::Known(listener)) => Some(Resolution::Known(listener.clone())),
            Some(Lookup::Unknown) => Some(Resolution::Unknown),
            None => None,
        }
    }
}

impl ConfigWriter {
    /// Makes a snapshot the current one; its generation becomes the old one's plus one.
    pub fn publish(&self, mut snapshot: Snapshot) {
        snapshot.generation = self.snapshot.load().generation + 1;
        let generation = snapshot.generation;
        self.snapshot.store(Arc::new(snapshot));
        self.changed.send_replace(generation);
    }

    /// The current snapshot, to build the next one from.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Protocol, listener::RouteSource};
    use super::*;

    fn address() -> SocketAddr {
        "10.0.0.1:80".parse().expect("an address")
    }

    fn listener() -> Arc<OutboundListener> {
        Arc::new(OutboundListener {
            name: "outbound|10.0.0.1|80".into(),
            address: address(),
            protocol: Protocol::Http(RouteSource::Inline(Arc::default())),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn resolve_waits_for_the_answer() {
        let (config, mut writer) = Config::new(Snapshot::default());
        let answer = async {
            assert_eq!(writer.asks.recv().await, Some(Ask::Outbound(address())));
            let mut next = (*writer.current()).clone();
            next.outbound.insert(address(), Lookup::Known(listener()));
            writer.publish(next);
        };
        let (resolution, ()) = tokio::join!(config.resolve(address()), answer);
        assert!(matches!(resolution, Resolution::Known(found) if found.address == address()));
    }

    #[tokio::test(start_paused = true)]
    async fn resolve_reports_an_unknown_destination() {
        let mut snapshot = Snapshot::default();
        snapshot.outbound.insert(address(), Lookup::Unknown);
        let (config, _writer) = Config::new(snapshot);
        assert!(matches!(
            config.resolve(address()).await,
            Resolution::Unknown
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn resolve_gives_up_when_nobody_answers() {
        let (config, _writer) = Config::new(Snapshot::default());
        let started = tokio::time::Instant::now();
        assert!(matches!(
            config.resolve(address()).await,
            Resolution::Unanswered
        ));
        assert_eq!(started.elapsed(), DISCOVERY_TIMEOUT);
    }
}
