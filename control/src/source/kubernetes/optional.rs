//! A kind that a CustomResourceDefinition brings: followed while there is one, in a version that it serves.

use std::pin::pin;
use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use super::definition::{Definition, Definitions};
use super::health::Health;
use super::kinds::{self, Custom};
use super::ledger::{Item, Ledger};
use super::watch::{Happened, Settings, Watch, next};
use super::writer::Message;
use crate::snapshot::Snapshots;
use crate::source::report::{Place, Problem, SourceReport};

/// Follows a definition, and its objects.
pub(super) struct Optional {
    custom: &'static Custom,
    client: Client,
    settings: Settings,
    report: SourceReport,
    writer: Sender<Message>,
    ledger: Ledger,
    /// Sees what is stored of its objects.
    snapshots: watch::Receiver<u64>,
    /// The version that is followed.
    version: Option<&'static str>,
    objects: Option<Watch<Item>>,
}

impl Optional {
    pub(super) fn new(
        custom: &'static Custom,
        client: Client,
        settings: Settings,
        report: SourceReport,
        snapshots: Snapshots,
        writer: Sender<Message>,
    ) -> Self {
        Self {
            ledger: Ledger::new(custom.kind, report.clone()).with(snapshots.clone()),
            snapshots: snapshots.subscribe(),
            custom,
            client,
            settings,
            report,
            writer,
            version: None,
            objects: None,
        }
    }

    /// Goes on until the writer is gone.
    pub(super) async fn run(mut self) {
        let mut definitions = Definitions::new(
            self.client.clone(),
            self.custom.definition,
            self.custom.definition_resource(),
            self.settings,
            &self.report,
        );
        loop {
            let heard = {
                let mut definition = pin!(definitions.next());
                let mut object = pin!(next(&mut self.objects));
                loop {
                    tokio::select! {
                        said = &mut definition => break Heard::Definition(said),
                        happened = &mut object => break Heard::Object(happened.into()),
                        // Whoever is asked goes on answering meanwhile.
                        Ok(()) = self.snapshots.changed() => {
                            if !self.ledger.reconsider(&self.writer).await {
                                return;
                            }
                        }
                    }
                }
            };
            let written = match heard {
                Heard::Object(happened) => self.ledger.take(*happened, &self.writer).await,
                Heard::Definition(Some(definition)) => self.defined(&definition).await,
                Heard::Definition(None) => self.undefined().await,
            };
            if !written {
                return;
            }
        }
    }

    /// There is a definition, and it says this.
    async fn defined(&mut self, definition: &Definition) -> bool {
        let mut versions = self.custom.versions.iter();
        let version = versions.find(|it| definition.served.iter().any(|served| served == *it));
        let unknown = version.is_none() && !definition.served.is_empty();
        self.note(unknown.then_some(definition));
        let Some(version) = version.copied() else {
            return self.stop().await;
        };
        if self.version != Some(version) {
            tracing::info!(resource.type = self.custom.definition, version, "followed");
            self.version = Some(version);
            // What is known stays until the first list of this version is complete.
            self.objects = None;
            self.objects = Some(Watch::new(
                self.client.clone(),
                self.custom.resource(version),
                kinds::reader(self.custom.kind, version),
                self.settings,
                Health::new(
                    self.custom.kind.as_str().into(),
                    self.custom.definition.into(),
                    &self.report,
                )
                .known(self.ledger.is_listed()),
            ));
        }
        true
    }

    async fn undefined(&mut self) -> bool {
        self.note(None);
        self.stop().await
    }

    /// There are no such objects.
    async fn stop(&mut self) -> bool {
        if self.version.take().is_some() {
            tracing::info!(resource.type = self.custom.definition, "not served any more");
        }
        self.objects = None;
        self.ledger.clear(&self.writer).await
    }

    /// Reports a definition that serves nothing that can be read.
    fn note(&self, unknown: Option<&Definition>) {
        let place: Arc<str> = format!("CustomResourceDefinition {}", self.custom.definition).into();
        let place = Place::Resource(place);
        let problem = unknown.map(|definition| Problem {
            field: "spec.versions".to_owned(),
            ..Problem::of(
                place.clone(),
                format!(
                    "serves {} only, and its objects are not used: serve {}",
                    definition.served.join(", "),
                    self.custom.versions.join(" or ")
                ),
            )
        });
        for problem in self.report.replace(&place, problem.into_iter().collect()) {
            tracing::warn!(resource.type = self.custom.definition, error = %problem.message, "definition not used");
        }
    }
}

/// What was heard of.
enum Heard {
    Definition(Option<Definition>),
    Object(Box<Happened<Item>>),
}
