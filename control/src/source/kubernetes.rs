//! Objects of a Kubernetes cluster, watched through its API server.
//!
//! One task a kind follows it and parses what comes; one writer takes all that is ready at one moment into one update. Nothing
//! vanishes because the API server is away or must be asked anew: an object is gone when it is said to be, or when a list
//! that is complete does not have it. Kinds that come with a CustomResourceDefinition are followed while there is one.

mod definition;
mod failure;
mod health;
mod kinds;
mod ledger;
mod optional;
mod snapshots;
mod wait;
mod watch;
mod wire;
mod writer;
mod written;

#[cfg(test)]
mod hand_written_api_server;
#[cfg(test)]
mod tests;

use std::fmt;

use kube::Client;
use tokio::sync::mpsc;
use tulle_runtime::tasks::Tasks;

use self::health::Health;
use self::kinds::{FIXED, OPTIONAL};
use self::ledger::Ledger;
use self::optional::Optional;
use self::snapshots::Follower;
use self::wait::Wait;
use self::watch::{Settings, Watch};
use super::report::SourceReport;
use crate::snapshot::Snapshots;
use crate::status::Claims;
use crate::store::StoreWriter;

/// Updates that may wait for the writer, of all kinds together.
const WAITING: usize = 256;

/// The objects of a cluster.
pub struct KubernetesSource {
    client: Client,
    report: SourceReport,
    claims: Claims,
    snapshots: Snapshots,
    settings: Settings,
}

impl KubernetesSource {
    /// The cluster of a client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            report: SourceReport::default(),
            claims: Claims::default(),
            snapshots: Snapshots::default(),
            settings: Settings::default(),
        }
    }

    /// What is wrong with the objects and with the ways to them, now and later.
    #[must_use]
    pub fn report(&self) -> SourceReport {
        self.report.clone()
    }

    /// What routes claim, now and later.
    pub(crate) fn claims(&self) -> Claims {
        self.claims.clone()
    }

    /// What is stored of objects that cannot be used, and what should be, now and later.
    pub(crate) fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// Follows the cluster until the tasks are cancelled. Says that everything has been read when every kind that
    /// exists was listed once, or cannot be and can be done without ([`wait`]).
    pub fn spawn(self, tasks: &Tasks, writer: StoreWriter) {
        let (sender, messages) = mpsc::channel(WAITING);
        let kinds = FIXED.iter().map(|it| it.kind);
        let all = kinds.chain(OPTIONAL.iter().map(|it| it.kind)).collect();
        let wait = Wait::new(
            all,
            self.report.clone(),
            self.snapshots.clone(),
            self.settings.patience,
        );
        let written = writer::run(writer, messages, wait, self.claims);
        tasks.spawn_until_cancelled("source-writer", written);
        for fixed in &FIXED {
            let watch = Watch::new(
                self.client.clone(),
                fixed.resource(),
                kinds::reader(fixed.kind, kinds::VERSION),
                self.settings,
                Health::new(fixed.kind.as_str().into(), fixed.name(), &self.report),
            );
            let ledger = Ledger::new(fixed.kind, self.report.clone());
            let sender = sender.clone();
            tasks.spawn_until_cancelled(fixed.task, async move {
                let (mut watch, mut ledger) = (watch, ledger);
                loop {
                    let happened = watch.next().await;
                    if !ledger.take(happened, &sender).await {
                        return;
                    }
                }
            });
        }
        let stored = Follower::new(
            self.client.clone(),
            self.settings,
            self.snapshots.clone(),
            self.report.clone(),
        );
        tasks.spawn_until_cancelled("source-snapshots", stored.run());
        for optional in &OPTIONAL {
            let follower = Optional::new(
                optional,
                self.client.clone(),
                self.settings,
                self.report.clone(),
                self.snapshots.clone(),
                sender.clone(),
            );
            tasks.spawn_until_cancelled(optional.task, follower.run());
        }
    }
}

impl fmt::Debug for KubernetesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesSource")
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}
