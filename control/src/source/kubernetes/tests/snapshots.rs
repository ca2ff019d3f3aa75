//! Objects that an edit has broken, and what is stored of them: two replicas, one of which began late.

use tokio::time::Instant;

use super::definitions::{definition, names, objects_of, path, routes_and};
use super::*;
use crate::source::kubernetes::kinds::OPTIONAL;
use crate::source::kubernetes::snapshots::Follower;

const STORED: &str = "/apis/tulle.dev/v1alpha1/configsnapshots";
const POLICIES: &str = "/apis/tulle.dev/v1alpha1/peerauthentications";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";
const OTHER: &str = "0a1b2c3d-0000-4000-8000-000000000002";

/// A replica that follows routes and what is stored of them.
struct Replica {
    rig: Rig,
    routes: Stream,
    stored: Stream,
    _definitions: [Stream; 2],
}

impl Replica {
    /// One that finds these when it begins.
    async fn begun(routes: &[Value], stored: &[Value]) -> Self {
        let (mut rig, definitions) = routes_and(Some(definition(1, &[("v1", true)]))).await;
        let definitions = [definitions, follow(&mut rig, true).await];
        let mut list = rig.server.asked_for(&path("v1")).await.begin().await;
        for route in routes {
            list.event("ADDED", route).await;
        }
        list.complete("50").await;
        let mut snapshots = rig.server.asked_for(STORED).await.begin().await;
        for snapshot in stored {
            snapshots.event("ADDED", snapshot).await;
        }
        if routes.iter().any(is_broken) {
            assert!(!rig.store.world().synced(), "not before what is stored is");
        }
        snapshots.complete("50").await;
        rig.until(World::synced).await;
        Self {
            rig,
            routes: list,
            stored: snapshots,
            _definitions: definitions,
        }
    }

    /// Sees a change of the route, and waits until something is said of it.
    async fn sees(&mut self, kind: &str, route: &Value) {
        let mut claims = self.rig.claims.subscribe();
        claims.mark_unchanged();
        self.routes.event(kind, route).await;
        let changed = tokio::time::timeout(DEADLINE, claims.changed()).await;
        changed.expect("in time").expect("somebody writes");
    }

    /// Waits until its claim says this of the route.
    async fn says(&self, words: &str) {
        let mut claims = self.rig.claims.subscribe();
        let said = async {
            while !format!("{:?}", self.rig.claims.all().1).contains(words) {
                claims.changed().await.expect("somebody writes");
            }
        };
        let said = tokio::time::timeout(DEADLINE, said).await;
        assert!(said.is_ok(), "{words}: {:?}", self.rig.claims.all().1);
    }

    /// The route in force, if there is one.
    fn in_force(&self) -> Option<String> {
        let world = self.rig.store.world();
        let route = world.routes().next()?;
        Some(format!("{route:?}"))
    }
}

/// Follows what is stored, with its definition or without.
async fn follow(rig: &mut Rig, defined: bool) -> Stream {
    let follower = Follower::new(
        rig.server.client(),
        SETTINGS,
        rig.snapshots.clone(),
        rig.report.clone(),
    );
    rig.tasks.spawn_until_cancelled("snapshots", follower.run());
    let asked = rig.server.asked_for(DEFINITIONS).await;
    let name = "metadata.name%3Dconfigsnapshots.tulle.dev";
    assert_eq!(asked.parameter("fieldSelector"), name);
    let mut definitions = asked.begin().await;
    if defined {
        definitions
            .event("ADDED", &definition(1, &[("v1alpha1", true)]))
            .await;
    }
    definitions.complete("50").await;
    definitions
}

fn is_broken(route: &Value) -> bool {
    !route["spec"]["rules"][0]["filters"].is_null()
}

/// A route of a generation, with one backend of that weight; with a filter that nobody has if there is none.
fn route(uid: &str, generation: u64, weight: Option<u64>) -> Value {
    let backend =
        |weight| json!([{ "backendRefs": [{ "name": "web", "port": 80, "weight": weight }] }]);
    let version = if uid == UID { 100 } else { 200 } + generation;
    let rules = weight.map_or(json!([{ "filters": [{ "type": "Odd" }] }]), backend);
    json!({
        "metadata": {
            "name": "r", "namespace": "shop", "uid": uid, "generation": generation,
            "resourceVersion": version.to_string(),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }], "rules": rules },
    })
}

/// What the elected replica would store of a route of this weight.
async fn stored(generation: u64, weight: u64) -> Value {
    let mut replica = Replica::begun(&[route(UID, generation, Some(weight))], &[]).await;
    let broken = route(UID, generation + 1, None);
    replica.sees("MODIFIED", &broken).await;
    let mut missing = replica.rig.snapshots.missing();
    assert_eq!(missing.len(), 1);
    missing.remove(0)
}

#[tokio::test]
async fn what_is_in_force_does_not_depend_on_when_a_replica_began() {
    let mut first = Replica::begun(&[route(UID, 1, Some(7))], &[]).await;
    let in_force = first.in_force();
    assert!(in_force.is_some());
    let broken = route(UID, 2, None);
    first.sees("MODIFIED", &broken).await;
    assert_eq!(first.in_force(), in_force);
    first.says("Seen(1)").await;
    let snapshots = first.rig.snapshots.missing();
    for snapshot in &snapshots {
        first.stored.event("ADDED", snapshot).await;
    }
    first.says("Stored(1)").await;
    assert!(first.rig.snapshots.missing().is_empty());

    let mut late = Replica::begun(&[broken], &snapshots).await;
    assert_eq!(late.in_force(), in_force);
    late.says("Stored(1)").await;
    let late_missing = late.rig.snapshots.missing();
    assert!(late_missing.is_empty(), "{late_missing:?}");

    // Broken once more, in another way.
    for replica in [&mut first, &mut late] {
        replica.sees("MODIFIED", &route(UID, 3, None)).await;
        assert_eq!(replica.in_force(), in_force);
        replica.says("Stored(1)").await;
        replica.sees("MODIFIED", &route(UID, 4, Some(9))).await;
    }
    assert_ne!(first.in_force(), in_force);
    assert_eq!(first.in_force(), late.in_force());
    for replica in [&mut first, &mut late] {
        // The watch of it is behind, and it goes: neither changes what is in force.
        replica.stored.event("DELETED", &snapshots[0]).await;
        replica.sees("MODIFIED", &route(UID, 5, None)).await;
        replica.says("Seen(4)").await;
        replica.sees("DELETED", &route(UID, 5, None)).await;
        assert_eq!(replica.in_force(), None);
        assert!(replica.rig.snapshots.missing().is_empty());
    }
}

#[tokio::test]
async fn the_later_of_what_was_seen_and_what_is_stored_counts() {
    let [early, late] = [stored(1, 1).await, stored(3, 3).await];
    let mut replica = Replica::begun(&[route(UID, 2, Some(2))], std::slice::from_ref(&early)).await;
    let seen = replica.in_force();
    replica.sees("MODIFIED", &route(UID, 4, None)).await;
    replica.says("Seen(2)").await;
    assert_eq!(replica.in_force(), seen);
    // It has not seen generation 3, and another replica has.
    replica.stored.event("ADDED", &late).await;
    replica.says("Stored(3)").await;
    let later = replica.in_force();
    assert_ne!(later, seen);
    let begun = Replica::begun(&[route(UID, 4, None)], &[late, early]).await;
    assert_eq!(begun.in_force(), later);
}

#[tokio::test]
async fn what_is_stored_is_for_one_object_of_one_namespace_and_not_of_its_future() {
    let good = stored(2, 7).await;
    let mut elsewhere = good.clone();
    elsewhere["metadata"]["namespace"] = json!("other");
    for (snapshot, object, expected) in [
        (&good, route(UID, 3, None), true),
        (&good, route(OTHER, 3, None), false),
        (&good, route(UID, 1, None), false),
        (&elsewhere, route(UID, 3, None), false),
    ] {
        let replica = Replica::begun(&[object], std::slice::from_ref(snapshot)).await;
        assert_eq!(replica.in_force().is_some(), expected, "{snapshot}");
        replica
            .says(if expected { "Stored(2)" } else { "Nothing" })
            .await;
    }
    // Deleted and made anew, with the same mistake, while nobody looked.
    let mut replica = Replica::begun(&[route(UID, 2, Some(7))], &[]).await;
    replica.sees("MODIFIED", &route(OTHER, 1, None)).await;
    replica.says("Nothing").await;
    assert_eq!(replica.in_force(), None);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_is_reported_until_it_is_gone_and_none() {
    let good = stored(1, 7).await;
    let mut odd = good.clone();
    odd["metadata"]["ownerReferences"][0]["kind"] = json!("UDPRoute");
    let mut unusable = good.clone();
    unusable["spec"]["content"]["rules"] = json!([{ "filters": [{ "type": "Odder" }] }]);
    for (snapshot, words, problems) in [
        (&odd, "UDPRoute", 2),
        (
            &unusable,
            "generation 1, which is stored, cannot be used either",
            2,
        ),
    ] {
        let broken = route(UID, 2, None);
        let mut replica = Replica::begun(&[broken], std::slice::from_ref(snapshot)).await;
        let told = replica.rig.report.problems();
        let text: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), problems, "{text:#?}");
        assert!(text.iter().any(|it| it.contains(words)), "{text:#?}");
        assert_eq!(replica.in_force(), None);
        replica.stored.event("DELETED", snapshot).await;
        replica.stored.event("ADDED", &good).await;
        replica.says("Stored(1)").await;
        assert_eq!(replica.rig.report.len(), 1, "the route is broken still");
        assert_eq!(names(&replica.rig.store.world()), ["r"]);
    }
}

#[tokio::test]
async fn what_is_stored_and_cannot_be_listed_holds_nobody_up_and_counts_once_it_can() {
    let good = stored(1, 7).await;
    let (mut rig, _definitions) = routes_and(Some(definition(1, &[("v1", true)]))).await;
    let _theirs = follow(&mut rig, true).await;
    let mut list = rig.server.asked_for(&path("v1")).await.begin().await;
    list.event("ADDED", &route(UID, 2, None)).await;
    list.complete("50").await;
    while !rig.store.world().synced() {
        rig.server.asked_for(STORED).await.refuse(403).await;
    }
    assert_eq!(rig.store.world().routes().count(), 0);
    let problems = rig.report.problems();
    let problem = problems.iter().map(ToString::to_string);
    let problem =
        problem.filter(|it| it.starts_with("configsnapshots.tulle.dev: cannot be listed"));
    let problem = problem.collect::<String>();
    for words in ["nothing is in force", "403", "ClusterRole"] {
        assert!(problem.contains(words), "{problem}");
    }
    let unread = "source_unread{kind=\"ConfigSnapshot\"}";
    assert_eq!(rig.metric(unread).as_deref(), Some("1"));
    let mut snapshots = rig.server.asked_for(STORED).await.begin().await;
    snapshots.event("ADDED", &good).await;
    snapshots.complete("50").await;
    rig.until(|world| names(world) == ["r"]).await;
    assert_eq!(rig.metric(unread), None);
}

#[tokio::test]
async fn without_a_definition_nothing_is_stored_and_nobody_waits_and_that_is_said() {
    let (mut rig, _definitions) = routes_and(Some(definition(1, &[("v1", true)]))).await;
    let mut theirs = follow(&mut rig, false).await;
    let mut list = rig.server.asked_for(&path("v1")).await.begin().await;
    list.event("ADDED", &route(UID, 2, None)).await;
    list.complete("50").await;
    rig.until(World::synced).await;
    let said = |rig: &Rig| {
        let problems = rig.report.problems();
        let mut problems = problems.iter().map(ToString::to_string);
        problems.any(|it| it.contains("configsnapshots.tulle.dev") && it.contains("crds"))
    };
    assert!(said(&rig));
    // It comes later, with what was stored before.
    let good = stored(1, 7).await;
    theirs
        .event("ADDED", &definition(51, &[("v1alpha1", true)]))
        .await;
    let mut snapshots = rig.server.asked_for(STORED).await.begin().await;
    snapshots.event("ADDED", &good).await;
    snapshots.complete("50").await;
    rig.until(|world| names(world) == ["r"]).await;
    assert!(!said(&rig));
}

#[tokio::test]
async fn without_a_definition_a_policy_that_is_broken_opens_nothing() {
    let served = |version| definition(version, &[("v1alpha1", true)]);
    let (mut rig, _definitions) = objects_of(&OPTIONAL[4], Some(served(1))).await;
    let mut theirs = follow(&mut rig, false).await;
    let mut list = rig.server.asked_for(POLICIES).await.begin().await;
    list.event("ADDED", &policy("STRICTLY")).await;
    list.complete("50").await;
    let begun = Instant::now();
    while begun.elapsed() < SETTINGS.patience * 4 {
        tokio::task::yield_now().await;
    }
    assert!(!rig.store.world().synced());
    theirs.event("ADDED", &served(51)).await;
    let mut snapshots = rig.server.asked_for(STORED).await.begin().await;
    snapshots.complete("50").await;
    rig.until(World::synced).await;
}

/// A policy of a namespace, with that mode.
fn policy(mode: &str) -> Value {
    json!({
        "metadata": {
            "name": "p", "namespace": "shop", "uid": UID, "generation": 1, "resourceVersion": "9",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "mtls": { "mode": mode } },
    })
}

#[tokio::test]
async fn a_policy_that_is_broken_is_waited_for_until_what_is_stored_of_it_is_read() {
    for (mode, waits) in [("STRICT", false), ("STRICTLY", true)] {
        let served = Some(definition(1, &[("v1alpha1", true)]));
        let (mut rig, _definitions) = objects_of(&OPTIONAL[4], served).await;
        let _theirs = follow(&mut rig, true).await;
        let mut list = rig.server.asked_for(POLICIES).await.begin().await;
        list.event("ADDED", &policy(mode)).await;
        list.complete("50").await;
        if !waits {
            rig.until(World::synced).await;
            continue;
        }
        let begun = Instant::now();
        while begun.elapsed() < SETTINGS.patience * 4 {
            rig.server.asked_for(STORED).await.refuse(403).await;
        }
        assert!(!rig.store.world().synced());
        let unread = rig.report.unread();
        for words in [
            ": PeerAuthentication\n",
            "configsnapshots.tulle.dev: cannot be listed",
        ] {
            assert!(unread.contains(words), "{unread}");
        }
        let mut snapshots = rig.server.asked_for(STORED).await.begin().await;
        snapshots.complete("50").await;
        rig.until(World::synced).await;
    }
}
