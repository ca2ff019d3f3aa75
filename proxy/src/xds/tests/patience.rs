//! Hours with a control plane that is gone, silent or out of its mind, by a clock that the test moves: how often the
//! client tries, how much it listens, and that what it knows stays in use.

use std::sync::atomic::Ordering;

use tokio::time::{Instant, sleep};
use tonic::Status;

use super::server::nobody;
use super::*;

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
/// Full jitter up to five seconds: 1,440 attempts an hour are expected, and twice as many would be a bug.
const ATTEMPTS: std::ops::Range<usize> = 700..2_900;

/// A client of a server in memory; it has asked for `inbound`, and is in the middle of its first stream.
pub(super) async fn start(tasks: &Tasks) -> (ScriptedServer, Session, Config, XdsStatus) {
    let mut server = ScriptedServer::in_memory(tasks);
    let (config, writer) = Config::new(Snapshot::default());
    let client = client(server.channel.clone(), writer, None);
    let status = client.status();
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let mut session = server.session().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    (server, session, config, status)
}

/// The same, and the destination is known.
pub(super) async fn taught(tasks: &Tasks) -> (ScriptedServer, Session, Config, XdsStatus) {
    let (server, mut session, config, status) = start(tasks).await;
    let (resolution, ()) = tokio::join!(config.resolve(destination()), teach(&mut session));
    assert!(matches!(resolution, Resolution::Known(_)));
    (server, session, config, status)
}

pub(super) fn serves(config: &Config) -> bool {
    let snapshot = config.load();
    let cluster = snapshot.cluster(SERVICE);
    snapshot.lookup(destination()).is_some()
        && cluster.is_some_and(|cluster| cluster.endpoints.len() == 1)
}

#[tokio::test(start_paused = true)]
async fn row_43_a_control_plane_that_is_gone_for_an_hour_is_tried_now_and_then() {
    let (channel, attempts) = nobody();
    let tasks = Tasks::new();
    let (_config, writer) = Config::new(Snapshot::default());
    let client = client(channel, writer, None);
    let status = client.status();
    tasks.spawn("xds", client.run(tasks.cancelled()));
    sleep(HOUR).await;
    let attempts = attempts.load(Ordering::Relaxed);
    assert!(
        ATTEMPTS.contains(&attempts),
        "{attempts} attempts in an hour"
    );
    assert!(!status.report().connected);
    assert!(status.report().last_error.is_some());
}

#[tokio::test(start_paused = true)]
async fn row_45_whoever_lost_the_control_plane_at_the_same_moment_comes_back_at_another() {
    const HERD: usize = 500;
    const SLOT: std::time::Duration = std::time::Duration::from_millis(100);
    let (channel, attempts) = nobody();
    let tasks = Tasks::new();
    let mut configs = Vec::new();
    for _ in 0..HERD {
        let (config, writer) = Config::new(Snapshot::default());
        let client = client(channel.clone(), writer, None);
        tasks.spawn("xds", client.run(tasks.cancelled()));
        configs.push(config);
    }
    // Half a minute in slots. All come in the first: that is what they lost it in.
    let mut slots = Vec::new();
    for _ in 0..300 {
        let before = attempts.load(Ordering::Relaxed);
        sleep(SLOT).await;
        slots.push(attempts.load(Ordering::Relaxed) - before);
    }
    assert!(slots[0] >= HERD, "{slots:?}");
    // After ten seconds each waits up to five: a twenty-fifth of them is expected in each slot.
    let late = &slots[100..];
    assert!(late.iter().all(|slot| *slot < HERD / 8), "{slots:?}");
    let all: usize = late.iter().sum();
    assert!(all > 4 * HERD, "they try no more: {slots:?}");
}

#[tokio::test(start_paused = true)]
async fn row_43_what_is_known_outlives_an_hour_of_streams_that_are_reset_and_changes_after_it() {
    let tasks = Tasks::new();
    let (mut server, mut session, config, _) = taught(&tasks).await;
    let end = Instant::now() + HOUR;
    let mut streams = 0;
    while Instant::now() < end {
        session.fail(Status::unavailable("again")).await;
        session = server.session().await;
        streams += 1;
        // Connections in use must not make the answers go; nobody else asks in this hour.
        assert!(serves(&config), "after {streams} streams");
    }
    assert!(ATTEMPTS.contains(&streams), "{streams} streams in an hour");
    let moved = load_assignment(SERVICE, vec![endpoint("10.1.0.9"), endpoint("10.1.0.8")]);
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &moved)])
        .await;
    assert_eq!(session.acknowledged().await, None);
    assert_eq!(
        config
            .load()
            .cluster(SERVICE)
            .expect("there")
            .endpoints
            .len(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn row_43_a_server_that_takes_questions_and_answers_none_is_left_for_another() {
    let tasks = Tasks::new();
    let (mut server, session, _config, status) = start(&tasks).await;
    let end = Instant::now() + HOUR;
    let mut sessions = vec![session];
    while Instant::now() < end {
        sessions.push(server.session().await);
        let error = status.report().last_error.expect("it is not well");
        assert!(error.contains("answers none"), "{error}");
    }
    // Thirty seconds, and up to five until the next.
    assert!((100..122).contains(&sessions.len()), "{}", sessions.len());
}

#[tokio::test(start_paused = true)]
async fn row_44_a_stream_does_not_get_older_than_about_an_hour() {
    let tasks = Tasks::new();
    let (mut server, mut session, config, status) = taught(&tasks).await;
    // What has never been answered would be another reason.
    session.remove(ResourceType::Listener, &["inbound"]).await;
    let _in_use = config.hold(destination());
    let began = Instant::now();
    let mut sessions = vec![session];
    for _ in 0..3 {
        sessions.push(server.session_within(2 * HOUR).await);
    }
    let each = began.elapsed() / 3;
    let expected = HOUR.mul_f64(0.9)..HOUR.mul_f64(1.1);
    assert!(expected.contains(&each), "{each:?}");
    assert!(serves(&config));
    assert_eq!(status.report().last_error, None, "that is no failure");
}

#[tokio::test(start_paused = true)]
async fn row_39_a_server_that_sends_what_was_refused_again_and_again_is_answered_ever_later() {
    let tasks = Tasks::new();
    let (_server, mut session, config, status) = taught(&tasks).await;
    assert_eq!(session.acknowledged().await, None);
    let _in_use = config.hold(destination());
    let mut bad = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    bad.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(Default::default());
    // Within the life of one stream.
    let end = Instant::now() + HOUR / 2;
    let mut pushes = 0;
    while Instant::now() < end {
        session
            .send(ResourceType::Endpoints, &[(SERVICE, &bad)])
            .await;
        let reason = session.acknowledged().await.expect("a NACK");
        assert!(reason.starts_with(SERVICE), "{reason}");
        pushes += 1;
    }
    assert!((250..450).contains(&pushes), "{pushes} in half an hour");
    assert!(serves(&config));
    assert_eq!(status.report().types["EDS"].rejects, pushes);

    // Meanwhile a question is asked at once, and the fix counts at once.
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &bad)])
        .await;
    let now = Instant::now();
    let other: SocketAddr = "10.0.0.7:80".parse().expect("an address");
    let ask = config.resolve(other);
    let script = async {
        session
            .subscribed(ResourceType::Listener, &["outbound|10.0.0.7|80"])
            .await;
    };
    tokio::join!(script, async { drop(ask.await) });
    assert!(now.elapsed() <= std::time::Duration::from_secs(2));
    let good = load_assignment(SERVICE, vec![endpoint("10.1.0.2"), endpoint("10.1.0.3")]);
    session
        .send(ResourceType::Endpoints, &[(SERVICE, &good)])
        .await;
    assert_eq!(session.acknowledged().await, None);
    assert_eq!(
        config
            .load()
            .cluster(SERVICE)
            .expect("there")
            .endpoints
            .len(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_responses_is_listened_to_at_a_steady_rate() {
    let tasks = Tasks::new();
    let (_server, mut session, config, _) = taught(&tasks).await;
    let same = load_assignment(SERVICE, vec![endpoint("10.1.0.2")]);
    let began = Instant::now();
    for _ in 0..6_000 {
        session
            .send(ResourceType::Endpoints, &[(SERVICE, &same)])
            .await;
        session.drain();
    }
    assert_eq!(session.acknowledged().await, None);
    // 4,096 at once and 1,000 a second.
    let took = began.elapsed();
    assert!((1_800..2_500).contains(&took.as_millis()), "{took:?}");
    assert!(serves(&config));
}
