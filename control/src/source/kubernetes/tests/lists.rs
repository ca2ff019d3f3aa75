//! Lists: streaming, in pages, and those that break off.

use super::*;

#[tokio::test]
async fn a_list_that_streams_counts_when_it_is_complete() {
    let mut rig = Rig::services(SETTINGS).await;
    let asked = rig.server.asked().await;
    assert!(
        asked.is_streaming_list() && asked.target.starts_with(PATH),
        "{}",
        asked.target
    );
    assert_eq!(asked.parameter("resourceVersion"), "", "as it is now");
    let mut stream = asked.begin().await;
    stream.event("ADDED", &service("a", 1)).await;
    stream.bookmark("50").await;
    stream.event("ADDED", &service("b", 2)).await;
    assert!(!rig.store.world().synced());
    stream.complete("100").await;
    let world = rig.until(World::synced).await;
    assert_eq!(names(&world), ["a", "b"]);
    stream.event("ADDED", &service("c", 101)).await;
    rig.until(|world| names(world) == ["a", "b", "c"]).await;
}

#[tokio::test]
async fn what_goes_while_a_list_streams_is_not_in_it() {
    let mut rig = Rig::services(SETTINGS).await;
    let mut stream = rig.server.asked().await.begin().await;
    // In no order of versions.
    for (name, version) in [("a", 2), ("b", 1)] {
        stream.event("ADDED", &service(name, version)).await;
    }
    stream.event("DELETED", &service("a", 3)).await;
    stream.complete("100").await;
    let world = rig.until(World::synced).await;
    assert_eq!(names(&world), ["b"]);
}

#[tokio::test]
async fn a_list_comes_in_pages_where_it_cannot_stream() {
    for refusal in ["400", "422", "an event", "nothing"] {
        let settings = Settings {
            answer: match refusal {
                // As of a server that does not know what is asked of it.
                "nothing" => Duration::from_millis(300),
                _ => DEADLINE,
            },
            ..SETTINGS
        };
        let mut rig = Rig::services(settings).await;
        let asked = rig.server.asked().await;
        assert!(asked.is_streaming_list());
        let mut open = None;
        match refusal {
            "an event" => asked.begin().await.error(500).await,
            "nothing" => {
                let mut stream = asked.begin().await;
                stream.event("ADDED", &service("a", 1)).await;
                open = Some(stream);
            }
            code => asked.refuse(code.parse().expect("a code")).await,
        }
        let asked = rig.server.asked().await;
        assert!(
            asked.is_list() && asked.parameter("limit") == "500",
            "{}",
            asked.target
        );
        asked.page("100", "more", &[service("a", 1)]).await;
        let asked = rig.server.asked().await;
        assert_eq!(asked.parameter("continue"), "more");
        assert!(!rig.store.world().synced());
        asked.page("100", "", &[service("b", 2)]).await;
        let world = rig.until(World::synced).await;
        assert_eq!(names(&world), ["a", "b"], "{refusal}");
        assert!(rig.server.asked().await.is_watch_from("100"));
        drop(open);
    }
}

#[tokio::test]
async fn nothing_vanishes_while_everything_is_listed_anew() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1), ("b", 2)]).await;
    stream.error(410).await;
    // One that breaks off, and has told of something that is soon gone.
    let mut stream = rig.server.asked().await.begin().await;
    stream.event("ADDED", &service("c", 101)).await;
    drop(stream);
    let asked = rig.server.asked().await;
    assert!(asked.is_list(), "{}", asked.target);
    assert_eq!(rig.names()[..2], ["a", "b"]);
    // One that is not complete, ever.
    asked
        .page("102", "more", &[service("c", 101), service("d", 102)])
        .await;
    rig.until(|world| names(world) == ["a", "b", "c", "d"])
        .await;
    rig.server.asked().await.refuse(410).await;
    let asked = rig.server.asked().await;
    assert_eq!(rig.names(), ["a", "b", "c", "d"]);
    assert_eq!(asked.parameter("limit"), "", "pages expire too soon");
    // And one that is.
    asked
        .page("103", "", &[service("b", 103), service("d", 102)])
        .await;
    let world = rig.until(|world| names(world) == ["b", "d"]).await;
    assert_eq!(port(&world, "b"), Some(103));
    assert!(rig.server.asked().await.is_watch_from("103"));
}

#[tokio::test]
async fn what_is_gone_goes_in_one_update_with_what_is_new() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1), ("b", 2), ("c", 3)]).await;
    stream.error(410).await;
    let mut stream = rig.server.asked().await.begin().await;
    stream.complete("104").await;
    let update = rig.update().await;
    assert_eq!(update.changed.len(), 3);
    assert!(names(&update.world).is_empty(), "an empty list is a list");
}

#[tokio::test]
async fn a_list_counts_even_where_it_has_older_versions() {
    // As after a backup of etcd was restored.
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 90)]).await;
    stream.error(410).await;
    let mut stream = rig.server.asked().await.begin().await;
    stream.event("ADDED", &service("a", 7)).await;
    stream.complete("8").await;
    let world = rig.until(|world| port(world, "a") == Some(7)).await;
    assert_eq!(names(&world), ["a"]);
    stream.event("MODIFIED", &service("a", 9)).await;
    rig.until(|world| port(world, "a") == Some(9)).await;
}

#[tokio::test]
async fn a_list_without_a_version_is_none() {
    let mut rig = Rig::services(SETTINGS).await;
    rig.server.asked().await.refuse(422).await;
    rig.server
        .asked()
        .await
        .page("", "", &[service("a", 1)])
        .await;
    rig.server.asked().await.answer(200, "<html>").await;
    let asked = rig.server.asked().await;
    assert!(asked.is_list() && !rig.store.world().synced());
    asked
        .answer(200, r#"{"metadata":{"resourceVersion":"7"},"items":null}"#)
        .await;
    let world = rig.until(World::synced).await;
    assert!(names(&world).is_empty());
}
