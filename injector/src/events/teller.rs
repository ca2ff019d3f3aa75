//! Tells what the webhook has found in a pod of a workload: its author reads no warning of an admission, for a controller made the pod.
//!
//! The webhook leaves complaints and goes on. They are written one by one and not faster than a pace, each once for an owner
//! and a while; what there is no room for is counted, and comes again with the owner's next pod. A complaint may be anybody's, so it
//! says only where to look: the words are made of what the API server has, and what is remembered of it is short.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_runtime::gate::Gate;

use super::evidence::{Proven, is_readable, proven};
use super::{AGAIN, Unanswered, Words, about, write};
use crate::namespaces::Namespaces;
use crate::warning::of_annotations;
use crate::{InjectorConfig, Reviewed, inject_pod};

/// Complaints that wait.
const WAITING: usize = 256;
/// Owners of whom it is remembered what was said.
const REMEMBERED: usize = 4096;
/// Between two Events.
const PACE: Duration = Duration::from_millis(500);
/// Owners of one namespace that are looked at in a minute: it is not to take the turns of all others.
const OF_A_NAMESPACE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
const REASON: &str = "InvalidAnnotation";
const NAME: &str = "tulle-invalid-annotation";

/// What is wrong with a pod of an owner.
#[derive(Clone, Debug)]
pub(crate) struct Complaint {
    pub(crate) owner: ObjectReference,
    /// What the review's own warnings are. It tells complaints apart, and nobody reads it.
    pub(crate) hint: String,
}

impl Complaint {
    /// What there is to tell of a review, if something is to come of it.
    pub(crate) fn of(reviewed: &Reviewed) -> Option<Self> {
        let hint = of_annotations(&reviewed.warnings);
        if reviewed.dry_run || hint.is_empty() {
            return None;
        }
        let owner = reviewed.owner.clone()?;
        Some(Self { owner, hint })
    }
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    written: Counter,
    errors: Counter,
    lost: Counter,
    left_out: Counter,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register(
            "injector_annotation_events",
            "Events written about annotations that have no effect",
            m.written,
        );
        registry.register(
            "injector_annotation_event_errors",
            "Times that such an Event could not be written",
            m.errors,
        );
        registry.register(
            "injector_annotation_events_lost",
            "Such Events that there was no room for; the next pod of the workload brings them again",
            m.lost,
        );
        registry.register(
            "injector_annotation_events_left_out",
            "Such Events at owners of kinds that the injector does not look at",
            m.left_out,
        );
        metrics
    }
}

/// Takes complaints. Clones bring them to the same place.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    complaints: mpsc::Sender<Complaint>,
    metrics: Metrics,
}

impl Teller {
    /// One of whose complaints something becomes while the future runs; that never ends.
    pub(crate) fn new(
        client: Client,
        config: InjectorConfig,
        namespaces: Arc<Namespaces>,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (complaints, received) = mpsc::channel(WAITING);
        let writer = Writer {
            client,
            config,
            namespaces,
            metrics: metrics.clone(),
            seen: Memory::default(),
            told: Memory::default(),
            looks: HashMap::new(),
            failures_told: Gate::default(),
        };
        let teller = Self {
            complaints,
            metrics,
        };
        (teller, writer.run(received))
    }

    pub(crate) fn tell(&self, complaint: Complaint) {
        if !is_readable(&complaint.owner) {
            self.metrics.left_out.inc();
        } else if self.complaints.try_send(complaint).is_err() {
            self.metrics.lost.inc();
        }
    }
}

/// What was said of whom, and when.
#[derive(Default)]
struct Memory(HashMap<String, (String, Instant)>);

impl Memory {
    fn has(&self, of: &str, words: &str) -> bool {
        let known = self.0.get(of);
        known.is_some_and(|(said, at)| said == words && at.elapsed() < AGAIN)
    }

    fn keep(&mut self, of: String, words: String) {
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, (_, at)| at.elapsed() < AGAIN);
        }
        if self.0.len() >= REMEMBERED {
            // Then they are told more often than they need be.
            self.0.clear();
        }
        self.0.insert(of, (words, Instant::now()));
    }
}

/// Writes them.
struct Writer {
    client: Client,
    config: InjectorConfig,
    namespaces: Arc<Namespaces>,
    metrics: Metrics,
    /// Hints that were followed, by all that a review says of the owner: a false name is not to hide a true one.
    seen: Memory,
    /// Words that were written, by the id of their object.
    told: Memory,
    /// How many owners of a namespace were looked at since when.
    looks: HashMap<String, (u32, Instant)>,
    failures_told: Gate,
}

impl Writer {
    async fn run(mut self, mut complaints: mpsc::Receiver<Complaint>) {
        while let Some(complaint) = complaints.recv().await {
            let Complaint { owner, hint } = complaint;
            let key = key(&owner);
            if self.seen.has(&key, &hint) {
                continue;
            }
            let namespace = owner.namespace.clone().unwrap_or_default();
            // One that is not known here is made up, or so new that its next pod brings this again.
            if self.namespaces.known(&namespace).is_none() || !self.may_look(&namespace) {
                self.metrics.lost.inc();
                continue;
            }
            match self.write(&owner, &namespace).await {
                Ok(()) => self.seen.keep(key, hint),
                Err(error) => self.failed(&error, &owner),
            }
            tokio::time::sleep(PACE).await;
        }
        std::future::pending().await
    }

    fn may_look(&mut self, namespace: &str) -> bool {
        self.looks.retain(|_, (_, since)| since.elapsed() < MINUTE);
        let begun = || (0, Instant::now());
        let (looks, _) = self.looks.entry(namespace.to_owned()).or_insert_with(begun);
        *looks += 1;
        *looks <= OF_A_NAMESPACE
    }

    async fn write(&mut self, owner: &ObjectReference, namespace: &str) -> Result<(), Unanswered> {
        let Some(Proven { about: object, pod }) = proven(&self.client, owner).await? else {
            let (kind, name) = (owner.kind.as_deref(), owner.name.as_deref());
            tracing::debug!(namespace, kind, name, "no such owner as a review names");
            return Ok(());
        };
        let known = self.namespaces.known(namespace).unwrap_or_default();
        // What is refused or stays as it is has no warnings.
        let outcome = inject_pod(&pod, &known, &self.config);
        let words = outcome.map_or_else(|_| String::new(), |it| of_annotations(&it.warnings));
        let uid = object.uid.clone().unwrap_or_default();
        if words.is_empty() || self.told.has(&uid, &words) {
            return Ok(());
        }
        let event = about(
            object,
            Words {
                reason: REASON,
                name: NAME,
                message: &words,
            },
        );
        write(&self.client, &event).await?;
        self.metrics.written.inc();
        self.told.keep(uid, words);
        Ok(())
    }

    fn failed(&self, error: &Unanswered, owner: &ObjectReference) {
        self.metrics.errors.inc();
        if let Some(left_out) = self.failures_told.pass() {
            let error = tulle_runtime::causes::chain(error);
            let (namespace, name) = (owner.namespace.as_deref(), owner.name.as_deref());
            tracing::warn!(
                error,
                namespace,
                name,
                left_out,
                "cannot tell of a workload's annotations"
            );
        }
    }
}

/// All that a review says of an owner.
fn key(owner: &ObjectReference) -> String {
    let said = [&owner.kind, &owner.namespace, &owner.name, &owner.uid];
    let said = said.map(|it| it.as_deref().unwrap_or_default());
    said.join("/")
}

#[cfg(test)]
mod tests;
