//! The writer over a hand-written API server, on a clock that only the test moves.

use std::time::Duration;

use kube::Client;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::election::{Election, Leadership};
use crate::platform::hand_written_api_server::{ApiServer, Fault};

const UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";
const FOLDER: &str = "/apis/tulle.dev/v1alpha1/namespaces/shop/configsnapshots";

struct Lab {
    server: ApiServer,
    snapshots: Snapshots,
    tasks: Tasks,
}

impl Lab {
    fn new(leads: bool) -> Self {
        let server = ApiServer::default();
        let snapshots = Snapshots::default();
        snapshots.listed(&BTreeSet::new());
        let tasks = Tasks::new();
        replica(&server.client(), &snapshots, &tasks, leads);
        Self {
            server,
            snapshots,
            tasks,
        }
    }

    /// What is stored of a generation.
    fn stored(&self, generation: i64) -> Option<Value> {
        self.server.get(&path(generation))
    }

    /// Sees what is stored, as the source does.
    fn follow(&self, generation: i64) {
        let stored = self.stored(generation).expect("it is stored");
        let read = read(&stored.to_string());
        self.snapshots.put(read.revision.expect("a good one"));
    }

    fn creations(&self) -> usize {
        self.server.calls(&format!("POST {FOLDER}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

fn replica(client: &Client, snapshots: &Snapshots, tasks: &Tasks, leads: bool) {
    let registry = &mut Registry::default();
    let leadership = match leads {
        true => Leadership::alone(),
        // Of one who does not take part.
        false => Election::new(client, "me".to_owned(), registry).1,
    };
    let metrics = Metrics::register(registry);
    let writer = SnapshotWriter::new(client.clone(), leadership, snapshots.clone(), metrics);
    tasks.spawn_until_cancelled("snapshot-writer", writer.run());
}

fn path(generation: i64) -> String {
    format!("{FOLDER}/{UID}-{generation}")
}

fn object() -> ObjectRef {
    ObjectRef {
        kind: Kind::HttpRoute,
        key: ObjectKey::new("shop", "r"),
    }
}

/// A route that cannot be used and had that good generation, with a spec of so many bytes.
fn broken(generation: i64, bytes: usize) -> Broken {
    let spec = json!({ "hostnames": ["x".repeat(bytes)] }).to_string();
    Broken {
        uid: UID.into(),
        api: "v1",
        good: Some(Version {
            generation,
            spec: Some(spec.into()),
        }),
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_good_version_is_stored_at_once_and_deleted_when_nobody_needs_it() {
    let lab = Lab::new(true);
    assert_eq!(
        lab.snapshots.judge(&object(), Some(broken(2, 1))),
        InForce::Seen(2)
    );
    pass(1).await;
    let stored = lab.stored(2).expect("it is stored");
    assert_eq!(
        stored["metadata"]["labels"]["app.kubernetes.io/part-of"],
        "tulle"
    );
    let owner = &stored["metadata"]["ownerReferences"][0];
    assert_eq!(
        (
            &owner["kind"],
            &owner["name"],
            &owner["uid"],
            &owner["apiVersion"]
        ),
        (
            &json!("HTTPRoute"),
            &json!("r"),
            &json!(UID),
            &json!("gateway.networking.k8s.io/v1")
        )
    );
    lab.follow(2);
    assert_eq!(
        lab.snapshots.judge(&object(), Some(broken(2, 1))),
        InForce::Stored(2)
    );
    pass(300).await;
    assert_eq!(lab.creations(), 1);

    // Corrected, and broken again: the later one replaces it, and not before it is there.
    lab.snapshots.settled(Kind::HttpRoute);
    lab.snapshots.judge(&object(), Some(broken(3, 1)));
    pass(30).await;
    assert!(lab.stored(2).is_some() && lab.stored(3).is_some());
    lab.follow(3);
    pass(1).await;
    assert!(lab.stored(2).is_some(), "not at once");
    pass(30).await;
    assert_eq!((lab.stored(2), lab.stored(3).is_some()), (None, true));
    lab.snapshots.judge(&object(), None);
    pass(30).await;
    assert_eq!(lab.stored(3), None);
}

#[tokio::test(start_paused = true)]
async fn another_replica_stores_what_the_elected_one_does_not_once_and_deletes_nothing() {
    let lab = Lab::new(false);
    lab.snapshots.settled(Kind::HttpRoute);
    lab.snapshots.judge(&object(), Some(broken(2, 1)));
    pass(4).await;
    assert_eq!(lab.creations(), 0);
    pass(4).await;
    lab.follow(2);
    pass(10).await;
    assert_eq!(lab.creations(), 1);
    // The elected one has no use for it.
    lab.server.remove(&path(2));
    lab.snapshots
        .remove(&ObjectKey::new("shop", format!("{UID}-2")));
    pass(600).await;
    assert_eq!(lab.creations(), 1);
    lab.snapshots.judge(&object(), None);
    lab.server.put(&path(2), json!({}));
    pass(600).await;
    assert!(lab.stored(2).is_some());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_it_is_known_which_objects_there_are() {
    let lab = Lab::new(true);
    lab.snapshots.judge(&object(), Some(broken(2, 1)));
    pass(1).await;
    lab.follow(2);
    lab.snapshots.judge(&object(), None);
    pass(600).await;
    assert!(lab.stored(2).is_some());
    lab.snapshots.settled(Kind::HttpRoute);
    pass(30).await;
    assert_eq!(lab.stored(2), None);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_tried_again_ever_more_slowly() {
    let lab = Lab::new(true);
    for fault in [Fault::Answers(500), Fault::Breaks, Fault::Hangs] {
        lab.server.fault("POST", fault);
    }
    lab.snapshots.judge(&object(), Some(broken(2, 1)));
    pass(120).await;
    assert!(lab.stored(2).is_some());
    assert!(lab.creations() >= 4);
}

#[tokio::test(start_paused = true)]
async fn one_that_another_replica_was_faster_with_is_left_as_it_is() {
    let lab = Lab::new(true);
    let first = json!({ "spec": { "generation": 2, "content": {} } });
    lab.server.put(&path(2), first.clone());
    lab.snapshots.judge(&object(), Some(broken(2, 1)));
    pass(5).await;
    let stored = lab.stored(2).expect("it is there");
    assert_eq!(stored["spec"], first["spec"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_not_stored_and_said() {
    let lab = Lab::new(true);
    let in_force = lab.snapshots.judge(&object(), Some(broken(2, LARGEST)));
    assert_eq!(in_force, InForce::TooLarge(2));
    pass(60).await;
    assert_eq!(lab.creations(), 0);
}

#[test]
fn only_what_agrees_in_name_owner_and_generation_is_a_snapshot() {
    let good = Revision {
        object: object(),
        uid: UID.into(),
        api: "v1".into(),
        version: broken(2, 1).good.expect("one"),
    };
    let manifest = good.manifest();
    assert_eq!(read(&manifest.to_string()).revision, Ok(good));
    let other = "0a1b2c3d-0000-4000-8000-000000000002";
    let owner = &manifest["metadata"]["ownerReferences"][0];
    for (pointer, value, why) in [
        ("/metadata/ownerReferences/0/uid", json!(other), "name"),
        ("/spec/generation", json!(3), "name"),
        ("/metadata/name", json!("web-7"), "name"),
        ("/metadata/name", json!("web"), "name"),
        ("/metadata/ownerReferences", json!([]), "owner"),
        ("/metadata/ownerReferences", json!([owner, owner]), "owner"),
        (
            "/metadata/ownerReferences/0/kind",
            json!("Deployment"),
            "Deployment",
        ),
        (
            "/metadata/ownerReferences/0/apiVersion",
            json!("apps/v1"),
            "apps/v1",
        ),
        ("/spec", json!({ "generation": 2 }), "content"),
        ("/spec", json!(7), "invalid type"),
    ] {
        let mut odd = manifest.clone();
        *odd.pointer_mut(pointer).expect("it is there") = value;
        let error = read(&odd.to_string()).revision.expect_err(pointer);
        assert!(error.contains(why), "{pointer}: {error}");
    }
    assert!(read("{").key.is_none());
}
