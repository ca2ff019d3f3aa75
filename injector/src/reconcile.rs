//! Pods that run without the sidecar that they should have: made while the webhook was away, or before the label.
//!
//! Looked for now and then, in pages, only among pods without a sidecar, and only where they could want one. The author of
//! each finds an Event at its workload, or at the pod if it has none; an Event has one name an object, so that replicas of
//! the injector write the same one. Nothing is restarted: that is for its author to decide.

mod event;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tulle_runtime::gate::Gate;
use tulle_runtime::names::labels;

use crate::decide::{Decision, decide};
use crate::events::{AGAIN, Unanswered, top, write};
use crate::namespaces::Namespaces;
use crate::{InjectError, InjectReason, InjectorConfig, Namespace};

/// Pods of a page.
const PAGE: u32 = 500;
/// How long the API server may take for one.
const LIST: Duration = Duration::from_secs(10);
/// Of more namespaces than so many, all pods of the cluster are listed at once.
const NAMESPACES: usize = 32;
/// Events that are written in a round; the others have their turn in the next.
const EVENTS: usize = 20;

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    uninjected: Gauge,
    events: Counter,
    errors: Counter,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register(
            "injector_uninjected_pods",
            "Pods that run without the sidecar that they should have",
            m.uninjected,
        );
        registry.register(
            "injector_uninjected_events",
            "Events written about such pods",
            m.events,
        );
        registry.register(
            "injector_reconcile_errors",
            "Times that such pods could not be looked for or told of",
            m.errors,
        );
        metrics
    }
}

/// Looks for such pods.
pub(crate) struct Reconciler {
    client: Client,
    namespaces: Arc<Namespaces>,
    config: InjectorConfig,
    metrics: Metrics,
    /// When an Event was written, by the id of its object.
    reported: HashMap<String, Instant>,
    failures_told: Gate,
}

/// A pod that should have a sidecar.
struct Found {
    pod: Pod,
    why: Why,
}

/// What is known of the want of it.
struct Why {
    /// The decision that would be made now, or why none could be.
    now: Result<InjectReason, InjectError>,
    /// Labels of its namespace that decide.
    namespace: BTreeMap<String, String>,
}

/// Where pods are listed: in a namespace, or in all; and which of them.
type Scope = (Option<String>, String);

impl Reconciler {
    pub(crate) fn new(
        client: Client,
        namespaces: Arc<Namespaces>,
        config: InjectorConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            namespaces,
            config,
            metrics,
            reported: HashMap::new(),
            failures_told: Gate::default(),
        }
    }

    /// Looks again and again. Never ends.
    pub(crate) async fn run(mut self, every: Duration) {
        loop {
            // Replicas that began together do not look together.
            tokio::time::sleep(every.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
            if let Err(error) = self.round().await {
                self.failed(&error, "cannot look for pods without a sidecar");
            }
        }
    }

    async fn round(&mut self) -> Result<(), Unanswered> {
        // Until all namespaces are known nobody can say who wants a sidecar.
        let Some(namespaces) = self.namespaces.all() else {
            return Ok(());
        };
        let namespaces: HashMap<_, _> = namespaces
            .into_iter()
            .map(|namespace| (namespace.name.clone(), namespace))
            .collect();
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for scope in self.scopes(&namespaces) {
            self.list(&scope, &namespaces, &mut seen, &mut found)
                .await?;
        }
        let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
        self.metrics.uninjected.set(count);
        self.report(&found).await;
        Ok(())
    }

    /// Where there can be pods that want a sidecar of this revision and have none.
    fn scopes(&self, namespaces: &HashMap<String, Namespace>) -> Vec<Scope> {
        let bare = format!("!{}", labels::PROXIED);
        let wanting = namespaces.values().filter(|namespace| {
            let labels = &namespace.labels;
            labels.contains_key(labels::INJECT) || labels.contains_key(labels::REVISION)
        });
        let wanting: Vec<_> = wanting.map(|namespace| namespace.name.clone()).collect();
        if !self.config.always.is_empty() || wanting.len() > NAMESPACES {
            return vec![(None, bare)];
        }
        let revision = &self.config.revision;
        let asking = [
            format!("{bare},{}=enabled", labels::INJECT),
            format!("{bare},{}={revision}", labels::REVISION),
        ];
        let own = asking.into_iter().map(|selector| (None, selector));
        let all = wanting.into_iter().map(|name| (Some(name), bare.clone()));
        own.chain(all).collect()
    }

    async fn list(
        &self,
        (namespace, selector): &Scope,
        namespaces: &HashMap<String, Namespace>,
        seen: &mut HashSet<String>,
        found: &mut Vec<Found>,
    ) -> Result<(), Unanswered> {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        loop {
            let page = tokio::time::timeout(LIST, api.list(&params)).await??;
            for pod in page.items {
                let id = pod.metadata.uid.clone().unwrap_or_default();
                if let Some(why) = self.lacks(&pod, namespaces)
                    && seen.insert(id)
                {
                    found.push(Found { pod, why });
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// Why a pod should have a sidecar, if it runs and should.
    fn lacks(&self, pod: &Pod, namespaces: &HashMap<String, Namespace>) -> Option<Why> {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed"))
            || pod.metadata.deletion_timestamp.is_some()
        {
            return None;
        }
        let namespace = namespaces.get(pod.metadata.namespace.as_deref()?)?;
        let now = match decide(&pod.metadata, pod.spec.as_ref()?, namespace, &self.config) {
            Ok(Decision::Inject(reason)) => Ok(reason),
            Ok(Decision::Skip(_)) => return None,
            // It would have been kept out.
            Err(error) => Err(error),
        };
        let namespace = namespace.labels.clone();
        Some(Why { now, namespace })
    }

    /// Writes an Event for each object that has such pods, unless it has one.
    async fn report(&mut self, found: &[Found]) {
        let now = Instant::now();
        let mut objects = HashMap::new();
        for Found { pod, why } in found {
            if let Some(object) = event::object(pod) {
                let id = object.uid.clone().unwrap_or_default();
                objects.entry(id).or_insert((object, pod, why, 0_usize)).3 += 1;
            }
        }
        self.reported
            .retain(|id, at| objects.contains_key(id) && now.duration_since(*at) < AGAIN);
        let new = objects
            .into_iter()
            .filter(|(id, _)| !self.reported.contains_key(id));
        for (id, (object, pod, why, pods)) in new.take(EVENTS).collect::<Vec<_>>() {
            let object = top(&self.client, object).await;
            let event = event::not_injected(object, pod, why, pods);
            match write(&self.client, &event).await {
                Ok(()) => {
                    self.metrics.events.inc();
                    self.reported.insert(id, now);
                    tracing::info!(
                        namespace = pod.metadata.namespace,
                        pod = pod.metadata.name,
                        pods,
                        why = event.message,
                        "a pod runs without its sidecar"
                    );
                }
                Err(error) => self.failed(&error, "cannot tell of a pod without a sidecar"),
            }
        }
    }

    fn failed(&self, error: &Unanswered, what: &str) {
        self.metrics.errors.inc();
        if let Some(left_out) = self.failures_told.pass() {
            tracing::warn!(
                error = tulle_runtime::causes::chain(error),
                left_out,
                "{what}"
            );
        }
    }
}

#[cfg(test)]
mod tests;
