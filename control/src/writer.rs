//! What the elected replica keeps true in the cluster: the trust bundle, wherever somebody needs it.
//!
//! That is ConfigMap `tulle-ca-root` in our own and every meshed namespace, and `caBundle` of our webhook configurations. What
//! is there is watched, and what is not as it should be is written ([`places`] knows which), so that
//! others' fields stay theirs ([`apply`] says how). The bundle has arrived when nothing is left to write that all wait for
//! ([`Places::holds_up`] has the rule); a rotation waits for that, and for nothing else.

mod apply;
mod event;
mod listed;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PartialObjectMeta;
use kube::{Api, Client};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;
use tulle_runtime::gate::Gate;
use tulle_runtime::names;

use crate::ca::BundleSink;
use crate::election::Leadership;
use crate::platform::{self, watch_config};
use crate::store::{Kind, World};
use apply::{Applied, apply};
use places::{Digest, Place, Places, digest_of};

/// Writes at a time.
const AT_ONCE: usize = 16;
/// How long a bundle may take to arrive before its rotation says that it waits.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Longest time between two looks at what there is to write.
const LOOK: Duration = Duration::from_secs(1);
/// So many places that cannot be written are named; more are counted.
const NAMED: usize = 100;

/// A bundle to be written, by the replica that was elected for a term.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    term: u64,
    pem: Arc<str>,
}

/// How far the writer has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// What has arrived everywhere.
    arrived: Option<Wanted>,
    /// Why the rest has not.
    problem: Option<String>,
    /// The places that cannot be written, and why.
    refused: Vec<String>,
}

/// What each namespace has.
type Held = Arc<Mutex<BTreeMap<Arc<str>, Digest>>>;

/// Hands the bundle to the writer, and waits until it has arrived.
#[derive(Debug)]
pub(crate) struct ClusterSink {
    leadership: Leadership,
    wanted: watch::Sender<Option<Wanted>>,
    progress: watch::Receiver<Progress>,
    held: Held,
}

impl ClusterSink {
    async fn hand_over(&self, pem: &str) -> io::Result<()> {
        let Some(term) = self.leadership.term() else {
            return Err(io::Error::other("this replica is not elected any more"));
        };
        let wanted = Wanted {
            term,
            pem: pem.into(),
        };
        self.wanted.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&wanted);
            if differs {
                *known = Some(wanted.clone());
            }
            differs
        });
        let mut progress = self.progress.clone();
        let arrived = progress.wait_for(|it| it.arrived.as_ref() == Some(&wanted));
        if let Ok(Ok(_)) = tokio::time::timeout(ARRIVAL, arrived).await {
            return Ok(());
        }
        let problem = self.progress.borrow().problem.clone();
        let problem =
            problem.unwrap_or_else(|| "the API server has not said what there is".to_owned());
        Err(io::Error::other(problem))
    }
}

impl BundleSink for ClusterSink {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.hand_over(pem))
    }

    fn lacks(&self, namespace: &str, pem: &str) -> bool {
        let held = self.held.lock().get(namespace).copied();
        held.is_some_and(|held| held != digest_of(pem.as_bytes()))
    }

    fn refused(&self) -> Vec<String> {
        self.progress.borrow().refused.clone()
    }
}

/// Keeps the bundle true wherever it belongs.
pub(crate) struct Writer {
    client: Client,
    leadership: Leadership,
    wanted: watch::Receiver<Option<Wanted>>,
    progress: watch::Sender<Progress>,
    worlds: watch::Receiver<Arc<World>>,
    /// The pods that were looked at last.
    pods: u64,
    places: Places,
    held: Held,
    /// What was wanted at the last look.
    begun: Option<Wanted>,
    /// Who is left behind.
    behind: BTreeSet<Place>,
    metrics: Metrics,
    told: Gate,
}

/// Counters of the writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    writes: Family<WriteLabels, Counter>,
    missing: Gauge,
    refused: Family<PlaceLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    place: String,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "control_writes",
            "Objects that this replica has written for the cluster, by kind and result",
            metrics.writes.clone(),
        );
        registry.register(
            "control_bundles_missing",
            "Places where the trust bundle is not as this replica would have it",
            metrics.missing.clone(),
        );
        registry.register(
            "control_bundles_refused",
            "Places where the trust bundle could not be written (1), or which a rotation does not wait for any more (2)",
            metrics.refused.clone(),
        );
        metrics
    }

    fn wrote(&self, place: &Place, result: &'static str) {
        let kind = place.kind();
        self.writes
            .get_or_create(&WriteLabels { kind, result })
            .inc();
    }
}

impl Writer {
    /// A writer, and where it is told what to write.
    pub(crate) fn new(
        client: Client,
        leadership: Leadership,
        worlds: watch::Receiver<Arc<World>>,
        metrics: Metrics,
    ) -> (Self, ClusterSink) {
        let (sender, wanted) = watch::channel(None);
        let (progress, seen) = watch::channel(Progress::default());
        let sink = ClusterSink {
            leadership: leadership.clone(),
            wanted: sender,
            progress: seen,
            held: Held::default(),
        };
        let writer = Self {
            client,
            leadership,
            wanted,
            progress,
            worlds,
            pods: u64::MAX,
            places: Places::default(),
            held: sink.held.clone(),
            begun: None,
            behind: BTreeSet::new(),
            metrics,
            told: Gate::default(),
        };
        (writer, sink)
    }

    /// Watches, and writes while this replica is the elected one, for ever.
    pub(crate) async fn run(mut self) {
        let client = &self.client;
        let one = format!("metadata.name={}", names::CA_CONFIG_MAP);
        let ours = format!(
            "{}={}",
            names::labels::PART_OF,
            names::labels::PART_OF_TULLE
        );
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let namespaces = platform::watch(namespaces, watch_config(), "namespaces");
        let mut namespaces = std::pin::pin!(namespaces);
        let bundles: Api<ConfigMap> = Api::all(client.clone());
        let bundles = platform::watch(bundles, watch_config().fields(&one), "trust bundles");
        let mut bundles = std::pin::pin!(bundles);
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let webhooks = platform::watch(webhooks, watch_config().labels(&ours), "webhooks");
        let mut webhooks = std::pin::pin!(webhooks);
        let mut writes = FuturesUnordered::new();
        loop {
            self.look_at_pods();
            let pause = self.begin(&writes);
            let term = self.leadership.term();
            tokio::select! {
                // Whatever comes is taken in; the order does not matter.
                Some(event) = namespaces.next() => self.places.namespace(event),
                Some(event) = bundles.next() => {
                    self.places.bundle(event);
                    *self.held.lock() = self.places.held();
                }
                Some(event) = webhooks.next() => self.places.webhooks(event),
                Some((place, wanted, applied)) = writes.next() => self.wrote(place, &wanted, applied),
                Ok(()) = self.wanted.changed() => {}
                () = self.leadership.other_than(term) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Sees which namespaces have pods of the mesh.
    fn look_at_pods(&mut self) {
        let world = self.worlds.borrow_and_update().clone();
        let generation = world.generation(Kind::Pod);
        if self.pods != generation {
            self.pods = generation;
            let proxied = world.pods().filter(|pod| pod.proxied);
            self.places
                .proxied(proxied.map(|pod| pod.key.namespace.clone()).collect());
        }
    }

    /// Begins what there is to write, and says how long until there may be more.
    fn begin(&mut self, writes: &FuturesUnordered<Write>) -> Duration {
        let wanted = self.wanted.borrow_and_update().clone();
        let term = self.leadership.term();
        let wanted = wanted.filter(|wanted| Some(wanted.term) == term);
        if self.begun != wanted {
            self.places.begin();
            self.begun.clone_from(&wanted);
        }
        let Some(wanted) = wanted else {
            self.metrics.missing.set(0);
            self.metrics.refused.clear();
            self.behind.clear();
            return LOOK;
        };
        let now = Instant::now();
        let missing = self.places.missing(&wanted.pem);
        self.metrics.missing.set(
            missing
                .as_ref()
                .map_or(0, |it| i64::try_from(it.len()).unwrap_or(i64::MAX)),
        );
        let Some(missing) = missing else {
            return LOOK;
        };
        let mut pause = LOOK;
        for place in &missing {
            match self.places.may_write(place, now) {
                Some(due) if due > now => pause = pause.min(due - now),
                Some(_) if writes.len() < AT_ONCE => {
                    self.places.writing(place);
                    let tells = self.places.tells(place, now);
                    writes.push(self.write(place, &wanted, tells));
                }
                _ => {}
            }
        }
        self.report(&wanted, &missing, now);
        pause
    }

    /// Tells those who wait how far it is, and everybody who is not waited for.
    fn report(&mut self, wanted: &Wanted, missing: &[Place], now: Instant) {
        let why = |place: &Place| Some(format!("{place}: {}", self.places.problem(place)?));
        let holds_up = |place: &&Place| self.places.holds_up(place, now);
        let problem = missing
            .iter()
            .find(holds_up)
            .map(|place| why(place).unwrap_or_else(|| format!("{place}: it is being written")));
        let arrived = problem.is_none().then(|| wanted.clone());
        let refused: Vec<_> = missing.iter().filter_map(why).take(NAMED).collect();
        let behind = missing.iter().filter(|place| !holds_up(place));
        let behind: BTreeSet<_> = behind.cloned().collect();
        for place in behind.difference(&self.behind).take(NAMED) {
            let error = self.places.problem(place);
            tracing::error!(%place, error, "the trust bundle cannot be written there, and nothing waits for it any more");
        }
        self.behind = behind;
        self.measure(missing);
        self.progress.send_if_modified(|known| {
            let differs =
                known.arrived != arrived || known.problem != problem || known.refused != refused;
            if differs {
                *known = Progress {
                    arrived,
                    problem,
                    refused,
                };
            }
            differs
        });
    }

    fn measure(&self, missing: &[Place]) {
        let refused = &self.metrics.refused;
        refused.clear();
        let failed = |place: &&Place| self.places.problem(place).is_some();
        for place in missing.iter().filter(failed).take(NAMED) {
            let labels = PlaceLabels {
                place: place.to_string(),
            };
            let value = if self.behind.contains(place) { 2 } else { 1 };
            refused.get_or_create(&labels).set(value);
        }
    }

    fn write(&self, place: &Place, wanted: &Wanted, tells: bool) -> Write {
        let (client, leadership) = (self.client.clone(), self.leadership.clone());
        let names = self.places.webhook_names(place);
        let (place, wanted) = (place.clone(), wanted.clone());
        Box::pin(async move {
            let applied = apply(&client, &leadership, &place, names, &wanted.pem).await;
            if let (true, Applied::Failed { error, .. }) = (tells, &applied) {
                event::tell(&client, &leadership, &place, error).await;
            }
            (place, wanted, applied)
        })
    }

    fn wrote(&mut self, place: Place, wanted: &Wanted, applied: Applied) {
        match applied {
            Applied::Done => {
                self.metrics.wrote(&place, "done");
                tracing::info!(%place, "trust bundle written");
                self.places.wrote(place, &wanted.pem);
                *self.held.lock() = self.places.held();
            }
            Applied::Gone => self.places.gone(place),
            Applied::Failed { error, forbidden } => {
                self.metrics.wrote(&place, "failed");
                let (text, now) = (error.clone(), Instant::now());
                let first = self.places.failed(&place, text, forbidden, now);
                let told = self.told.pass();
                if first || told.is_some() {
                    tracing::warn!(%place, error, left_out = told, "trust bundle not written; will be tried again");
                }
            }
        }
    }
}

type Write = BoxFuture<'static, (Place, Wanted, Applied)>;

#[cfg(test)]
mod tests;
