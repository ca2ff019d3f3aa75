//! Objects: those that cannot be used, and events that come twice or late.

use super::*;

fn bad(name: &str, version: u64) -> Value {
    let mut service = service(name, version);
    service["spec"]["ports"] = json!("none");
    service
}

#[tokio::test]
async fn an_object_that_cannot_be_used_is_skipped_counted_and_reported() {
    let mut rig = Rig::services(SETTINGS).await;
    let mut stream = rig.server.asked().await.begin().await;
    stream.event("ADDED", &bad("a", 1)).await;
    stream.event("ADDED", &service("b", 2)).await;
    stream.complete("100").await;
    let world = rig.until(World::synced).await;
    assert_eq!(names(&world), ["b"]);
    let problems = rig.report.problems();
    assert_eq!(problems.len(), 1);
    let problem = &problems[0];
    assert_eq!(
        (problem.object.as_str(), problem.field.as_str()),
        ("Service shop/a", "spec.ports")
    );
    let skipped = rig.metric("source_objects_skipped_total{kind=\"Service\"}");
    assert_eq!(skipped.as_deref(), Some("1"));

    stream.event("MODIFIED", &service("a", 101)).await;
    rig.until(|world| names(world) == ["a", "b"]).await;
    assert!(rig.report.is_empty());
}

#[tokio::test]
async fn an_object_that_breaks_stays_what_it_was_until_it_is_gone() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1), ("b", 2)]).await;
    stream.event("MODIFIED", &bad("a", 101)).await;
    stream.event("MODIFIED", &service("b", 102)).await;
    let world = rig.until(|world| port(world, "b") == Some(102)).await;
    assert_eq!(port(&world, "a"), Some(1));
    stream.error(410).await;
    let mut stream = rig.server.asked().await.begin().await;
    stream.event("ADDED", &bad("a", 101)).await;
    stream.complete("103").await;
    let world = rig.until(|world| port(world, "b").is_none()).await;
    assert_eq!(
        port(&world, "a"),
        Some(1),
        "a list has it, as broken as it is"
    );
    stream.event("DELETED", &bad("a", 104)).await;
    rig.until(|world| names(world).is_empty()).await;
    assert!(rig.report.is_empty());
}

#[tokio::test]
async fn events_that_come_twice_or_out_of_order_change_nothing() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    stream.event("MODIFIED", &service("a", 105)).await;
    stream.event("MODIFIED", &service("a", 105)).await;
    stream.event("MODIFIED", &service("a", 103)).await;
    stream.event("DELETED", &service("a", 104)).await;
    stream.event("ADDED", &service("b", 106)).await;
    let world = rig
        .until(|world| names(world).contains(&"b".to_owned()))
        .await;
    assert_eq!(port(&world, "a"), Some(105));
    assert_eq!(
        world.generation(Kind::Service),
        3,
        "one for each that was new"
    );
    stream.event("DELETED", &service("a", 107)).await;
    stream.event("DELETED", &service("a", 107)).await;
    stream.event("ADDED", &service("a", 108)).await;
    rig.until(|world| port(world, "a") == Some(108)).await;
}

#[tokio::test]
async fn an_event_that_comes_late_brings_nothing_back_that_is_gone() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    // In the list or not, it was gone by then.
    stream.event("ADDED", &service("ghost", 99)).await;
    stream.event("MODIFIED", &service("a", 106)).await;
    stream.event("DELETED", &service("a", 107)).await;
    stream.event("MODIFIED", &service("a", 106)).await;
    stream.bookmark("90").await;
    stream.event("ADDED", &service("b", 108)).await;
    stream.event("MODIFIED", &service("a", 105)).await;
    stream.event("ADDED", &service("c", 109)).await;
    stream.bookmark("100").await;
    let world = rig.until(|world| port(world, "c").is_some()).await;
    assert_eq!(names(&world), ["b", "c"]);
    // A watch goes on after the newest.
    stream.end().await;
    let asked = rig.server.asked().await;
    assert!(asked.is_watch_from("109"), "{}", asked.target);
    // Another one of that name is new.
    let mut stream = asked.begin().await;
    stream.event("ADDED", &service("a", 110)).await;
    rig.until(|world| port(world, "a") == Some(110)).await;
}

#[tokio::test]
async fn an_object_without_a_name_harms_nobody() {
    let (mut rig, mut stream) = Rig::listed(SETTINGS, &[("a", 1)]).await;
    for object in [json!({}), json!({ "metadata": null }), json!(7), json!([])] {
        stream.event("ADDED", &object).await;
        stream.event("DELETED", &object).await;
    }
    stream.event("ADDED", &service("b", 102)).await;
    rig.until(|world| names(world) == ["a", "b"]).await;
}
