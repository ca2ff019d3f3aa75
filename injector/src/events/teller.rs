//! Tells what the webhook has found in a pod of a workload: its author reads no warning of an admission, for a controller made the pod.
//!
//! The webhook leaves complaints and goes on. They are written one by one and not faster than a pace, each once for an owner
//! and a while; what there is no room for is counted, and comes again with the owner's next pod.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_runtime::gate::Gate;

use super::evidence::proven;
use super::{AGAIN, Evidence, Unanswered, Words, about, write};

/// Complaints that wait.
const WAITING: usize = 256;
/// Owners of whom it is remembered what was said.
const REMEMBERED: usize = 4096;
/// Between two Events.
const PACE: Duration = Duration::from_millis(500);
const REASON: &str = "InvalidAnnotation";
const NAME: &str = "tulle-invalid-annotation";

/// What is wrong with a pod of an owner.
#[derive(Clone, Debug)]
pub(crate) struct Complaint {
    pub(crate) owner: ObjectReference,
    /// Namespace and name of the pod, or how that begins.
    pub(crate) pod: String,
    pub(crate) words: String,
    /// What they are made of.
    pub(crate) evidence: Evidence,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    written: Counter,
    errors: Counter,
    lost: Counter,
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
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (complaints, received) = mpsc::channel(WAITING);
        let writer = Writer {
            client,
            metrics: metrics.clone(),
            told: HashMap::new(),
            failures_told: Gate::default(),
        };
        let teller = Self {
            complaints,
            metrics,
        };
        (teller, writer.run(received))
    }

    pub(crate) fn tell(&self, complaint: Complaint) {
        if self.complaints.try_send(complaint).is_err() {
            self.metrics.lost.inc();
        }
    }
}

/// Writes them.
struct Writer {
    client: Client,
    metrics: Metrics,
    /// What was said of an owner, by its id, and when.
    told: HashMap<String, (String, Instant)>,
    failures_told: Gate,
}

impl Writer {
    async fn run(mut self, mut complaints: mpsc::Receiver<Complaint>) {
        while let Some(complaint) = complaints.recv().await {
            if !self.is_told(&complaint.owner, &complaint.words) {
                self.write(complaint).await;
                tokio::time::sleep(PACE).await;
            }
        }
        std::future::pending().await
    }

    fn is_told(&self, object: &ObjectReference, words: &str) -> bool {
        let known = object.uid.as_deref().and_then(|uid| self.told.get(uid));
        known.is_some_and(|(said, at)| said == words && at.elapsed() < AGAIN)
    }

    async fn write(&mut self, complaint: Complaint) {
        let Complaint {
            owner,
            pod,
            words,
            evidence,
        } = complaint;
        let object = match proven(&self.client, &owner, &evidence, &words).await {
            Ok(Some(object)) => object,
            Ok(None) => {
                let (kind, name) = (owner.kind.as_deref(), owner.name.as_deref());
                tracing::debug!(
                    pod,
                    kind,
                    name,
                    "no owner has such pods as the API server knows it"
                );
                return self.remember(owner.uid, words);
            }
            Err(error) => return self.failed(&error, &pod),
        };
        if self.is_told(&object, &words) {
            // By a pod of another owner: each Job of a CronJob is one.
            return self.remember(owner.uid, words);
        }
        let message = format!("pod {pod}: {words}");
        let of_object = object.uid.clone();
        let event = about(
            object,
            Words {
                reason: REASON,
                name: NAME,
                message: &message,
            },
        );
        match write(&self.client, &event).await {
            Ok(()) => {
                self.metrics.written.inc();
                self.remember(of_object, words.clone());
                self.remember(owner.uid, words);
            }
            Err(error) => self.failed(&error, &pod),
        }
    }

    fn failed(&self, error: &Unanswered, pod: &str) {
        self.metrics.errors.inc();
        if let Some(left_out) = self.failures_told.pass() {
            let error = tulle_runtime::causes::chain(error);
            tracing::warn!(error, pod, left_out, "cannot tell of a pod's annotations");
        }
    }

    fn remember(&mut self, uid: Option<String>, words: String) {
        let now = Instant::now();
        if self.told.len() >= REMEMBERED {
            self.told
                .retain(|_, (_, at)| now.duration_since(*at) < AGAIN);
        }
        if self.told.len() >= REMEMBERED {
            // Then they are told more often than they need be.
            self.told.clear();
        }
        self.told.extend(uid.map(|uid| (uid, (words, now))));
    }
}

#[cfg(test)]
mod tests;
