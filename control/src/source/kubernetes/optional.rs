//! A kind that a CustomResourceDefinition brings: followed while there is one, in a version that it serves.

use kube::Client;
use std::pin::pin;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::Instant;

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
        let Some(version) = version.copied() else {
            return self.unserved(definition).await;
        };
        self.note(None);
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

    /// There is a definition, and nobody can read its objects by it. They are there all the same: what is known of them stays, and
    /// where nothing is known yet, policies are waited for, which would be open otherwise.
    async fn unserved(&mut self, definition: &Definition) -> bool {
        self.version = None;
        self.objects = None;
        let known = self.ledger.is_listed();
        let waits = !known && !self.custom.kind.is_route();
        let what = if known {
            "what is known of its objects stays in force, and what is changed of them does not count"
        } else if waits {
            "no control plane that begins serves anybody before it can read its objects"
        } else {
            "its objects are not used"
        };
        let served = match definition.served.as_slice() {
            [] => "no version, or is not established".to_owned(),
            served => format!("{} only", served.join(", ")),
        };
        let versions = self.custom.versions.join(" or ");
        let message = format!("serves {served}, and {what}: serve {versions}");
        if waits {
            let kind = self.custom.kind.as_str().into();
            self.report.metrics().unread(&kind);
            let (awaited, since) = (self.report.awaited(), Instant::now());
            awaited.fails(&kind, self.place(), since, message.clone());
        }
        // Nobody need be told of one of routes that was made a moment ago.
        let told = known || waits || !definition.served.is_empty();
        self.note(told.then_some(message));
        known || waits || self.stop().await
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
        let kind = self.custom.kind.as_str();
        self.report.awaited().ends(kind);
        self.report.metrics().forget(&kind.into());
        self.ledger.clear(&self.writer).await
    }

    /// Reports what is wrong with the definition, if anything is.
    fn note(&self, message: Option<String>) {
        let place = self.place();
        let problem = message.map(|message| Problem {
            field: "spec.versions".to_owned(),
            ..Problem::of(place.clone(), message)
        });
        for problem in self.report.replace(&place, problem.into_iter().collect()) {
            tracing::warn!(resource.type = self.custom.definition, error = %problem.message, "definition not used");
        }
    }

    fn place(&self) -> Place {
        let definition = self.custom.definition;
        Place::Resource(format!("CustomResourceDefinition {definition}").into())
    }
}

/// What was heard of.
enum Heard {
    Definition(Option<Definition>),
    Object(Box<Happened<Item>>),
}
