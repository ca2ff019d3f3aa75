//! The writer, on a clock that only the test moves.

use tulle_runtime::tasks::Tasks;

use super::*;
use crate::election::Election;
use crate::platform::hand_written_api_server::{ApiServer, Fault};

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";
const PATCH: &str = "PATCH /apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r/status";

/// A cluster with a Service and a route, and what follows it.
struct Lab {
    server: ApiServer,
    writer: StoreWriter,
    claims: Claims,
    tasks: Tasks,
}

impl Lab {
    fn new(leads: bool) -> Self {
        let (store, writer, claims) = store();
        let server = ApiServer::default();
        let registry = &mut Registry::default();
        let leadership = match leads {
            true => Leadership::alone(),
            // Of one who does not take part.
            false => Election::new(&server.client(), "me".to_owned(), registry).1,
        };
        let metrics = Metrics::register(registry);
        let statuses =
            StatusWriter::new(server.client(), leadership, store, claims.clone(), metrics);
        let tasks = Tasks::new();
        let cancelled = tasks.cancelled();
        tasks.spawn("status-writer", async move {
            tokio::select! {
                () = cancelled => {}
                () = statuses.run() => {}
            }
        });
        let parents = json!([parent("web", &json!({}))]);
        server.put(PATH, route("HTTPRoute", "r", 0, &parents, &to("web")));
        let mut lab = Self {
            server,
            writer,
            claims,
            tasks,
        };
        take(&mut lab.writer, &lab.claims, &[web()]);
        lab.follow();
        lab
    }

    fn object(&self) -> Value {
        self.server.get(PATH).expect("a route")
    }

    /// Sees the route as it is now.
    fn follow(&mut self) {
        let object = self.object();
        take(&mut self.writer, &self.claims, &[object]);
    }

    fn writes(&self) -> usize {
        self.server.calls(PATCH)
    }

    /// Reason of the first condition.
    fn accepted(&self) -> Value {
        self.object()["status"]["parents"][0]["conditions"][0]["reason"].clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_once_and_again_when_it_is_another() {
    let mut lab = Lab::new(true);
    pass(5).await;
    assert_eq!((lab.writes(), lab.accepted()), (1, json!("Accepted")));
    let entry = &lab.object()["status"]["parents"][0];
    assert_eq!(entry["controllerName"], CONTROLLER);
    assert_eq!(entry["parentRef"], parent("web", &json!({})));
    lab.follow();
    pass(60).await;
    assert_eq!(lab.writes(), 1, "nothing is different");
    let gone = ObjectRef {
        kind: Kind::Service,
        key: ObjectKey::new("shop", "web"),
    };
    lab.writer.apply(vec![Event::Delete(gone)]);
    pass(5).await;
    assert_eq!(
        (lab.writes(), lab.accepted()),
        (2, json!("NoMatchingParent"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_told_in_its_conditions_once() {
    let mut lab = Lab::new(true);
    let path = "/apis/tulle.dev/v1alpha1/namespaces/shop/peerauthentications/p";
    let policy = json!({
        "apiVersion": "tulle.dev/v1alpha1", "kind": "PeerAuthentication",
        "metadata": { "name": "p", "namespace": "shop", "generation": 2 },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    lab.server.put(path, policy);
    for _ in 0..3 {
        let object = lab.server.get(path).expect("a policy");
        take(&mut lab.writer, &lab.claims, &[object]);
        pass(20).await;
    }
    let told = lab.server.get(path).expect("a policy");
    let accepted = &told["status"]["conditions"][0];
    assert_eq!(accepted["type"], "Accepted");
    assert_eq!(
        (&accepted["status"], &accepted["observedGeneration"]),
        (&json!("True"), &json!(2))
    );
    assert_eq!(lab.server.calls(&format!("PATCH {path}/status")), 1);
}

#[tokio::test(start_paused = true)]
async fn many_routes_are_told_at_once_though_some_answers_never_come() {
    let mut lab = Lab::new(true);
    let many = 400;
    let path = |number| PATH.to_owned() + &format!("-{number}");
    for number in 0..many {
        let parents = json!([parent("web", &json!({}))]);
        let name = format!("r-{number}");
        let route = route("HTTPRoute", &name, 0, &parents, &to("web"));
        lab.server.put(&path(number), route);
    }
    for number in 0..4 {
        let call = format!("r-{number}/status");
        lab.server.fault(&call, Fault::Hangs);
    }
    let objects = (0..many).filter_map(|number| lab.server.get(&path(number)));
    let objects: Vec<_> = objects.collect();
    take(&mut lab.writer, &lab.claims, &objects);
    let told = |lab: &Lab| {
        let routes = (0..many).filter_map(|number| lab.server.get(&path(number)));
        let said = routes.filter(|it| !it["status"]["parents"].is_null());
        said.count()
    };
    pass(1).await;
    let first = told(&lab);
    assert!(first <= 6 * AT_ONCE, "{first} in the first second");
    pass(6).await;
    assert!(told(&lab) >= many - 4, "{} of {many}", told(&lab));
    pass(10).await;
    assert_eq!(told(&lab), many, "who was not answered is told, too");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_elected_writes_nothing() {
    let lab = Lab::new(false);
    pass(60).await;
    assert_eq!(lab.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_wrote_meanwhile_is_not_lost() {
    let mut lab = Lab::new(true);
    // Not seen yet by who follows.
    let gateway = json!({ "group": GROUP, "kind": "Gateway", "name": "front" });
    let foreign = entry("example.com/gateway", &gateway, "True", "Accepted", 3);
    let mut object = lab.object();
    object["status"] = json!({ "parents": [foreign] });
    lab.server.put(PATH, object);
    pass(30).await;
    assert_eq!(lab.writes(), 1, "refused, and not repeated");
    assert_eq!(lab.object()["status"]["parents"], json!([foreign]));
    lab.follow();
    pass(30).await;
    let parents = &lab.object()["status"]["parents"];
    assert_eq!(parents[0], foreign);
    assert_eq!(parents[1]["controllerName"], CONTROLLER);
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again() {
    let lab = Lab::new(true);
    for fault in [
        Fault::Answers(500),
        Fault::Answers(429),
        Fault::Breaks,
        Fault::Hangs,
    ] {
        lab.server.fault("/status", fault);
    }
    pass(60).await;
    assert_eq!((lab.writes(), lab.accepted()), (5, json!("Accepted")));
}

#[tokio::test(start_paused = true)]
async fn who_undoes_it_is_answered_ever_more_slowly_and_its_author_at_once() {
    let mut lab = Lab::new(true);
    let undo = |lab: &mut Lab| {
        let mut object = lab.object();
        object["status"] = json!({});
        lab.server.put(PATH, object);
        lab.follow();
    };
    for _ in 0..600 {
        pass(1).await;
        undo(&mut lab);
    }
    let writes = lab.writes();
    assert!((5..60).contains(&writes), "{writes} writes in ten minutes");
    let mut object = lab.object();
    object["metadata"]["generation"] = 4.into();
    lab.server.put(PATH, object);
    lab.follow();
    pass(2).await;
    assert_eq!(lab.writes(), writes + 1);
}
