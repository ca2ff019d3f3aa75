//! Resources that live only as long as their server renews them, and what comes of those that were refused, by a clock
//! that the test moves.

use http::StatusCode;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::patience::{serves, start, taught};
use super::*;
use crate::config::route::{RouteAction, RouteTable};

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn what_is_not_renewed_goes_and_a_heartbeat_keeps_it() {
    let tasks = Tasks::new();
    let (_server, mut session, config, _) = taught(&tasks).await;
    let _in_use = config.hold(destination());
    let endpoints = pack(&load_assignment(SERVICE, vec![endpoint("10.1.0.2")]));
    let kind = ResourceType::Endpoints;
    session
        .live(kind, SERVICE, Some(endpoints.clone()), 60)
        .await;
    for _ in 0..20 {
        sleep(MINUTE / 2).await;
        assert!(serves(&config));
        session.live(kind, SERVICE, None, 60).await;
        assert_eq!(session.acknowledged().await, None);
    }
    sleep(MINUTE * 59 / 60).await;
    assert!(serves(&config), "it is not over yet");
    sleep(MINUTE / 30).await;
    let empty = |config: &Config| {
        let snapshot = config.load();
        snapshot
            .cluster(SERVICE)
            .is_some_and(|it| it.endpoints.is_empty())
    };
    assert!(empty(&config), "it is over, and the cluster is still there");
    // A heartbeat that comes too late brings it back, for as long as it says; the resource without a lifetime stays.
    session.live(kind, SERVICE, None, 60).await;
    assert_eq!(session.acknowledged().await, None);
    assert!(serves(&config));
    sleep(MINUTE * 61 / 60).await;
    assert!(empty(&config));
    session.live(kind, SERVICE, Some(endpoints), 0).await;
    assert_eq!(session.acknowledged().await, None);
    sleep(20 * MINUTE).await;
    assert!(serves(&config));
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_ends_also_while_the_control_plane_is_away() {
    let tasks = Tasks::new();
    let (mut server, mut session, config, _) = taught(&tasks).await;
    let _in_use = config.hold(destination());
    let routes = pack(&routes(SERVICE, &[SERVICE]));
    session
        .live(ResourceType::Route, SERVICE, Some(routes), 120)
        .await;
    assert_eq!(session.acknowledged().await, None);
    session.fail(Status::unavailable("away")).await;
    // It is asked again, and says nothing.
    let _silent = server.session().await;
    sleep(MINUTE).await;
    assert!(config.load().routes.contains_key(SERVICE));
    sleep(2 * MINUTE).await;
    assert!(!config.load().routes.contains_key(SERVICE));
    let listener = config.load().lookup(destination()).is_some();
    assert!(listener, "nothing else had one");
}

#[tokio::test(start_paused = true)]
async fn a_server_is_told_that_lifetimes_count() {
    let tasks = Tasks::new();
    let mut server = ScriptedServer::in_memory(&tasks);
    let (_config, writer) = Config::new(Snapshot::default());
    let client = client(server.channel.clone(), writer, None);
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let mut session = server.session().await;
    let node = session.request().await.node.expect("the first request");
    assert_eq!(node.client_features, ["xds.config.supports-resource-ttl"]);
}

#[tokio::test(start_paused = true)]
async fn a_route_table_that_was_refused_at_first_answers_503_and_not_404() {
    let tasks = Tasks::new();
    let (_server, mut session, config, _) = start(&tasks).await;
    let began = Instant::now();
    let mut bad = routes(SERVICE, &[SERVICE]);
    bad.virtual_hosts.push(bad.virtual_hosts[0].clone());
    let teach = async {
        session
            .subscribed(ResourceType::Listener, &[LISTENER])
            .await;
        let listener = http_listener();
        session
            .send(ResourceType::Listener, &[(LISTENER, &listener)])
            .await;
        session.subscribed(ResourceType::Route, &[SERVICE]).await;
        session.send(ResourceType::Route, &[(SERVICE, &bad)]).await;
        let reason = session.acknowledged().await.expect("a NACK");
        assert!(reason.starts_with(SERVICE), "{reason}");
    };
    let (resolution, ()) = tokio::join!(config.resolve(destination()), teach);
    assert!(matches!(resolution, Resolution::Known(_)));
    assert!(
        began.elapsed() < MINUTE / 60,
        "nobody waits for what was refused"
    );
    let action = |config: &Config| config.load().routes[SERVICE].routes[0].action.clone();
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    assert!(matches!(action(&config), RouteAction::Respond(status) if status == unavailable));

    // It stays so, and nobody says that nothing was answered; what is good then takes its place.
    sleep(MINUTE).await;
    assert!(matches!(action(&config), RouteAction::Respond(_)));
    let _in_use = config.hold(destination());
    let good = routes(SERVICE, &[SERVICE]);
    session.send(ResourceType::Route, &[(SERVICE, &good)]).await;
    session.subscribed(ResourceType::Cluster, &[SERVICE]).await;
    let kind = ResourceType::Cluster;
    session.send(kind, &[(SERVICE, &cluster(SERVICE, 1))]).await;
    session
        .subscribed(ResourceType::Endpoints, &[SERVICE])
        .await;
    let none = load_assignment(SERVICE, Vec::new());
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &none)])
        .await;
    assert_eq!(session.acknowledged().await, None);
    assert!(matches!(action(&config), RouteAction::Forward(_)));
    // And what is refused then changes nothing.
    session.send(ResourceType::Route, &[(SERVICE, &bad)]).await;
    assert!(session.acknowledged().await.is_some());
    assert!(matches!(action(&config), RouteAction::Forward(_)));
    let table: Arc<RouteTable> = config.load().routes[SERVICE].clone();
    assert_eq!(&*table.name, SERVICE);
}

#[tokio::test(start_paused = true)]
async fn lifetimes_of_next_to_no_time_make_no_storm() {
    const STEP: std::time::Duration = std::time::Duration::from_millis(5);
    let tasks = Tasks::new();
    let (_server, mut session, config, _) = taught(&tasks).await;
    let _in_use = config.hold(destination());
    let endpoints = pack(&load_assignment(SERVICE, vec![endpoint("10.1.0.2")]));
    let (steps, mut gone) = (2_000, 0);
    for _ in 0..steps {
        let kind = ResourceType::Endpoints;
        session
            .live_for(kind, SERVICE, Some(endpoints.clone()), STEP / 5)
            .await;
        session.drain();
        // It is over by now, every time.
        sleep(STEP).await;
        gone += u32::from(!serves(&config));
    }
    assert!((5..=12).contains(&gone), "{gone} of {steps} in ten seconds");
}
