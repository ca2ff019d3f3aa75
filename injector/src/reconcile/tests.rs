//! Against an API server that is written by hand, because a real one cannot be made to fail.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::hand_written::{Answer, api_server};
use crate::namespaces;

/// What the API server has, and what it was asked. The first list of a round gets the pods.
#[derive(Debug, Default)]
struct State {
    /// Pages of pods, one a list.
    pages: Vec<Vec<Value>>,
    /// Writes of Events are refused.
    refuses: bool,
    lists: Vec<String>,
    events: Vec<Value>,
    /// Owners of pods, by path: what is said of whose they are.
    owners: HashMap<String, Value>,
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Body>) -> Answer {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let mut state = state.lock();
    if head.method == Method::PATCH {
        if state.refuses {
            return status(StatusCode::TOO_MANY_REQUESTS);
        }
        let event: Value = serde_json::from_slice(&body).expect("JSON");
        state.events.push(event.clone());
        return json_answer(&event);
    }
    if !head.uri.path().ends_with("/pods") {
        let owner = state.owners.get(head.uri.path()).cloned();
        return owner.map_or_else(|| status(StatusCode::NOT_FOUND), |it| json_answer(&it));
    }
    state.lists.push(head.uri.to_string());
    let page = state.lists.len() - 1;
    let token = if page + 1 < state.pages.len() {
        "more"
    } else {
        ""
    };
    let items = state.pages.get(page).cloned().unwrap_or_default();
    json_answer(&json!({
        "apiVersion": "v1", "kind": "PodList",
        "metadata": { "resourceVersion": "1", "continue": token }, "items": items,
    }))
}

fn json_answer(value: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(value.to_string())))
}

fn status(code: StatusCode) -> Answer {
    let status = json!({ "kind": "Status", "status": "Failure", "message": "no", "reason": "x", "code": code.as_u16() });
    let mut answer = json_answer(&status);
    *answer.status_mut() = code;
    answer
}

fn pod(name: &str, owner: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "web" }] },
        "status": { "phase": "Running" },
    });
    if let Some(owner) = owner {
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "uid": format!("uid-{owner}"), "controller": true,
        }]);
    }
    pod
}

struct Rig {
    reconciler: Reconciler,
    state: Arc<Mutex<State>>,
}

fn rig(pages: Vec<Vec<Value>>) -> Rig {
    let state = Arc::new(Mutex::new(State {
        pages,
        ..State::default()
    }));
    let shared = state.clone();
    let client = api_server(move |request| answer(shared.clone(), request));
    let namespaces = Namespaces::new(None, namespaces::Metrics::default());
    namespaces.learn([
        Namespace::enabled("shop"),
        Namespace {
            name: "other".to_owned(),
            ..Namespace::default()
        },
    ]);
    let metrics = Metrics::default();
    Rig {
        reconciler: Reconciler::new(client, namespaces, InjectorConfig::default(), metrics),
        state,
    }
}

impl Rig {
    async fn round(&mut self) -> Vec<Value> {
        self.reconciler.round().await.expect("it answers");
        let mut state = self.state.lock();
        state.lists.clear();
        std::mem::take(&mut state.events)
    }

    fn uninjected(&self) -> i64 {
        self.reconciler.metrics.uninjected.get()
    }
}

#[tokio::test]
async fn a_workload_with_pods_without_a_sidecar_gets_one_event_with_its_remedy() {
    let pods = vec![
        pod("db-0", Some("db")),
        pod("db-1", Some("db")),
        pod("alone", None),
    ];
    let mut rig = rig(vec![pods]);
    let mut events = rig.round().await;
    assert_eq!(rig.uninjected(), 3);
    events.sort_by_key(|event| event["involvedObject"]["kind"].to_string());
    assert_eq!(events.len(), 2, "{events:?}");
    let [alone, set] = [&events[0], &events[1]];
    assert_eq!(alone["involvedObject"]["name"], "alone");
    assert_eq!(set["involvedObject"]["name"], "db");
    assert_eq!(set["involvedObject"]["uid"], "uid-db");
    assert_eq!(set["metadata"]["name"], "tulle-not-injected.uid-db");
    assert_eq!(
        (&set["reason"], &set["type"]),
        (&json!("NotInjected"), &json!("Warning"))
    );
    let message = set["message"].as_str().unwrap_or_default();
    let expected = "pod db-0 and 1 more run without a sidecar of the mesh; made now it would be injected: the namespace is labelled \
         tulle.dev/inject=enabled (labels that decide: of its namespace tulle.dev/inject=enabled, its own none). To have one: run \
         `kubectl rollout restart statefulset/db`; to have none: label it tulle.dev/inject=disabled";
    assert_eq!(message, expected);
    assert!(rig.round().await.is_empty(), "it was told");
}

#[tokio::test]
async fn whoever_should_have_none_or_is_done_is_left_alone() {
    let with = |field: &str, value: Value| {
        let mut pod = pod("p", None);
        let (part, name) = field.split_once('.').expect("a path");
        pod[part][name] = value;
        pod
    };
    let rows = [
        (
            "opted out",
            with("metadata.labels", json!({ "tulle.dev/inject": "disabled" })),
            0,
        ),
        (
            "another revision's",
            with("metadata.labels", json!({ "tulle.dev/rev": "canary" })),
            0,
        ),
        ("host network", with("spec.hostNetwork", json!(true)), 0),
        ("done", with("status.phase", json!("Succeeded")), 0),
        ("failed", with("status.phase", json!("Failed")), 0),
        (
            "going",
            with("metadata.deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            0,
        ),
        (
            "a namespace that asks for none",
            with("metadata.namespace", json!("other")),
            0,
        ),
        (
            "one that nobody knows",
            with("metadata.namespace", json!("new")),
            0,
        ),
        ("it should", pod("p", None), 1),
        (
            "it would have been refused",
            with("metadata.labels", json!({ "tulle.dev/inject": "yes" })),
            1,
        ),
    ];
    for (name, pod, expected) in rows {
        let mut rig = rig(vec![vec![pod]]);
        assert_eq!(rig.round().await.len(), expected, "{name}");
        assert_eq!(
            rig.uninjected(),
            i64::try_from(expected).expect("few"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn only_pods_without_a_sidecar_are_asked_for_and_only_where_they_may_want_one() {
    let mut rig = rig(Vec::new());
    rig.reconciler.round().await.expect("it answers");
    let lists = std::mem::take(&mut rig.state.lock().lists);
    assert_eq!(lists.len(), 3, "{lists:?}");
    for list in &lists {
        assert!(
            list.contains("labelSelector=%21tulle.dev%2Fproxied"),
            "{list}"
        );
        assert!(list.contains("limit=100"), "{list}");
    }
    let of_namespaces: Vec<_> = lists
        .iter()
        .filter(|list| list.contains("/namespaces/"))
        .collect();
    assert_eq!(of_namespaces.len(), 1);
    assert!(of_namespaces[0].contains("/namespaces/shop/pods"));
}

#[tokio::test]
async fn all_pages_are_looked_at() {
    let mut rig = rig(vec![vec![pod("a", None)], vec![pod("b", None)]]);
    rig.reconciler.round().await.expect("it answers");
    assert_eq!(rig.uninjected(), 2);
}

#[tokio::test]
async fn of_pods_that_are_found_little_is_kept_however_many_and_large_they_are() {
    let pods: Vec<_> = (0..PAGE)
        .map(|number| {
            let mut pod = pod(&format!("db-{number}"), Some("db"));
            let inject = "x".repeat(10_000);
            pod["metadata"]["annotations"] = json!({ "tulle.dev/inject": inject, "note": inject });
            pod["spec"]["containers"][0]["args"] = json!([inject]);
            pod
        })
        .collect();
    let rig = rig(vec![pods.clone(), vec![pod("alone", None)], pods]);
    let mut found = Found::default();
    let namespaces = [("shop".to_owned(), Namespace::enabled("shop"))].into();
    let scope = (Some("shop".to_owned()), String::new());
    let list = rig.reconciler.list(&scope, &namespaces, &mut found);
    list.await.expect("it answers");
    assert_eq!(found.pods.len(), PAGE as usize + 1, "each once");
    let objects = found.objects.values();
    let mut objects: Vec<_> = objects.map(|it| (it.pods, &*it.pod)).collect();
    objects.sort_unstable();
    assert_eq!(objects, [(1, "alone"), (PAGE as usize, "db-0")]);
    let kept = format!("{found:?}").len();
    assert!(kept < 8 << 10, "{kept}");
}

#[tokio::test]
async fn an_event_that_was_refused_is_written_in_the_next_round() {
    let mut rig = rig(vec![vec![pod("a", None)]]);
    rig.state.lock().refuses = true;
    assert!(rig.round().await.is_empty());
    assert_eq!(rig.reconciler.metrics.errors.get(), 1);
    rig.state.lock().refuses = false;
    assert_eq!(rig.round().await.len(), 1);
}

#[tokio::test]
async fn many_workloads_have_their_turn_round_by_round() {
    let pods = (0..EVENTS + 5).map(|number| pod(&format!("p{number}"), None));
    let mut rig = rig(vec![pods.collect()]);
    let told = [
        rig.round().await.len(),
        rig.round().await.len(),
        rig.round().await.len(),
    ];
    assert_eq!(told, [EVENTS, 5, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_given_up_and_nothing_is_forgotten() {
    let mut rig = rig(vec![vec![pod("a", None)]]);
    assert_eq!(rig.round().await.len(), 1);
    rig.reconciler.client = api_server(|_| std::future::pending());
    let error = rig.reconciler.round().await.expect_err("it hangs");
    assert!(matches!(error, Unanswered::Late(_)), "{error}");
    assert_eq!(rig.uninjected(), 1, "the last that was known");
}

#[tokio::test]
async fn the_event_is_at_the_top_of_the_owners_as_far_as_they_can_be_known() {
    let controlled = |kind: &str, name: &str, uid: &str| json!([{ "apiVersion": if kind.ends_with("Job") { "batch/v1" } else { "apps/v1" }, "kind": kind, "name": name, "uid": uid, "controller": true }]);
    let replica_sets = "/apis/apps/v1/namespaces/shop/replicasets/web-abc";
    let jobs = "/apis/batch/v1/namespaces/shop/jobs/nightly-1";
    let meta = |uid: &str, owners: Value| {
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": { "name": "x", "uid": uid, "ownerReferences": owners },
        })
    };
    let deployment = controlled("Deployment", "web", "d");
    let rows = [
        (
            "ReplicaSet",
            "web-abc",
            replica_sets,
            Some(meta("u", deployment.clone())),
            ("Deployment", "web", "d"),
            "rollout restart deployment/web`",
        ),
        (
            "Job",
            "nightly-1",
            jobs,
            Some(meta("u", controlled("CronJob", "nightly", "c"))),
            ("CronJob", "nightly", "c"),
            "delete it",
        ),
        (
            "ReplicaSet",
            "web-abc",
            replica_sets,
            Some(meta("u", json!(null))),
            ("ReplicaSet", "web-abc", "u"),
            "delete it",
        ),
        // Made anew since, with another owner.
        (
            "ReplicaSet",
            "web-abc",
            replica_sets,
            Some(meta("other", deployment)),
            ("ReplicaSet", "web-abc", "u"),
            "delete it",
        ),
        (
            "Job",
            "nightly-1",
            jobs,
            None,
            ("Job", "nightly-1", "u"),
            "delete it",
        ),
        (
            "DaemonSet",
            "logs",
            "/nobody/is/asked",
            None,
            ("DaemonSet", "logs", "u"),
            "rollout restart daemonset/logs`",
        ),
    ];
    for (kind, name, path, owner, expected, remedy) in rows {
        let mut pod = pod("p", None);
        pod["metadata"]["ownerReferences"] = controlled(kind, name, "u");
        let mut rig = rig(vec![vec![pod]]);
        let owners = owner.map(|owner| (path.to_owned(), owner));
        rig.state.lock().owners = owners.into_iter().collect();
        let events = rig.round().await;
        let object = &events[0]["involvedObject"];
        let found = [&object["kind"], &object["name"], &object["uid"]]
            .map(|it| it.as_str().unwrap_or_default());
        assert_eq!(found, <[&str; 3]>::from(expected), "{kind}");
        assert_eq!(
            events[0]["metadata"]["name"],
            format!("tulle-not-injected.{}", expected.2)
        );
        let message = events[0]["message"].as_str().unwrap_or_default();
        assert!(message.contains(remedy), "{message}");
    }
}
