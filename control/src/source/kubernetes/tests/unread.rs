//! Kinds of which there is a definition, and whose objects cannot be listed.

use tokio::time::Instant;

use super::definitions::{definition, names, objects_of, path, route};
use super::*;
use crate::source::kubernetes::kinds::OPTIONAL;

const POLICIES: &str = "/apis/tulle.dev/v1alpha1/peerauthentications";

/// Refuses for so long that nobody has patience any more, and a bit.
async fn refuse(rig: &mut Rig, path: &str, half_a_list: bool) {
    let begun = Instant::now();
    while begun.elapsed() < SETTINGS.patience * 4 {
        let asked = rig.server.asked_for(path).await;
        if half_a_list && asked.is_streaming_list() {
            let mut stream = asked.begin().await;
            stream.event("ADDED", &route("half", 2)).await;
            stream.error(500).await;
        } else {
            asked.refuse(500).await;
        }
    }
}

#[tokio::test]
async fn routes_that_cannot_be_listed_hold_nobody_up_and_are_in_force_once_they_can() {
    for half_a_list in [false, true] {
        let (mut rig, _definitions) =
            objects_of(&OPTIONAL[0], Some(definition(1, &[("v1", true)]))).await;
        rig.snapshots.listed(&BTreeSet::new());
        refuse(&mut rig, &path("v1"), half_a_list).await;
        let world = rig.until(World::synced).await;
        assert!(names(&world).is_empty(), "half a list is none");
        let problem = rig.report.problems().remove(0).to_string();
        for words in [
            "httproutes.gateway.networking.k8s.io: cannot be listed",
            "nothing of it is in force",
            "500: by hand",
            "conversion webhook",
        ] {
            assert!(problem.contains(words), "{problem}");
        }
        let unread = "source_unread{kind=\"HTTPRoute\"}";
        assert_eq!(rig.metric(unread).as_deref(), Some("1"));
        let asked = rig.server.asked_for(&path("v1")).await;
        let mut open = None;
        if asked.is_list() {
            asked.page("13", "", &[route("a", 2)]).await;
        } else {
            let mut list = asked.begin().await;
            list.event("ADDED", &route("a", 2)).await;
            list.complete("13").await;
            open = Some(list);
        }
        rig.until(|world| names(world) == ["a"]).await;
        assert!(rig.report.is_empty(), "{:?}", rig.report.problems());
        assert_eq!(rig.metric(unread), None);
        drop(open);
    }
}

#[tokio::test]
async fn policies_that_cannot_be_listed_are_waited_for_and_it_is_said_why() {
    let (mut rig, _definitions) =
        objects_of(&OPTIONAL[4], Some(definition(1, &[("v1alpha1", true)]))).await;
    rig.snapshots.listed(&BTreeSet::new());
    assert_eq!(rig.report.unread(), ": PeerAuthentication");
    refuse(&mut rig, POLICIES, false).await;
    assert!(!rig.store.world().synced());
    let unread = rig.report.unread();
    for words in [
        ": PeerAuthentication\npeerauthentications.tulle.dev: cannot be listed",
        "500: by hand",
    ] {
        assert!(unread.contains(words), "{unread}");
    }
    let mut list = rig.server.asked_for(POLICIES).await.begin().await;
    list.complete("13").await;
    rig.until(World::synced).await;
    assert_eq!(rig.report.unread(), "");
}
