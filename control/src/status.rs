//! What objects are told about themselves: `status.parents` of routes that are attached to Services, and `status.conditions` of
//! PeerAuthentications.
//!
//! A source says what each claims ([`Claims`]), [`verdict`] and [`policy`] judge it by the store's world, [`parents`] makes the
//! list of it, and the elected replica writes that, where it differs from what is there. The list is atomic for server-side apply, and
//! other controllers have entries in it: it is replaced as a whole, and only in the version that was read, so that nobody's
//! entry is lost.

mod claim;
mod parents;
mod pending;
mod policy;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::Instant;
use tulle_runtime::gate::Gate;

use crate::api;
use crate::election::Leadership;
use crate::platform::{ApiError, CALL, FIELD_MANAGER, within};
use crate::store::{Kind, ObjectRef, Store};

pub(crate) use claim::{Claim, Claims};
use pending::Pending;

/// Who we are in `status.parents[*].controllerName`.
pub(crate) const CONTROLLER: &str = "tulle.dev/mesh";
/// Writes at a time.
const AT_ONCE: usize = 16;
/// Between two looks at what there is to write, in which much may change at once. No more than [`AT_ONCE`] writes begin in it,
/// which makes 80 a second: a mesh of a thousand routes is told in a quarter of a minute, and the API server hardly notices.
const GATHER: Duration = Duration::from_millis(200);
/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// What verdicts on routes depend on.
const KINDS: [Kind; 5] = [
    Kind::Service,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
];

/// Writes statuses while this replica is the elected one.
pub(crate) struct StatusWriter {
    client: Client,
    leadership: Leadership,
    store: Store,
    claims: Claims,
    /// What the last looks were at, and found: at routes, and at policies, which depend on what changes more often.
    routes: Look,
    policies: Look,
    pending: Pending,
    metrics: Metrics,
    told: Gate,
}

/// What verdicts were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    term: u64,
    claims: u64,
    generations: Vec<u64>,
}

/// A look at what there is to write.
#[derive(Debug, Default)]
struct Look {
    seen: Option<Seen>,
    wanted: BTreeMap<ObjectRef, Wanted>,
}

impl Look {
    /// Whether there is something to look at that this one has not seen.
    fn is_due(&mut self, seen: Seen) -> bool {
        let due = self.seen.as_ref() != Some(&seen);
        self.seen = Some(seen);
        due
    }
}

/// Counters of the writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    writes: Family<WriteLabels, Counter>,
    missing: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    result: &'static str,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "control_statuses",
            "Statuses of objects that this replica has written, by kind and result",
            metrics.writes.clone(),
        );
        registry.register(
            "control_statuses_missing",
            "Objects whose status is not as this replica would have it",
            metrics.missing.clone(),
        );
        metrics
    }
}

/// A status that is to be written.
#[derive(Clone, Debug)]
struct Wanted {
    claim: Arc<Claim>,
    /// Parents of a route, or conditions of a policy.
    list: Vec<Value>,
}

type Write = BoxFuture<'static, (ObjectRef, Wanted, Result<(), ApiError>)>;

impl StatusWriter {
    /// A writer of what the claims of the store's objects deserve.
    pub(crate) fn new(
        client: Client,
        leadership: Leadership,
        store: Store,
        claims: Claims,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            leadership,
            store,
            claims,
            routes: Look::default(),
            policies: Look::default(),
            pending: Pending::default(),
            metrics,
            told: Gate::default(),
        }
    }

    /// Goes on for ever.
    pub(crate) async fn run(mut self) {
        let (_, mut updates) = self.store.subscribe();
        let mut claims = self.claims.subscribe();
        let mut writes = FuturesUnordered::new();
        loop {
            let pause = self.begin(&writes);
            let term = self.leadership.term();
            tokio::select! {
                // Whatever comes is looked at below; the order does not matter.
                Some((route, wanted, result)) = writes.next() => self.wrote(&route, wanted, result),
                Some(_) = updates.next() => {}
                Ok(()) = claims.changed() => {}
                () = self.leadership.other_than(term) => {}
                () = tokio::time::sleep(pause) => {}
            }
            let gathered = tokio::time::sleep(GATHER);
            self.answered_until(&mut writes, gathered).await;
        }
    }

    /// Takes answers in until then: who is not polled misses his own deadline.
    async fn answered_until(
        &mut self,
        writes: &mut FuturesUnordered<Write>,
        then: impl Future<Output = ()>,
    ) {
        let mut then = std::pin::pin!(then);
        loop {
            tokio::select! {
                biased;
                () = &mut then => return,
                Some((route, wanted, result)) = writes.next() => self.wrote(&route, wanted, result),
            }
        }
    }

    /// Begins what there is to write, and says how long until there may be more.
    fn begin(&mut self, writes: &FuturesUnordered<Write>) -> Duration {
        let Some(term) = self.leadership.term() else {
            self.routes = Look::default();
            self.policies = Look::default();
            self.pending = Pending::default();
            self.metrics.missing.set(0);
            return LOOK;
        };
        self.judge(term);
        let now = Instant::now();
        let room = AT_ONCE.saturating_sub(writes.len());
        let (due, pause) = self.pending.begin(room, now);
        for (route, wanted) in due {
            writes.push(self.write(route, wanted));
        }
        pause.unwrap_or(LOOK)
    }

    /// Finds out what there is to write, unless nothing has changed.
    fn judge(&mut self, term: u64) {
        // The world has what is claimed, because it is the newer one of the two.
        let (count, claims) = self.claims.all();
        let world = self.store.world();
        let seen = |kinds: &[Kind]| Seen {
            term,
            claims: count,
            generations: kinds.iter().map(|kind| world.generation(*kind)).collect(),
        };
        if !world.synced() {
            return;
        }
        let routes = self.routes.is_due(seen(&KINDS));
        let policies = self.policies.is_due(seen(&policy::KINDS));
        let now = parents::time();
        let of = |routes: bool, judge: &dyn Fn(&ObjectRef, &Claim) -> Option<Vec<Value>>| {
            let claims = claims
                .iter()
                .filter(|(object, _)| object.kind.is_route() == routes);
            let wanted = claims.filter_map(|(object, claim)| {
                let list = judge(object, claim)?;
                let claim = claim.clone();
                Some((object.clone(), Wanted { claim, list }))
            });
            wanted.collect()
        };
        if routes {
            self.routes.wanted = of(true, &|route, claim| {
                let verdicts = verdict::verdicts(&world, route, claim)?;
                parents::parents(claim, &verdicts, &now)
            });
        }
        if policies {
            let judge = policy::Judge::new(&world);
            self.policies.wanted = of(false, &|policy, claim| {
                judge.conditions(policy, claim, &now)
            });
        }
        if !(routes || policies) {
            return;
        }
        let wanted = [&self.routes, &self.policies].into_iter();
        let wanted = wanted.flat_map(|look| look.wanted.clone()).collect();
        self.pending.replace(wanted, Instant::now());
        let missing = i64::try_from(self.pending.len()).unwrap_or(i64::MAX);
        self.metrics.missing.set(missing);
    }

    fn write(&self, route: ObjectRef, wanted: Wanted) -> Write {
        let (client, leadership) = (self.client.clone(), self.leadership.clone());
        Box::pin(async move {
            let result = write(&client, &leadership, &route, &wanted).await;
            (route, wanted, result)
        })
    }

    fn wrote(&mut self, route: &ObjectRef, wanted: Wanted, result: Result<(), ApiError>) {
        let kind = route.kind.as_str();
        let outcome = match &result {
            Ok(()) => "done",
            // Another version of it is about to be seen, or none.
            Err(error) if error.is_conflict() || error.is_missing() => "late",
            Err(_) => "failed",
        };
        let labels = WriteLabels {
            kind,
            result: outcome,
        };
        self.metrics.writes.get_or_create(&labels).inc();
        let failed = outcome == "failed";
        self.pending.wrote(route, wanted, failed, Instant::now());
        let missing = i64::try_from(self.pending.len()).unwrap_or(i64::MAX);
        self.metrics.missing.set(missing);
        match result {
            Err(error) if failed => {
                if let Some(left_out) = self.told.pass() {
                    let error = error.full();
                    tracing::warn!(resource.name = %route, error, left_out, "status not written; will be tried again");
                }
            }
            _ => tracing::debug!(resource.name = %route, outcome, "status written"),
        }
    }
}

/// Writes one status, while this replica may.
async fn write(
    client: &Client,
    leadership: &Leadership,
    route: &ObjectRef,
    wanted: &Wanted,
) -> Result<(), ApiError> {
    let kind = route.kind.as_str();
    let (group, list) = match route.kind.is_route() {
        true => (GROUP, "parents"),
        false => (api::GROUP, "conditions"),
    };
    let resource = ApiResource {
        group: group.to_owned(),
        version: wanted.claim.api.to_owned(),
        api_version: format!("{group}/{}", wanted.claim.api),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    let objects: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &route.key.namespace, &resource);
    let patch = Patch::Merge(json!({
        // It fails if there is another version by now.
        "metadata": { "resourceVersion": wanted.claim.version },
        "status": { list: wanted.list },
    }));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let limit = CALL.min(leadership.left());
    let written = objects.patch_status(&route.key.name, &params, &patch);
    within(limit, written).await.map(drop)
}

/// Group of all routes.
const GROUP: &str = "gateway.networking.k8s.io";

#[cfg(test)]
mod tests;
