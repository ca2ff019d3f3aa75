//! Stores versions that count and are not stored, and deletes those that nobody needs.
//!
//! The elected replica does. One that has seen what the elected one has not, because that began later, stores it, too, once: there
//! is one name for a version and one content, so that it does not matter who does. Only the elected one deletes, and not
//! at once: watches of different kinds are not in step, and an author corrects an edit by another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::{Api, Client};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::gate::Gate;

use super::{Revision, Snapshots, Task};
use crate::api::ConfigSnapshot;
use crate::election::Leadership;
use crate::platform::{ApiError, CALL, FIELD_MANAGER, within};
use crate::store::ObjectKey;

/// How long a version is missing before a replica stores it that is not elected.
const GRACE: Duration = Duration::from_secs(5);
/// How long one is needless before it is deleted.
const NEEDLESS: Duration = Duration::from_secs(5);
/// Writes at a time.
const AT_ONCE: usize = 8;
/// How soon the watch tells of a write, at the latest.
const HEARD: Duration = Duration::from_secs(5);
/// Pauses between writes of one version.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Counters of the writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    writes: Family<WriteLabels, Counter>,
    missing: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    what: &'static str,
    result: &'static str,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "control_snapshots",
            "Good versions of objects that cannot be used, stored and deleted by this replica, by result",
            metrics.writes.clone(),
        );
        registry.register(
            "control_snapshots_missing",
            "Good versions of objects that cannot be used that are not stored, so that they end with this replica",
            metrics.missing.clone(),
        );
        metrics
    }
}

/// Writes what is stored.
pub(crate) struct SnapshotWriter {
    client: Client,
    leadership: Leadership,
    snapshots: Snapshots,
    attempts: BTreeMap<ObjectKey, Attempt>,
    metrics: Metrics,
    told: Gate,
}

/// What was done for a version.
struct Attempt {
    /// To be stored; or else deleted.
    store: bool,
    again: Instant,
    pauses: Backoff,
    /// Whether it was written, by this replica or another.
    written: bool,
}

impl SnapshotWriter {
    /// A writer of what those snapshots lack.
    pub(crate) fn new(
        client: Client,
        leadership: Leadership,
        snapshots: Snapshots,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            leadership,
            snapshots,
            attempts: BTreeMap::new(),
            metrics,
            told: Gate::default(),
        }
    }

    /// Goes on for ever.
    pub(crate) async fn run(mut self) {
        let mut changes = self.snapshots.subscribe();
        loop {
            changes.mark_unchanged();
            let (due, pause) = self.look(Instant::now());
            let calls = due.into_iter().map(|task| {
                let (client, leadership) = (self.client.clone(), self.leadership.clone());
                async move {
                    let result = perform(&client, &leadership, &task).await;
                    (task, result)
                }
            });
            let done: Vec<_> = stream::iter(calls)
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            if !done.is_empty() {
                done.into_iter()
                    .for_each(|(task, result)| self.done(&task, result));
                continue;
            }
            let term = self.leadership.term();
            tokio::select! {
                // What there is to do is looked up; which of them says so does not matter.
                Ok(()) = changes.changed() => {}
                () = self.leadership.other_than(term) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What is to be done now, and how long until there may be more.
    fn look(&mut self, now: Instant) -> (Vec<Task>, Duration) {
        let leads = self.leadership.term().is_some();
        let tasks = self.snapshots.tasks();
        let missing = tasks.iter().filter(|it| matches!(it, Task::Store(_)));
        self.metrics
            .missing
            .set(i64::try_from(missing.count()).unwrap_or(i64::MAX));
        let keys: BTreeSet<_> = tasks.iter().map(Task::key).collect();
        self.attempts.retain(|key, attempt| {
            let there = keys.contains(key);
            // It is stored now, and would be anew if somebody deleted it.
            attempt.written |= !there && attempt.store;
            there || now < attempt.again + PAUSES.1
        });
        let (mut due, mut pause) = (Vec::new(), LOOK);
        for task in tasks {
            let store = matches!(task, Task::Store(_));
            let wait = match (store, leads) {
                (true, true) => Duration::ZERO,
                (true, false) => GRACE,
                (false, true) => NEEDLESS,
                (false, false) => continue,
            };
            let fresh = || Attempt {
                store,
                again: now + wait,
                pauses: Backoff::new(PAUSES.0, PAUSES.1),
                written: false,
            };
            let attempt = self.attempts.entry(task.key()).or_insert_with(fresh);
            if attempt.store != store {
                *attempt = fresh();
            }
            // The elected one has deleted it, and knows better.
            if attempt.written && store && !leads {
                continue;
            }
            if attempt.again <= now {
                due.push(task);
            } else {
                pause = pause.min(attempt.again - now);
            }
        }
        (due, pause)
    }

    fn done(&mut self, task: &Task, result: Result<(), ApiError>) {
        let (key, what) = (task.key(), task.word());
        // Others are heard of by the watch; until then nothing is asked again.
        if let Some(attempt) = self.attempts.get_mut(&key) {
            let pause = attempt.pauses.next_delay();
            let least = if result.is_ok() { HEARD } else { PAUSES.0 };
            attempt.again = Instant::now() + pause.max(least);
        }
        let labels = |result| WriteLabels { what, result };
        let count = |result| self.metrics.writes.get_or_create(&labels(result)).inc();
        match result {
            Ok(()) => {
                count("done");
                let object = &task.revision().object;
                tracing::info!(resource.name = %object, snapshot = %key, what, "good version of an object");
            }
            Err(error) => {
                count("failed");
                if let Some(left_out) = self.told.pass() {
                    let (object, error) = (&task.revision().object, error.full());
                    tracing::warn!(resource.name = %object, snapshot = %key, what, error, left_out, "not done; will be tried again");
                }
            }
        }
    }
}

impl Task {
    fn revision(&self) -> &Revision {
        match self {
            Self::Store(revision) | Self::Drop(revision) => revision,
        }
    }

    fn key(&self) -> ObjectKey {
        self.revision().key()
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Store(_) => "stored",
            Self::Drop(_) => "deleted",
        }
    }
}

async fn perform(client: &Client, leadership: &Leadership, task: &Task) -> Result<(), ApiError> {
    let key = task.key();
    let resource = ApiResource::erase::<ConfigSnapshot>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    match task {
        Task::Store(revision) => store(&api, revision).await,
        Task::Drop(_) => {
            let limit = CALL.min(leadership.left());
            let params = DeleteParams::default();
            match within(limit, api.delete(&key.name, &params)).await {
                Err(error) if error.is_missing() => Ok(()),
                result => result.map(drop),
            }
        }
    }
}

async fn store(api: &Api<DynamicObject>, revision: &Revision) -> Result<(), ApiError> {
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let manifest = serde_json::from_value(revision.manifest());
    let manifest = manifest.map_err(|error| ApiError::from(kube::Error::SerdeError(error)))?;
    match within(CALL, api.create(&params, &manifest)).await {
        // Another replica was first.
        Err(error) if error.is_conflict() => Ok(()),
        result => result.map(drop),
    }
}
