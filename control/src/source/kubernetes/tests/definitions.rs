//! Kinds that come, go and change with their CustomResourceDefinition.

use super::*;
use crate::source::kubernetes::kinds::{Custom, OPTIONAL};
use crate::source::kubernetes::optional::Optional;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const NAME: &str = "httproutes.gateway.networking.k8s.io";

/// Follows HTTPRoutes, if there are any; with the watch of their definition.
async fn routes(definition: Option<Value>) -> (Rig, Stream) {
    let (rig, stream) = routes_and(definition).await;
    rig.snapshots.listed(&BTreeSet::new());
    (rig, stream)
}

/// The same; nobody has listed yet what is stored of them.
pub(super) async fn routes_and(definition: Option<Value>) -> (Rig, Stream) {
    objects_of(&OPTIONAL[0], definition).await
}

/// The same, of any kind.
pub(super) async fn objects_of(
    custom: &'static Custom,
    definition: Option<Value>,
) -> (Rig, Stream) {
    let (mut rig, writer) = Rig::empty().await;
    let (sender, messages) = mpsc::channel(super::super::WAITING);
    let missing = BTreeSet::from([custom.kind]);
    rig.tasks.spawn(
        "writer",
        writer::run(writer, messages, rig.wait(missing), rig.claims.clone()),
    );
    let follower = Optional::new(
        custom,
        rig.server.client(),
        SETTINGS,
        rig.report.clone(),
        rig.snapshots.clone(),
        sender,
    );
    let cancelled = rig.tasks.cancelled();
    rig.tasks.spawn("routes", async move {
        tokio::select! {
            () = follower.run() => {}
            () = cancelled => {}
        }
    });
    let asked = rig.server.asked_for(DEFINITIONS).await;
    assert_eq!(
        asked.parameter("fieldSelector"),
        format!("metadata.name%3D{}", custom.definition)
    );
    let mut stream = asked.begin().await;
    if let Some(definition) = definition {
        stream.event("ADDED", &definition).await;
    }
    stream.complete("10").await;
    (rig, stream)
}

pub(super) fn definition(version: u64, served: &[(&str, bool)]) -> Value {
    let versions = served
        .iter()
        .map(|(name, served)| json!({ "name": name, "served": served }));
    json!({
        "metadata": { "name": NAME, "resourceVersion": version.to_string() },
        "spec": { "versions": versions.collect::<Vec<_>>() },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    })
}

pub(super) fn route(name: &str, version: u64) -> Value {
    let parent = json!({ "group": "", "kind": "Service", "name": "web" });
    json!({
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string() },
        "spec": { "parentRefs": [parent] },
    })
}

pub(super) fn path(version: &str) -> String {
    format!("/apis/gateway.networking.k8s.io/{version}/httproutes")
}

pub(super) fn names(world: &World) -> Vec<String> {
    world.routes().map(|it| it.key.name.to_string()).collect()
}

#[tokio::test]
async fn a_kind_that_does_not_exist_holds_nobody_up_and_is_followed_once_it_does() {
    let (mut rig, mut definitions) = routes(None).await;
    rig.until(World::synced).await;
    definitions
        .event("ADDED", &definition(11, &[("v1", true), ("v1beta1", true)]))
        .await;
    let asked = rig.server.asked_for(&path("v1")).await;
    let mut stream = asked.begin().await;
    stream.event("ADDED", &route("a", 12)).await;
    stream.complete("13").await;
    rig.until(|world| names(world) == ["a"]).await;
}

#[tokio::test]
async fn a_kind_that_exists_is_waited_for() {
    let (mut rig, _definitions) = routes(Some(definition(1, &[("v1", true)]))).await;
    let asked = rig.server.asked_for(&path("v1")).await;
    let mut stream = asked.begin().await;
    stream.event("ADDED", &route("a", 2)).await;
    assert!(!rig.store.world().synced());
    stream.complete("13").await;
    let world = rig.until(World::synced).await;
    assert_eq!(names(&world), ["a"]);
}

#[tokio::test]
async fn objects_stay_while_another_version_of_their_kind_is_served() {
    let (mut rig, mut definitions) = routes(Some(definition(1, &[("v1beta1", true)]))).await;
    let mut stream = rig.server.asked_for(&path("v1beta1")).await.begin().await;
    stream.event("ADDED", &route("a", 2)).await;
    stream.event("ADDED", &route("b", 3)).await;
    stream.complete("13").await;
    rig.until(World::synced).await;
    definitions
        .event(
            "MODIFIED",
            &definition(14, &[("v1", true), ("v1beta1", false)]),
        )
        .await;
    let asked = rig.server.asked_for(&path("v1")).await;
    assert_eq!(names(&rig.store.world()), ["a", "b"]);
    let mut stream = asked.begin().await;
    stream.event("ADDED", &route("b", 3)).await;
    stream.complete("15").await;
    rig.until(|world| names(world) == ["b"]).await;
}

#[tokio::test]
async fn objects_go_with_their_definition() {
    for how in ["deleted", "missed"] {
        let (mut rig, mut definitions) = routes(Some(definition(1, &[("v1", true)]))).await;
        let mut stream = rig.server.asked_for(&path("v1")).await.begin().await;
        stream.event("ADDED", &route("a", 2)).await;
        stream.complete("13").await;
        rig.until(|world| world.synced() && names(world) == ["a"])
            .await;
        match how {
            "deleted" => {
                definitions
                    .event("DELETED", &definition(14, &[("v1", true)]))
                    .await
            }
            _ => {
                definitions.error(410).await;
                let mut list = rig.server.asked_for(DEFINITIONS).await.begin().await;
                assert_eq!(names(&rig.store.world()), ["a"]);
                list.complete("15").await;
                definitions = list;
            }
        }
        rig.until(|world| names(world).is_empty()).await;
        // And it comes back.
        definitions
            .event("ADDED", &definition(16, &[("v1", true)]))
            .await;
        let mut stream = rig.server.asked_for(&path("v1")).await.begin().await;
        stream.event("ADDED", &route("b", 17)).await;
        stream.complete("18").await;
        rig.until(|world| names(world) == ["b"]).await;
    }
}

#[tokio::test]
async fn a_definition_whose_versions_are_all_unknown_is_reported() {
    let (mut rig, mut definitions) = routes(Some(definition(1, &[("v3", true)]))).await;
    rig.until(World::synced).await;
    let problem = rig.report.problems().remove(0);
    assert_eq!(problem.field, "spec.versions");
    assert!(
        problem.message.contains("v3") && problem.message.contains("v1 or v1beta1"),
        "{problem}"
    );
    definitions
        .event("MODIFIED", &definition(12, &[("v3", true), ("v1", true)]))
        .await;
    rig.server.asked_for(&path("v1")).await;
    assert!(rig.report.is_empty());
}

#[tokio::test]
async fn what_is_known_stays_while_a_definition_serves_nothing_that_can_be_read() {
    for served in [&[("v1", false)][..], &[("v1", false), ("v3", true)]] {
        let (mut rig, mut definitions) = routes(Some(definition(1, &[("v1", true)]))).await;
        let mut stream = rig.server.asked_for(&path("v1")).await.begin().await;
        stream.event("ADDED", &route("a", 2)).await;
        stream.complete("13").await;
        rig.until(|world| world.synced() && names(world) == ["a"])
            .await;
        definitions.event("MODIFIED", &definition(14, served)).await;
        while rig.report.is_empty() {
            tokio::task::yield_now().await;
        }
        let problem = rig.report.problems().remove(0);
        assert!(problem.message.contains("stays in force"), "{problem}");
        assert_eq!(names(&rig.store.world()), ["a"]);
        definitions
            .event("MODIFIED", &definition(16, &[("v1", true)]))
            .await;
        let mut stream = rig.server.asked_for(&path("v1")).await.begin().await;
        assert!(rig.report.is_empty());
        stream.event("ADDED", &route("b", 17)).await;
        stream.complete("18").await;
        rig.until(|world| names(world) == ["b"]).await;
    }
}

#[tokio::test]
async fn policies_whose_definition_serves_nothing_that_can_be_read_are_waited_for() {
    for served in [&[("v1", true)][..], &[]] {
        let (mut rig, mut definitions) =
            objects_of(&OPTIONAL[4], Some(definition(1, served))).await;
        rig.snapshots.listed(&BTreeSet::new());
        while rig.report.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!rig.store.world().synced());
        let unread = rig.report.unread();
        for words in [
            ": PeerAuthentication\nCustomResourceDefinition peerauthentications.tulle.dev: serves ",
            "serve v1alpha1",
        ] {
            assert!(unread.contains(words), "{unread}");
        }
        let unread = "source_unread{kind=\"PeerAuthentication\"}";
        assert_eq!(rig.metric(unread).as_deref(), Some("1"));
        definitions
            .event("MODIFIED", &definition(16, &[("v1alpha1", true)]))
            .await;
        let policies = "/apis/tulle.dev/v1alpha1/peerauthentications";
        let mut stream = rig.server.asked_for(policies).await.begin().await;
        stream.complete("18").await;
        rig.until(World::synced).await;
        assert!(rig.report.is_empty(), "{:?}", rig.report.problems());
        assert_eq!(rig.metric(unread), None);
    }
    // One that goes takes all that there may be along.
    let (mut rig, mut definitions) =
        objects_of(&OPTIONAL[4], Some(definition(1, &[("v1", true)]))).await;
    rig.snapshots.listed(&BTreeSet::new());
    definitions
        .event("DELETED", &definition(12, &[("v1", true)]))
        .await;
    rig.until(World::synced).await;
    assert!(rig.report.is_empty(), "{:?}", rig.report.problems());
}

#[tokio::test]
async fn a_definition_that_cannot_be_read_changes_nothing() {
    let (mut rig, mut definitions) = routes(Some(definition(1, &[("v1", true)]))).await;
    let mut stream = rig.server.asked_for(&path("v1")).await.begin().await;
    stream.event("ADDED", &route("a", 2)).await;
    stream.complete("13").await;
    rig.until(World::synced).await;
    definitions
        .event(
            "MODIFIED",
            &json!({ "metadata": { "resourceVersion": "14" }, "spec": 7 }),
        )
        .await;
    definitions.error(410).await;
    let mut list = rig.server.asked_for(DEFINITIONS).await.begin().await;
    list.event("ADDED", &json!({ "spec": 7 })).await;
    list.complete("15").await;
    stream.event("ADDED", &route("b", 16)).await;
    rig.until(|world| names(world) == ["a", "b"]).await;
}

#[tokio::test]
async fn routes_claim_what_they_ask_for_whether_they_can_be_used_or_not() {
    let (mut rig, mut definitions) = routes(Some(definition(1, &[("v1beta1", true)]))).await;
    let mut stream = rig.server.asked_for(&path("v1beta1")).await.begin().await;
    let bad = |version| {
        let mut bad = route("b", version);
        bad["spec"]["rules"] = json!([{ "filters": [{ "type": "Odd" }] }]);
        bad
    };
    let mut gateway = route("c", 4);
    gateway["spec"]["parentRefs"] = json!([{ "name": "front" }]);
    for object in [route("a", 2), bad(3), gateway] {
        stream.event("ADDED", &object).await;
    }
    stream.complete("13").await;
    let mut changes = rig.claims.subscribe();
    let claimed = |claims: &Claims| {
        let (_, claims) = claims.all();
        let names = claims.iter().map(|(route, claim)| {
            let usable = format!("{claim:?}").contains("problem: None");
            (route.key.name.to_string(), usable)
        });
        names.collect::<Vec<_>>()
    };
    let mut until = async |wanted: &[(&str, bool)]| {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, usable)| ((*name).to_owned(), *usable))
            .collect();
        while claimed(&rig.claims) != wanted {
            let changed = tokio::time::timeout(DEADLINE, changes.changed()).await;
            changed.expect("in time").expect("somebody writes");
        }
    };
    until(&[("a", true), ("b", false)]).await;
    assert_eq!(names(&rig.store.world()), ["a"], "the store has it first");
    stream.event("MODIFIED", &route("b", 14)).await;
    until(&[("a", true), ("b", true)]).await;
    stream.event("MODIFIED", &bad(15)).await;
    until(&[("a", true), ("b", false)]).await;
    stream.event("DELETED", &route("a", 16)).await;
    until(&[("b", false)]).await;
    definitions
        .event("DELETED", &definition(17, &[("v1beta1", true)]))
        .await;
    until(&[]).await;
    rig.until(|world| names(world).is_empty()).await;
}
