//! API servers at their worst: what the store hears of it, and what it does not.

mod definitions;
mod failures;
mod lists;
mod objects;
mod snapshots;
mod source;
mod unread;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::hand_written_api_server::{ApiServer, Stream};
use super::health::Health;
use super::ledger::Ledger;
use super::wait::Wait;
use super::watch::{Settings, Watch};
use super::wire::Resource;
use super::{kinds, writer};
use crate::snapshot::Snapshots;
use crate::source::report::SourceReport;
use crate::status::Claims;
use crate::store::{Kind, MeshSettings, Store, Update, Updates, World};
use tulle_runtime::tasks::Tasks;

const DEADLINE: Duration = Duration::from_secs(20);
const PATH: &str = "/api/v1/services";

/// Waits are short, and for answers long.
const SETTINGS: Settings = Settings {
    answer: DEADLINE,
    begin: DEADLINE,
    lasts: (DEADLINE, DEADLINE),
    grace: DEADLINE,
    pause: (Duration::from_millis(1), Duration::from_millis(8)),
    patience: Duration::from_millis(50),
};

/// A store, what it is told, and those who tell it.
struct Rig {
    server: ApiServer,
    store: Store,
    updates: Updates,
    report: SourceReport,
    claims: Claims,
    snapshots: Snapshots,
    tasks: Tasks,
}

impl Rig {
    /// Follows the Services of a server.
    async fn services(settings: Settings) -> Self {
        let (mut rig, writer) = Self::empty().await;
        let (sender, messages) = mpsc::channel(super::WAITING);
        let missing = BTreeSet::from([Kind::Service]);
        rig.tasks.spawn(
            "writer",
            writer::run(writer, messages, rig.wait(missing), rig.claims.clone()),
        );
        let mut watch = Watch::new(
            rig.server.client(),
            Resource::new("", "v1", "services"),
            kinds::reader(Kind::Service, kinds::VERSION),
            settings,
            Health::new("Service".into(), "services".into(), &rig.report),
        );
        let mut ledger = Ledger::new(Kind::Service, rig.report.clone());
        let cancelled = rig.tasks.cancelled();
        rig.tasks.spawn("services", async move {
            let follow = async {
                while {
                    let happened = watch.next().await;
                    ledger.take(happened, &sender).await
                } {}
            };
            tokio::select! {
                () = follow => {}
                () = cancelled => {}
            }
        });
        rig.updates = rig.store.subscribe().1;
        rig
    }

    async fn empty() -> (Self, crate::store::StoreWriter) {
        let (store, writer) = Store::new(MeshSettings::default());
        let (_, updates) = store.subscribe();
        let rig = Self {
            server: ApiServer::start().await,
            store,
            updates,
            report: SourceReport::default(),
            claims: Claims::default(),
            snapshots: Snapshots::default(),
            tasks: Tasks::new(),
        };
        (rig, writer)
    }

    /// Follows Services that were listed once, with these versions; the watch that goes on.
    async fn listed(settings: Settings, services: &[(&str, u64)]) -> (Self, Stream) {
        let mut rig = Self::services(settings).await;
        let asked = rig.server.asked().await;
        assert!(asked.is_streaming_list(), "{}", asked.target);
        let mut stream = asked.begin().await;
        for (name, version) in services {
            stream.event("ADDED", &service(name, *version)).await;
        }
        stream.complete("100").await;
        let world = rig.until(World::synced).await;
        assert_eq!(names(&world).len(), services.len());
        (rig, stream)
    }

    fn wait(&self, missing: BTreeSet<Kind>) -> Wait {
        let (report, snapshots) = (self.report.clone(), self.snapshots.clone());
        Wait::new(missing, report, snapshots, SETTINGS.patience)
    }

    async fn update(&mut self) -> Update {
        let update = tokio::time::timeout(DEADLINE, self.updates.next()).await;
        update.expect("in time").expect("somebody writes")
    }

    /// Waits until the world is as wanted.
    async fn until(&mut self, wanted: impl Fn(&World) -> bool) -> Arc<World> {
        loop {
            let world = self.store.world();
            if wanted(&world) {
                return world;
            }
            self.update().await;
        }
    }

    /// Names of the Services, now.
    fn names(&self) -> Vec<String> {
        names(&self.store.world())
    }

    /// A line of the metrics, by its beginning.
    fn metric(&self, name: &str) -> Option<String> {
        let mut registry = Registry::default();
        self.report.register(&mut registry);
        let text = tulle_runtime::metrics::encode(&registry);
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().map(|value| value.trim().to_owned())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

fn names(world: &World) -> Vec<String> {
    world.services().map(|it| it.key.name.to_string()).collect()
}

/// A Service whose port is its version.
fn service(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string() },
        "spec": { "ports": [{ "port": version }] },
    })
}

/// The port of a Service.
fn port(world: &World, name: &str) -> Option<u16> {
    let key = crate::store::ObjectKey::new("shop", name);
    world.service(&key)?.ports.first().map(|it| it.port)
}
