//! What is known of namespaces: the labels that decide about their pods, by a watch and, for one that is new, by asking.
//!
//! An outage of the API server, and a list that begins anew, leave what is known as it is until something newer is known.

mod beat;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tulle_runtime::gate::Gate;
use tulle_runtime::names::labels;

use crate::Namespace;
use crate::decide::POD_SECURITY_LABEL;

pub(crate) use beat::beat;
pub(crate) use watch::follow;

/// How long the API server may take to say what a namespace is.
const ASK: Duration = Duration::from_secs(1);
/// Namespaces that are asked for at a time.
const ASKED: usize = 16;
/// The labels that decide.
const LABELS: [&str; 3] = [labels::INJECT, labels::REVISION, POD_SECURITY_LABEL];

type Labels = Arc<BTreeMap<String, String>>;

/// What is known.
#[derive(Debug)]
pub(crate) struct Namespaces {
    known: RwLock<HashMap<String, Labels>>,
    synced: AtomicBool,
    /// Absent in tests of what needs no API server.
    metadata: Option<Api<PartialObjectMeta<core::Namespace>>>,
    asking: Semaphore,
    metrics: Metrics,
    failures_told: Gate,
}

/// What the API server says of a namespace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// What it is.
    Found(Namespace),
    /// That there is none; or nobody is there to be asked.
    Absent,
    /// Nothing in time.
    Unanswered,
}

/// What is counted of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    known: Gauge,
    watch_errors: Counter,
    stale: Gauge,
    asked: Counter,
    ask_errors: Counter,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register("injector_namespaces", "Namespaces known", m.known);
        registry.register(
            "injector_namespace_watch_errors",
            "Times that the watch of namespaces was interrupted",
            m.watch_errors,
        );
        registry.register(
            "injector_namespaces_stale",
            "1 while the API server has not let namespaces be listed for a minute",
            m.stale,
        );
        registry.register(
            "injector_namespaces_asked",
            "Namespaces that the API server was asked for because the watch had not told of them",
            m.asked,
        );
        registry.register(
            "injector_namespace_ask_errors",
            "Such questions that it did not answer",
            m.ask_errors,
        );
        metrics
    }
}

impl Namespaces {
    pub(crate) fn new(client: Option<Client>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            known: RwLock::default(),
            synced: AtomicBool::new(false),
            metadata: client.map(Api::all),
            asking: Semaphore::new(ASKED),
            metrics,
            failures_told: Gate::default(),
        })
    }

    /// What the watch has told of a namespace.
    pub(crate) fn known(&self, name: &str) -> Option<Namespace> {
        let labels = self.known.read().get(name)?.clone();
        Some(Namespace {
            name: name.to_owned(),
            labels: BTreeMap::clone(&labels),
        })
    }

    /// All that the watch has told, once it has told of all.
    pub(crate) fn all(&self) -> Option<Vec<Namespace>> {
        if !self.synced.load(Relaxed) {
            return None;
        }
        let known = self.known.read();
        let all = known.iter().map(|(name, labels)| Namespace {
            name: name.clone(),
            labels: BTreeMap::clone(labels),
        });
        Some(all.collect())
    }

    /// Asks the API server, once. Nothing is kept of the answer: the watch will tell.
    pub(crate) async fn ask(&self, name: &str) -> Asked {
        let Some(api) = &self.metadata else {
            return Asked::Absent;
        };
        let asking = async {
            let _turn = self.asking.acquire().await;
            self.metrics.asked.inc();
            api.get_opt(name).await
        };
        let failed = |error: &dyn std::fmt::Display| {
            self.metrics.ask_errors.inc();
            if let Some(left_out) = self.failures_told.pass() {
                tracing::warn!(namespace = name, %error, left_out, "the API server did not say what the namespace is");
            }
        };
        match tokio::time::timeout(ASK, asking).await {
            Ok(Ok(Some(found))) => Asked::Found(Namespace {
                name: name.to_owned(),
                labels: BTreeMap::clone(&telling(&found.metadata)),
            }),
            Ok(Ok(None)) => Asked::Absent,
            Ok(Err(error)) => {
                failed(&error);
                Asked::Unanswered
            }
            Err(late) => {
                failed(&late);
                Asked::Unanswered
            }
        }
    }

    fn put(&self, meta: &ObjectMeta) {
        let Some(name) = &meta.name else { return };
        let mut known = self.known.write();
        known.insert(name.clone(), telling(meta));
        self.count(known.len());
    }

    fn remove(&self, meta: &ObjectMeta) {
        let Some(name) = &meta.name else { return };
        let mut known = self.known.write();
        known.remove(name);
        self.count(known.len());
    }

    /// These are all that there are.
    fn replace(&self, all: HashMap<String, Labels>) {
        self.count(all.len());
        *self.known.write() = all;
        self.synced.store(true, Relaxed);
    }

    /// As if a watch had told of these.
    #[cfg(test)]
    pub(crate) fn learn(&self, all: impl IntoIterator<Item = Namespace>) {
        let all = all.into_iter();
        self.replace(all.map(|it| (it.name, Arc::new(it.labels))).collect());
    }

    fn count(&self, known: usize) {
        self.metrics
            .known
            .set(i64::try_from(known).unwrap_or(i64::MAX));
    }
}

/// The labels of a namespace that decide.
fn telling(meta: &ObjectMeta) -> Labels {
    let labels = meta.labels.iter().flatten();
    let telling = labels.filter(|(name, _)| LABELS.contains(&name.as_str()));
    Arc::new(
        telling
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests;
