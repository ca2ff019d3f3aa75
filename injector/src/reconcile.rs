//! Pods that run without the sidecar that they should have: made while the webhook was away, or before the label.
//!
//! Looked for now and then, in pages, only among pods without a sidecar, and only where they could want one. The author of
//! each finds an Event at its workload, or at the pod if it has none; an Event has one name an object, so that replicas of
//! the injector write the same one. Nothing is restarted: that is for its author to decide. Of the pods
//! little is kept, for whoever labels namespaces that run has thousands of them.

mod event;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
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
use crate::{InjectorConfig, Namespace};

/// Pods of a page, which are held whole.
const PAGE: u32 = 100;
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

/// What a round has found.
#[derive(Debug, Default)]
struct Found {
    /// Ids of the pods that should have a sidecar; more than one list may have them.
    pods: HashSet<String>,
    /// What an Event is for, by its id.
    objects: HashMap<String, Lacking>,
}

/// An object with pods that should have a sidecar.
#[derive(Debug)]
struct Lacking {
    object: ObjectReference,
    /// The name of one of them.
    pod: String,
    pods: usize,
    /// Why that should have one.
    why: String,
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
        let mut found = Found::default();
        for scope in self.scopes(&namespaces) {
            self.list(&scope, &namespaces, &mut found).await?;
        }
        let count = i64::try_from(found.pods.len()).unwrap_or(i64::MAX);
        self.metrics.uninjected.set(count);
        self.report(found.objects).await;
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
        found: &mut Found,
    ) -> Result<(), Unanswered> {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        loop {
            let page = tokio::time::timeout(LIST, api.list(&params)).await??;
            for pod in page.items {
                if let Some(why) = self.lacks(&pod, namespaces) {
                    found.add(pod.metadata, why);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// Why a pod should have a sidecar, if it runs and should.
    fn lacks(&self, pod: &Pod, namespaces: &HashMap<String, Namespace>) -> Option<String> {
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
        Some(event::why(&now, namespace, &pod.metadata))
    }

    /// Writes an Event for each object that has such pods, unless it has one.
    async fn report(&mut self, objects: HashMap<String, Lacking>) {
        let now = Instant::now();
        self.reported
            .retain(|id, at| objects.contains_key(id) && now.duration_since(*at) < AGAIN);
        let new = objects
            .into_iter()
            .filter(|(id, _)| !self.reported.contains_key(id));
        for (id, mut lacking) in new.take(EVENTS).collect::<Vec<_>>() {
            lacking.object = top(&self.client, lacking.object).await;
            let event = event::not_injected(&lacking);
            match write(&self.client, &event).await {
                Ok(()) => {
                    self.metrics.events.inc();
                    self.reported.insert(id, now);
                    tracing::info!(
                        namespace = event.metadata.namespace,
                        pod = lacking.pod,
                        pods = lacking.pods,
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

impl Found {
    fn add(&mut self, pod: ObjectMeta, why: String) {
        let object = event::object(&pod);
        if !self.pods.insert(pod.uid.unwrap_or_default()) {
            return;
        }
        let Some(object) = object else { return };
        let id = object.uid.clone().unwrap_or_default();
        let lacking = self.objects.entry(id).or_insert_with(|| Lacking {
            object,
            pod: pod.name.unwrap_or_default(),
            pods: 0,
            why,
        });
        lacking.pods += 1;
    }
}

#[cfg(test)]
mod tests;
