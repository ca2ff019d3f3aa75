//! What operators see and do: readiness, metrics, who has acknowledged what, what is wrong with the sources, the roots.
//!
//! By way of loopback all of it; from elsewhere only readiness and metrics, for kubelet and Prometheus, because the rest names
//! every workload of the mesh or changes something.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use tulle_runtime::admin::{self, AdminServer, Answer, Evicted, Refusals};
use tulle_runtime::gate::Gate;
use tulle_runtime::metrics;
use tulle_runtime::names::labels;
use tulle_runtime::tasks::Tasks;

use crate::ca::{Authority, RotateError};
use crate::discovery::Discovery;
use crate::limit::Reached;
use crate::source::{Place, Problem, SourceReport};
use crate::store::{Kind, ObjectRef, World};
use crate::translate;

/// What the routes need.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) registry: Arc<Registry>,
    pub(crate) gauges: Gauges,
    pub(crate) tasks: Tasks,
    pub(crate) discovery: Discovery,
    pub(crate) authority: Arc<Authority>,
    pub(crate) report: SourceReport,
    pub(crate) reached: Reached,
    pub(crate) connections: usize,
    pub(crate) refusals: Refusals,
}

/// What is counted elsewhere and looked up when somebody asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauges {
    services: Gauge,
    pods: Gauge,
    problems: Gauge,
    overruled: Gauge,
    panics: Gauge,
}

impl Gauges {
    /// Registers them in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        let g = gauges.clone();
        registry.register("services", "Services known", g.services);
        registry.register("pods", "Pods known", g.pods);
        registry.register(
            "source_problems",
            "Documents of the sources that cannot be used",
            g.problems,
        );
        registry.register(
            "policies_overruled",
            "Policies that do not count where another one of the same scope comes first",
            g.overruled,
        );
        registry.register(
            "connection_panics",
            "Connections and streams that ended by a panic",
            g.panics,
        );
        gauges
    }

    fn set(&self, state: &State) {
        let set = |gauge: &Gauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        let world = state.discovery.world();
        set(&self.services, world.services().count());
        set(&self.pods, world.pods().count());
        let relabelled = world.pods().filter(|pod| pod.relabelled).count();
        set(&self.problems, state.report.len() + relabelled);
        set(&self.overruled, translate::overruled(&world).len());
        self.panics
            .set(i64::try_from(state.tasks.connection_panics()).unwrap_or(i64::MAX));
    }
}

/// Adds the routes to a server.
pub(crate) fn routes(server: &mut AdminServer, state: State) {
    server.allow_host(tulle_runtime::names::CONTROL_DNS_NAME);
    server.refusals(state.refusals.clone());
    bound(server, state.connections, state.reached.clone());
    route(server, "/ready", &state, ready);
    route(server, "/metrics", &state, |state| {
        state.gauges.set(state);
        admin::typed(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            metrics::encode(&state.registry),
        )
    });
    server.inside();
    route(server, "/debug/proxies", &state, |state| {
        admin::json(&state.discovery.proxies())
    });
    route(server, "/debug/source", &state, |state| {
        source(&state.report, &state.discovery)
    });
    route(server, "/debug/world", &state, |state| {
        world(&state.discovery)
    });
    route(server, "/ca", &state, |state| {
        admin::json(&state.authority.status())
    });
    server.post("/ca/rotate-root", move |_| {
        let authority = state.authority.clone();
        async move { rotate(&authority).await }
    });
}

/// Takes so many connections, and counts and tells of more.
fn bound(server: &mut AdminServer, limit: usize, reached: Reached) {
    let told = Gate::default();
    server.room(limit, move |Evicted { client, oldest }| {
        reached.count("admin_connections");
        if let Some(left_out) = told.pass() {
            tracing::warn!(client.addr = %client, oldest = %oldest, limit, left_out,
                "operators have as many connections as they may, and the oldest is closed for one more");
        }
    });
}

fn route(server: &mut AdminServer, path: &str, state: &State, answer: fn(&State) -> Answer) {
    let state = state.clone();
    server.get(path, move |_| {
        let answer = answer(&state);
        async move { answer }
    });
}

fn ready(state: &State) -> Answer {
    let discovery = &state.discovery;
    if discovery.is_ending() {
        admin::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: shutting down\n",
        )
    } else if discovery.world().synced() {
        admin::text(StatusCode::OK, "ready\n")
    } else {
        admin::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "not ready: the sources have not been read yet{}\n",
                state.report.unread()
            ),
        )
    }
}

fn source(report: &SourceReport, discovery: &Discovery) -> Answer {
    let world = discovery.world();
    let problems = report.problems().into_iter().chain(relabelled(&world));
    let problems: Vec<_> = problems.map(shown).collect();
    let overruled: Vec<_> = translate::overruled(&world)
        .into_iter()
        .map(|it| {
            json!({
                "object": it.policy.to_string(),
                "by": it.by.to_string(),
                "pods": it.pods.len(),
                "message": it.to_string(),
            })
        })
        .collect();
    admin::json(&json!({
        "synced": world.synced(),
        "problems": problems,
        "overruled": overruled,
    }))
}

/// Pods that have a sidecar, by their spec, and not the label that says so.
fn relabelled(world: &World) -> impl Iterator<Item = Problem> {
    let pods = world.pods().filter(|pod| pod.relabelled);
    pods.map(|pod| {
        let place = Place::Object(ObjectRef {
            kind: Kind::Pod,
            key: pod.key.clone(),
        });
        let said = match pod.labels.get(labels::PROXIED) {
            Some(value) => format!("is {:?}", &**value),
            None => "is gone".to_owned(),
        };
        let message = format!(
            "{said}, and the pod has a sidecar, which is called with mTLS as before: set the label to \"true\" again, and see who changes it"
        );
        Problem {
            field: format!("metadata.labels[{}]", labels::PROXIED),
            ..Problem::of(place, message)
        }
    })
}

/// A problem, with what its place has.
fn shown(problem: Problem) -> serde_json::Value {
    let mut shown = json!({
        "object": problem.object,
        "field": problem.field,
        "message": problem.message,
    });
    match problem.place {
        Place::File(path) => {
            shown["file"] = json!(path);
            shown["line"] = json!(problem.line);
            shown["document"] = json!(problem.document);
        }
        Place::Object(_) => {}
        Place::Resource(name) => shown["resource"] = json!(name),
    }
    shown
}

fn world(discovery: &Discovery) -> Answer {
    let world = discovery.world();
    let generations: serde_json::Map<_, _> = Kind::ALL
        .into_iter()
        .map(|kind| (kind.to_string(), world.generation(kind).into()))
        .collect();
    let endpoints: serde_json::Map<_, _> = world
        .services()
        .map(|service| {
            let ready = world
                .slices_of(&service.key)
                .flat_map(|slice| &slice.endpoints)
                .filter(|endpoint| endpoint.ready)
                .filter_map(|endpoint| endpoint.pod.as_ref());
            let pods: BTreeSet<_> = ready.collect();
            (service.key.to_string(), pods.len().into())
        })
        .collect();
    admin::json(&json!({
        "synced": world.synced(),
        "namespaces": world.namespaces().count(),
        "services": world.services().count(),
        "pods": world.pods().count(),
        "routes": world.routes().count(),
        "generations": generations,
        "ready_pods_by_service": endpoints,
    }))
}

async fn rotate(authority: &Authority) -> Answer {
    match authority.rotate().await {
        Ok(()) => admin::json(&authority.status()),
        Err(error @ (RotateError::UnderWay(_) | RotateError::Plugged(_))) => {
            admin::text(StatusCode::CONFLICT, format!("{error}\n"))
        }
        Err(error) => {
            let detail = anyhow::Error::new(error);
            tracing::error!(error = format!("{detail:#}"), "root rotation did not begin");
            admin::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{detail:#}\n"))
        }
    }
}
