//! The client against a scripted server: what a control plane sees, and what the data path gets.

mod finished;
mod lifetime;
mod patience;
mod refused;
pub(super) mod resources;
mod server;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use resources::{LISTENER, SERVICE, cluster, endpoint, load_assignment, routes, workload};
use server::{ScriptedServer, Session};
use tonic::transport::{Channel, Endpoint};
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::{ResourceType, pack};

use super::*;
use crate::config::store::ConfigWriter;
use crate::config::{Cluster, Config, OutboundListener, Resolution, Snapshot};

const NODE: &str = "sidecar~10.1.0.1~echo.demo~demo.svc.cluster.local";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

fn destination() -> SocketAddr {
    "10.0.0.1:80".parse().expect("an address")
}

fn node(state_dir: Option<&Path>) -> XdsConfig {
    XdsConfig {
        node_id: NODE.to_owned(),
        node_cluster: "echo.demo".to_owned(),
        wildcard: false,
        max_subscriptions: 4096,
        state_dir: state_dir.map(Path::to_owned),
    }
}

fn client(channel: Channel, writer: ConfigWriter, state_dir: Option<&Path>) -> XdsClient {
    XdsClient::new(node(state_dir), channel, writer, XdsMetrics::default())
}

/// A server, a client of it, and the config that the client publishes.
struct Mesh {
    server: ScriptedServer,
    config: Config,
    status: XdsStatus,
    _tasks: Tasks,
}

impl Mesh {
    async fn start() -> (Self, Session) {
        let tasks = Tasks::new();
        let mut server = ScriptedServer::start(&tasks).await;
        let (config, writer) = Config::new(Snapshot::default());
        let client = client(server.channel.clone(), writer, None);
        let status = client.status();
        tasks.spawn("xds", client.run(tasks.cancelled()));
        let session = server.session().await;
        (
            Self {
                server,
                config,
                status,
                _tasks: tasks,
            },
            session,
        )
    }

    /// Waits until the snapshot is as wanted.
    async fn until<T>(&self, wanted: impl Fn(&Snapshot) -> Option<T>) -> T {
        let mut changed = self.config.changed();
        let wait = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = wanted(&self.config.load()) {
                    return found;
                }
                changed.changed().await.expect("the client lives");
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("it happens in time")
    }

    async fn known(&self) -> Arc<OutboundListener> {
        match self.config.resolve(destination()).await {
            Resolution::Known(listener) => listener,
            other => panic!("{other:?}"),
        }
    }

    async fn cluster(&self, wanted: impl Fn(&Cluster) -> bool) -> Arc<Cluster> {
        self.until(|snapshot| {
            snapshot
                .cluster(SERVICE)
                .filter(|cluster| wanted(cluster))
                .cloned()
        })
        .await
    }
}

fn http_listener() -> tulle_xds_proto::envoy::config::listener::v3::Listener {
    resources::listener(
        LISTENER,
        vec![resources::chain(resources::rds_manager(SERVICE))],
    )
}

/// Answers the question for the destination, step by step, and checks that it is asked in this order.
async fn teach(session: &mut Session) {
    session
        .subscribed(ResourceType::Listener, &[LISTENER])
        .await;
    session
        .send(ResourceType::Listener, &[(LISTENER, &http_listener())])
        .await;
    session.subscribed(ResourceType::Route, &[SERVICE]).await;
    session
        .send(
            ResourceType::Route,
            &[(SERVICE, &routes(SERVICE, &[SERVICE]))],
        )
        .await;
    session.subscribed(ResourceType::Cluster, &[SERVICE]).await;
    session
        .send(ResourceType::Cluster, &[(SERVICE, &cluster(SERVICE, 1))])
        .await;
    session
        .subscribed(ResourceType::Endpoints, &[SERVICE])
        .await;
    let endpoints = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &endpoints)])
        .await;
}

#[tokio::test]
async fn the_first_request_names_the_node_and_asks_for_inbound() {
    let (_mesh, mut session) = Mesh::start().await;
    let request = session.request().await;
    assert_eq!(request.type_url, ResourceType::Listener.type_url());
    assert_eq!(request.resource_names_subscribe, ["inbound"]);
    assert_eq!(request.node.expect("the first request has it").id, NODE);
}

#[tokio::test]
async fn a_destination_is_known_once_its_routes_clusters_and_endpoints_have_arrived() {
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    let (listener, ()) = tokio::join!(mesh.known(), teach(&mut session));
    assert_eq!(&*listener.name, LISTENER);
    let snapshot = mesh.config.load();
    assert!(snapshot.routes.contains_key(SERVICE));
    let cluster = snapshot
        .cluster(SERVICE)
        .expect("it came before the listener");
    assert_eq!(cluster.endpoints.len(), 1);
    let service = cluster.service.as_ref().expect("the name is a Service's");
    assert_eq!((&*service.name, &*service.namespace), ("echo", "demo"));
    assert!(mesh.status.report().connected);
}

#[tokio::test]
async fn what_the_control_plane_removes_is_unknown_and_can_become_known() {
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    let script = async {
        session
            .subscribed(ResourceType::Listener, &[LISTENER])
            .await;
        session.remove(ResourceType::Listener, &[LISTENER]).await;
    };
    let (resolution, ()) = tokio::join!(mesh.config.resolve(destination()), script);
    assert!(matches!(resolution, Resolution::Unknown));
    assert_eq!(session.acknowledged().await, None);

    let opaque = resources::listener(LISTENER, vec![resources::chain(resources::tcp(SERVICE))]);
    session
        .send(ResourceType::Listener, &[(LISTENER, &opaque)])
        .await;
    session.subscribed(ResourceType::Cluster, &[SERVICE]).await;
    session.remove(ResourceType::Cluster, &[SERVICE]).await;
    mesh.until(|snapshot| {
        let lookup = snapshot.outbound.get(&destination());
        matches!(lookup, Some(crate::config::Lookup::Known(_))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bad_resource_is_named_in_the_nack_and_the_last_good_one_stays() {
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    tokio::join!(mesh.known(), teach(&mut session));
    assert_eq!(session.acknowledged().await, None);

    let mut bad = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    bad.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(Default::default());
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &bad)])
        .await;
    let reason = session.acknowledged().await.expect("a NACK");
    let expected = format!(
        "{SERVICE}: endpoints[0].lb_endpoints[0].load_balancing_weight: \"0\" is not valid"
    );
    assert!(reason.starts_with(&expected), "{reason}");
    assert_eq!(
        mesh.config
            .load()
            .cluster(SERVICE)
            .expect("it stays")
            .endpoints
            .len(),
        1
    );
    let report = mesh.status.report();
    assert_eq!(report.types["EDS"].rejects, 1);
    assert!(
        report.types["EDS"]
            .last_reject
            .as_deref()
            .is_some_and(|reject| reject.contains(SERVICE))
    );

    let good = load_assignment(SERVICE, vec![endpoint("10.1.0.2"), endpoint("10.1.0.3")]);
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &good)])
        .await;
    assert_eq!(session.acknowledged().await, None);
    mesh.cluster(|cluster| cluster.endpoints.len() == 2).await;
    assert_eq!(mesh.status.report().types["EDS"].last_reject, None);
}

#[tokio::test]
async fn good_resources_beside_a_bad_one_are_applied() {
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    let ip = "10.1.0.9".parse().expect("an address");
    assert_eq!(mesh.config.workload(ip), None);
    session
        .subscribed(ResourceType::Address, &["/10.1.0.9"])
        .await;
    let other = "10.1.0.8".parse().expect("an address");
    assert_eq!(mesh.config.workload(other), None);
    session
        .subscribed(ResourceType::Address, &["/10.1.0.8"])
        .await;
    let sent = vec![
        (
            "/10.1.0.8",
            resources::garbage(ResourceType::Address.type_url()),
        ),
        ("/10.1.0.9", pack(&workload("web"))),
    ];
    session.send_any(ResourceType::Address, sent, &[]).await;
    let reason = session.acknowledged().await.expect("a NACK");
    assert!(
        reason.contains("/10.1.0.8") && !reason.contains("/10.1.0.9"),
        "{reason}"
    );
    let found = mesh.until(|_| mesh.config.workload(ip)).await;
    assert_eq!(
        (&*found.name, &*found.namespace, &*found.kind),
        ("web", "demo", "Deployment")
    );
}

#[tokio::test]
async fn a_changed_cluster_stays_as_it_was_until_its_endpoints_are_sent_again() {
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    tokio::join!(mesh.known(), teach(&mut session));
    let before = mesh.cluster(|_| true).await;

    session
        .send(ResourceType::Cluster, &[(SERVICE, &cluster(SERVICE, 2))])
        .await;
    session
        .subscribed(ResourceType::Endpoints, &[SERVICE])
        .await;
    assert_eq!(
        mesh.config
            .load()
            .cluster(SERVICE)
            .expect("there")
            .limits
            .max_requests,
        1
    );
    let same = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &same)])
        .await;
    let after = mesh
        .cluster(|cluster| cluster.limits.max_requests == 2)
        .await;
    assert!(
        Arc::ptr_eq(&before.state, &after.state),
        "counters outlive the change"
    );
    assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]));
}

#[tokio::test]
async fn routes_move_to_a_new_cluster_only_when_it_is_there() {
    const CANARY: &str = "outbound|80||canary.demo.svc.cluster.local";
    let (mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    tokio::join!(mesh.known(), teach(&mut session));

    session
        .send(
            ResourceType::Route,
            &[(SERVICE, &routes(SERVICE, &[CANARY]))],
        )
        .await;
    session.subscribed(ResourceType::Cluster, &[CANARY]).await;
    session
        .send(ResourceType::Cluster, &[(CANARY, &cluster(CANARY, 1))])
        .await;
    session.subscribed(ResourceType::Endpoints, &[CANARY]).await;
    let generation = mesh.config.load().generation;
    assert!(mesh.config.load().cluster(CANARY).is_none());
    let endpoints = load_assignment(CANARY, vec![endpoint("10.1.0.7")]);
    session
        .send(ResourceType::Endpoints, &[(CANARY, &endpoints)])
        .await;
    // The old cluster is let go in the same step.
    let request = session.subscription().await;
    assert_eq!(request.resource_names_unsubscribe, [SERVICE]);
    mesh.until(|snapshot| {
        let swapped = snapshot.cluster(CANARY).is_some() && snapshot.cluster(SERVICE).is_none();
        swapped.then_some(())
    })
    .await;
    assert_eq!(
        mesh.config.load().generation,
        generation + 1,
        "one step, nothing in between"
    );
}

#[tokio::test]
async fn a_new_stream_says_again_what_is_wanted_and_which_versions_are_here() {
    let (mut mesh, mut session) = Mesh::start().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    tokio::join!(mesh.known(), teach(&mut session));
    drop(session);

    let mut session = mesh.server.session().await;
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(session.request().await);
    }
    assert_eq!(
        said[0].node.as_ref().expect("the first has the node").id,
        NODE
    );
    let kinds = [
        (ResourceType::Cluster, "v3", vec![SERVICE]),
        (ResourceType::Endpoints, "v4", vec![SERVICE]),
        (ResourceType::Listener, "v1", vec!["inbound", LISTENER]),
        (ResourceType::Route, "v2", vec![SERVICE]),
    ];
    for (request, (kind, version, names)) in said.iter().zip(kinds) {
        assert_eq!(request.type_url, kind.type_url());
        assert_eq!(request.resource_names_subscribe, names);
        assert_eq!(request.initial_resource_versions.len(), 1, "{kind:?}");
        let here = request
            .initial_resource_versions
            .values()
            .next()
            .expect("one");
        assert_eq!(here, version, "{kind:?}");
    }
    assert!(
        mesh.config.load().cluster(SERVICE).is_some(),
        "served all the while"
    );
}

#[tokio::test]
async fn a_restart_without_a_control_plane_serves_the_last_good_config() {
    let dir = tempfile::tempdir().expect("a directory");
    let tasks = Tasks::new();
    let mut server = ScriptedServer::start(&tasks).await;
    let (config, writer) = Config::new(Snapshot::default());
    let first = client(server.channel.clone(), writer, Some(dir.path()));
    let running = Tasks::new();
    running.spawn("xds", first.run(running.cancelled()));
    let mut session = server.session().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    let (resolution, ()) = tokio::join!(config.resolve(destination()), teach(&mut session));
    assert!(matches!(resolution, Resolution::Known(_)));
    assert!(running.shutdown(PATIENCE).await);

    let nowhere = Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
    let (config, writer) = Config::new(Snapshot::default());
    let second = client(nowhere.clone(), writer, Some(dir.path()));
    assert!(second.status().report().from_cache);
    assert!(matches!(
        config.resolve(destination()).await,
        Resolution::Known(_)
    ));
    assert_eq!(
        config
            .load()
            .cluster(SERVICE)
            .expect("saved")
            .endpoints
            .len(),
        1
    );

    let (config, writer) = Config::new(Snapshot::default());
    let mut other = XdsConfig {
        node_id: "sidecar~10.1.0.9~other.demo~demo.svc.cluster.local".to_owned(),
        node_cluster: "other.demo".to_owned(),
        wildcard: false,
        max_subscriptions: 4096,
        state_dir: Some(dir.path().to_owned()),
    };
    let metrics = XdsMetrics::default();
    let stranger = XdsClient::new(other.clone(), nowhere.clone(), writer, metrics.clone());
    assert!(
        !stranger.status().report().from_cache,
        "it is another pod's"
    );
    assert_eq!(metrics.cache_failures.get(), 1);
    assert!(config.load().outbound.is_empty());

    std::fs::write(dir.path().join("config.pb"), b"tulle-config-1\n\x05junk").expect("writable");
    other.node_id = NODE.to_owned();
    let (config, writer) = Config::new(Snapshot::default());
    let damaged = XdsClient::new(other, nowhere, writer, metrics.clone());
    assert!(!damaged.status().report().from_cache);
    assert_eq!(metrics.cache_failures.get(), 2);
    assert!(config.load().outbound.is_empty());
}

#[tokio::test]
async fn a_new_certificate_takes_a_new_stream_and_no_alarm() {
    let tasks = Tasks::new();
    let mut server = ScriptedServer::start(&tasks).await;
    let (config, writer) = Config::new(Snapshot::default());
    let (rotated, due) = tokio::sync::watch::channel(0);
    let channel = server.channel.clone();
    let client =
        client(server.channel.clone(), writer, None).renewed(due, move || Some(channel.clone()));
    let status = client.status();
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let mut first = server.session().await;
    first.subscribed(ResourceType::Listener, &["inbound"]).await;
    let (_, ()) = tokio::join!(config.resolve(destination()), teach(&mut first));
    rotated.send_replace(1);
    let mut second = server.session().await;
    let request = second.request().await;
    assert!(
        !request.initial_resource_versions.is_empty(),
        "it says what it has: {request:?}"
    );
    let report = status.report();
    assert_eq!((report.connected, report.last_error), (true, None));
}
