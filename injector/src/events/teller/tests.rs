//! Against an API server that is written by hand.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::hand_written::{Answer, api_server};
use crate::{Namespace, Reviewer};

/// What was written, and whether more is taken.
#[derive(Debug)]
struct State {
    refuses: bool,
    /// Of all templates.
    annotations: Value,
    events: Vec<Value>,
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Body>) -> Answer {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let mut state = state.lock();
    let answer = |value: Value| Response::new(Full::new(Bytes::from(value.to_string())));
    if state.refuses {
        let mut refused = answer(json!({ "kind": "Status", "status": "Failure", "code": 403 }));
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return refused;
    }
    if head.method == Method::PATCH {
        let event: Value = serde_json::from_slice(&body).expect("JSON");
        state.events.push(event.clone());
        return answer(event);
    }
    let path = head.uri.path();
    let name = path.rsplit('/').next().unwrap_or_default();
    if name == "gone" {
        let mut absent = answer(
            json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 }),
        );
        *absent.status_mut() = StatusCode::NOT_FOUND;
        return absent;
    }
    // Every Job is of the same CronJob.
    let above = json!({ "apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "c", "controller": true });
    let above: Vec<_> = path
        .contains("/jobs/")
        .then_some(above)
        .into_iter()
        .collect();
    let template = json!({
        "metadata": { "annotations": state.annotations },
        "spec": { "containers": [{ "name": "app" }] },
    });
    answer(json!({
        "metadata": { "name": name, "uid": name, "ownerReferences": above },
        "spec": { "template": template, "selector": {}, "serviceName": "x" },
    }))
}

struct Rig {
    state: Arc<Mutex<State>>,
    teller: Teller,
    _tasks: Tasks,
}

fn rig() -> Rig {
    let state = Arc::new(Mutex::new(State {
        refuses: false,
        annotations: json!({ "tulle.dev/a": "" }),
        events: Vec::new(),
    }));
    let shared = state.clone();
    let client = api_server(move |request| answer(shared.clone(), request));
    let namespaces = Namespaces::new(None, crate::namespaces::Metrics::default());
    namespaces.learn((0..20).map(|number| Namespace::enabled(format!("shop-{number}"))));
    let config = InjectorConfig::default();
    let (teller, telling) = Teller::new(client, config, namespaces, Metrics::default());
    let tasks = Tasks::new();
    tasks.spawn_until_cancelled("events", telling);
    Rig {
        state,
        teller,
        _tasks: tasks,
    }
}

impl Rig {
    fn tell(&self, kind: &str, name: &str, hint: &str) {
        self.tell_by(kind, ("shop-0", name, name), hint);
    }

    /// Of an owner with such a namespace, name and id.
    fn tell_by(&self, kind: &str, (namespace, name, uid): (&str, &str, &str), hint: &str) {
        let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        let owner = ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.teller.tell(Complaint {
            owner,
            hint: hint.to_owned(),
        });
    }

    /// What is written within a time.
    async fn written(&self, within: Duration) -> Vec<Value> {
        tokio::time::sleep(within).await;
        std::mem::take(&mut self.state.lock().events)
    }
}

const WORDS: &str = "annotation tulle.dev/a is not known and has no effect: check its spelling";

#[tokio::test(start_paused = true)]
async fn a_workload_is_told_once_for_all_its_pods_and_of_other_words_again() {
    let rig = rig();
    for _ in 0..10 {
        rig.tell("StatefulSet", "db", "annotation a is not known");
    }
    let events = rig.written(MINUTE).await;
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!(event["reason"], "InvalidAnnotation");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["metadata"]["name"], "tulle-invalid-annotation.db");
    assert_eq!(event["message"], WORDS);
    assert_eq!(event["involvedObject"]["uid"], "db");
    rig.state.lock().annotations = json!({ "tulle.dev/b": "" });
    rig.tell("StatefulSet", "db", "annotation b is not known");
    assert_eq!(rig.written(MINUTE).await.len(), 1);
    rig.tell("StatefulSet", "db", "annotation b is not known");
    assert!(rig.written(MINUTE).await.is_empty());
    tokio::time::sleep(AGAIN).await;
    rig.tell("StatefulSet", "db", "annotation b is not known");
    assert_eq!(
        rig.written(MINUTE).await.len(),
        1,
        "the API server forgets it"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_that_whoever_reaches_the_webhook_has_made_up() {
    const FORGED: &str = "annotation tulle.dev/run-this is not known";
    let web = ("shop-0", "web", "web");
    let in_vain = json!({ "tulle.dev/a": "" });
    for (what, kind, owner, hint, template, written) in [
        ("honest", "ReplicaSet", web, WORDS, in_vain.clone(), 1),
        ("a DaemonSet", "DaemonSet", web, WORDS, in_vain.clone(), 1),
        ("own words", "ReplicaSet", web, FORGED, in_vain.clone(), 1),
        ("a good template", "ReplicaSet", web, FORGED, json!({}), 0),
        (
            "a template that opts out",
            "ReplicaSet",
            web,
            WORDS,
            json!({ "tulle.dev/a": "", "tulle.dev/inject": "disabled" }),
            0,
        ),
        (
            "another's id",
            "ReplicaSet",
            ("shop-0", "web", "forged"),
            WORDS,
            in_vain.clone(),
            0,
        ),
        (
            "no such owner",
            "StatefulSet",
            ("shop-0", "gone", "gone"),
            WORDS,
            in_vain.clone(),
            0,
        ),
        (
            "no such namespace",
            "StatefulSet",
            ("made-up", "web", "web"),
            WORDS,
            in_vain.clone(),
            0,
        ),
        (
            "a kind that is not asked for",
            "Secret",
            web,
            WORDS,
            in_vain.clone(),
            0,
        ),
    ] {
        let rig = rig();
        rig.state.lock().annotations = template;
        rig.tell_by(kind, owner, hint);
        let events = rig.written(MINUTE).await;
        assert_eq!(events.len(), written, "{what}");
        assert!(events.iter().all(|it| it["message"] == WORDS), "{events:?}");
        assert_eq!(rig.teller.metrics.errors.get(), 0, "{what}");
        let left_out = rig.teller.metrics.left_out.get();
        assert_eq!(left_out, u64::from(kind == "Secret"), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_made_up_neither_hides_what_is_true_nor_has_it_written_again() {
    let rig = rig();
    rig.tell_by("ReplicaSet", ("shop-0", "gone", "web"), WORDS);
    rig.tell("ReplicaSet", "web", WORDS);
    assert_eq!(rig.written(MINUTE).await.len(), 1);
    for number in 0..20 {
        rig.tell("ReplicaSet", "web", &format!("forged {number}"));
    }
    assert!(rig.written(MINUTE).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_namespace_does_not_take_the_turns_of_another() {
    let rig = rig();
    for number in 0..OF_A_NAMESPACE + 20 {
        rig.tell("StatefulSet", &format!("s{number}"), WORDS);
    }
    rig.tell_by("StatefulSet", ("shop-1", "db", "db"), WORDS);
    let events = rig.written(MINUTE / 2).await;
    let of = |namespace: &str| {
        let theirs = events
            .iter()
            .filter(|it| it["metadata"]["namespace"] == namespace);
        u32::try_from(theirs.count()).expect("few")
    };
    assert_eq!((of("shop-0"), of("shop-1")), (OF_A_NAMESPACE, 1));
    assert_eq!(rig.teller.metrics.lost.get(), 20);
    tokio::time::sleep(MINUTE).await;
    rig.tell("StatefulSet", "s49", WORDS);
    assert_eq!(rig.written(MINUTE).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_jobs_of_a_cron_job_are_one_workload() {
    let rig = rig();
    rig.tell("Job", "nightly-1", "annotation a is not known");
    let events = rig.written(MINUTE).await;
    assert_eq!(events[0]["involvedObject"]["kind"], "CronJob");
    assert_eq!(events[0]["metadata"]["name"], "tulle-invalid-annotation.c");
    rig.tell("Job", "nightly-2", "annotation a is not known");
    assert!(rig.written(MINUTE).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn many_workloads_wait_for_their_turn_and_what_there_is_no_room_for_is_counted() {
    let rig = rig();
    for number in 0..WAITING + 5 {
        let (namespace, name) = (format!("shop-{}", number % 20), format!("s{number}"));
        rig.tell_by("StatefulSet", (&namespace, &name, &name), WORDS);
    }
    assert_eq!(rig.teller.metrics.lost.get(), 5);
    let first = rig.written(10 * PACE).await.len();
    assert!((9..=11).contains(&first), "{first}");
    let rest = rig.written(2 * MINUTE + PACE * 30).await.len();
    assert_eq!(first + rest, WAITING);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_counted_and_told_with_the_next_pod() {
    let rig = rig();
    rig.state.lock().refuses = true;
    rig.tell("StatefulSet", "db", "annotation a is not known");
    assert!(rig.written(MINUTE).await.is_empty());
    assert_eq!(rig.teller.metrics.errors.get(), 1);
    rig.state.lock().refuses = false;
    rig.tell("StatefulSet", "db", "annotation a is not known");
    assert_eq!(rig.written(MINUTE).await.len(), 1);
}

/// A review of a pod of a ReplicaSet, with an annotation that has no effect.
fn review(namespace: &str, owner: (&str, &str), annotation: &str) -> Value {
    let (name, uid) = owner;
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": namespace,
            "operation": "CREATE",
            "object": {
                "metadata": {
                    "annotations": { annotation: "" },
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": true,
                    }],
                },
                "spec": { "containers": [{ "name": "web" }] },
            },
        },
    })
}

#[tokio::test]
async fn no_review_has_more_remembered_than_an_owner_that_can_be_and_a_short_hint() {
    const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";
    let long = "a".repeat(1 << 20);
    let (name, uid) = ("a".repeat(253), UID);
    let note = "tulle.dev/a";
    let unknown = format!("tulle.dev/{long}");
    let reviewer = Reviewer {
        config: InjectorConfig::default(),
    };
    for (what, review, kept) in [
        ("honest", review("shop", ("web", uid), note), true),
        ("the longest name", review("shop", (&name, uid), note), true),
        (
            "a long annotation",
            review("shop", ("web", uid), &unknown),
            true,
        ),
        ("a long name", review("shop", (&long, uid), note), false),
        ("no name", review("shop", ("", uid), note), false),
        ("a path", review("shop", ("../web", uid), note), false),
        ("a long id", review("shop", ("web", &long), note), false),
        ("no id", review("shop", ("web", ""), note), false),
        ("a long namespace", review(&long, ("web", uid), note), false),
    ] {
        let body = review.to_string();
        let namespace = |name: &str| Some(Namespace::enabled(name));
        let reviewed = reviewer.review(body.as_bytes(), namespace);
        let complaint = Complaint::of(&reviewed);
        assert_eq!(complaint.is_some(), kept, "{what}");
        if let Some(Complaint { owner, hint }) = complaint {
            let remembered = key(&owner).len() + hint.len();
            assert!(remembered < 2 << 10, "{what}: {remembered}");
        }
    }
}
