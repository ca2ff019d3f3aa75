//! Outages, hangs, and watches that end.

use super::*;

/// The watch of a rig after the one that just ended.
async fn resumed(rig: &mut Rig, version: &str) -> Stream {
    let asked = rig.server.asked().await;
    assert!(asked.is_watch_from(version), "{}", asked.target);
    asked.begin().await
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_was() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.event("MODIFIED", &service("a", 101)).await;
    rig.until(|world| port(world, "a") == Some(101)).await;
    stream.end().await;
    let mut stream = resumed(&mut rig, "101").await;
    stream.bookmark("110").await;
    stream.end().await;
    let mut stream = resumed(&mut rig, "110").await;
    stream.event("DELETED", &service("a", 111)).await;
    rig.until(|world| names(world).is_empty()).await;
    // In the middle of a line.
    stream.text("{\"type\":\"ADDED\",\"obj").await;
    drop(stream);
    resumed(&mut rig, "111").await;
}

#[tokio::test]
async fn an_outage_keeps_the_last_state_and_is_reported_until_it_ends() {
    let (mut rig, stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    drop(stream);
    for _ in 0..3 {
        drop(rig.server.asked().await);
        rig.server.asked().await.refuse(429).await;
    }
    let asked = rig.server.asked().await;
    assert!(asked.is_watch_from("100"), "{}", asked.target);
    let problems = rig.report.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = problems[0].to_string();
    assert!(
        problem.starts_with("services: ") && problem.contains("429: by hand"),
        "{problem}"
    );
    assert_eq!(rig.names(), ["a"]);
    let mut stream = asked.begin().await;
    stream.event("ADDED", &service("b", 101)).await;
    rig.until(|world| names(world) == ["a", "b"]).await;
    assert!(rig.report.is_empty());
    let failures = |reason: &str| {
        format!("source_watch_failures_total{{kind=\"Service\",reason=\"{reason}\"}}")
    };
    assert_eq!(rig.metric(&failures("throttled")).as_deref(), Some("3"));
    let restarts = rig.metric("source_watch_restarts_total{kind=\"Service\"}");
    assert_eq!(restarts.as_deref(), Some("7"));
    let age = rig.metric("source_contact_age_seconds{kind=\"Service\"}");
    assert!(age.is_some_and(|age| age.parse::<f64>().is_ok_and(|age| age < 20.0)));
}

#[tokio::test]
async fn answers_that_are_errors_of_any_shape_are_asked_again() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.error(500).await;
    let asked = rig.server.asked().await;
    assert!(asked.is_watch_from("100"), "{}", asked.target);
    asked.answer(502, "<html>bad gateway</html>").await;
    let asked = rig.server.asked().await;
    assert!(asked.is_watch_from("100"), "{}", asked.target);
    asked.answer(403, r#"{"message":"no"}"#).await;
    resumed(&mut rig, "100").await;
    assert_eq!(rig.names(), ["a"]);
}

#[tokio::test]
async fn a_server_that_hangs_is_asked_again() {
    let settings = Settings {
        answer: Duration::from_secs(1),
        begin: Duration::from_secs(1),
        lasts: (Duration::from_secs(1), Duration::from_secs(1)),
        grace: Duration::ZERO,
        ..SETTINGS
    };
    let mut rig = Rig::services(settings).await;
    let silent_head = rig.server.asked().await;
    let silent_body = rig.server.asked().await.begin().await;
    let silent_page = rig.server.asked().await;
    assert!(silent_page.is_list());
    let asked = rig.server.asked().await;
    asked.page("100", "", &[service("a", 1)]).await;
    let silent_watch = resumed(&mut rig, "100").await;
    let silent_begin = rig.server.asked().await;
    assert!(silent_begin.is_watch_from("100"));
    let again = resumed(&mut rig, "100").await;
    assert_eq!(rig.names(), ["a"]);
    let silent = rig.metric("source_watch_failures_total{kind=\"Service\",reason=\"silent\"}");
    assert_eq!(silent.as_deref(), Some("5"));
    drop((silent_head, silent_body, silent_page));
    drop((silent_watch, silent_begin, again));
}

#[tokio::test]
async fn a_watch_that_began_with_a_list_is_short_as_well() {
    let settings = Settings {
        lasts: (Duration::from_secs(1), Duration::from_secs(1)),
        ..SETTINGS
    };
    let (mut rig, mut silent) = Rig::listed(settings, &[("a", 1)]).await;
    let mut stream = resumed(&mut rig, "100").await;
    // Nobody listens there any more.
    silent.event("ADDED", &service("b", 101)).await;
    stream.event("ADDED", &service("c", 102)).await;
    rig.until(|world| names(world) == ["a", "c"]).await;
    let failures = rig.metric("source_watch_failures_total{");
    assert_eq!(failures, None, "it is no failure");
}

#[tokio::test]
async fn an_api_server_that_hangs_is_noticed_as_soon_as_clients_in_go_notice_it() {
    let Settings {
        begin,
        lasts,
        grace,
        ..
    } = Settings::default();
    // They ask a silent connection after 30 s, and wait 15 s; the next one that is tried may be as bad here.
    assert!(lasts.1 + grace + begin < Duration::from_secs(45));
}

#[tokio::test]
async fn a_watch_that_is_refused_again_and_again_is_listed_anew() {
    let (mut rig, stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.end().await;
    // Of a version that is not there yet, because a backup was restored.
    for _ in 0..3 {
        let asked = rig.server.asked().await;
        assert!(asked.is_watch_from("100"), "{}", asked.target);
        asked.refuse(504).await;
    }
    let asked = rig.server.asked().await;
    assert!(asked.is_streaming_list(), "{}", asked.target);
    assert_eq!(rig.names(), ["a"]);
}

#[tokio::test]
async fn an_expired_version_is_listed_anew_whoever_says_so() {
    let (mut rig, stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.end().await;
    rig.server.asked().await.refuse(410).await;
    let mut stream = rig.server.asked().await.begin().await;
    stream.complete("200").await;
    rig.until(|world| names(world).is_empty()).await;
    stream.text("no event\n").await;
    let asked = rig.server.asked().await;
    assert!(
        asked.is_streaming_list(),
        "nobody knows what it missed: {}",
        asked.target
    );
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_a_failure() {
    let (mut rig, stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.end().await;
    for _ in 0..4 {
        resumed(&mut rig, "100").await.end().await;
    }
    resumed(&mut rig, "100").await;
    let ended = rig.metric("source_watch_failures_total{kind=\"Service\",reason=\"ended\"}");
    assert!(ended.is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count >= 4)));
    assert_eq!(rig.report.len(), 1);
}
