//! Elections over a hand-written API server, on a clock that only the test moves.

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::platform::hand_written_api_server::{ApiServer, Fault};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/tulle-system/leases/tulle-control";

/// A replica that takes part until it is ended or killed.
struct Replica {
    leadership: Leadership,
    end: CancellationToken,
    tasks: Tasks,
}

fn replica(server: &ApiServer, name: &str, tasks: &Tasks) -> Replica {
    let registry = &mut Registry::default();
    let (election, leadership) = Election::new(&server.client(), name.to_owned(), registry);
    let end = CancellationToken::new();
    let (ended, killed) = (end.clone(), tasks.cancelled());
    tasks.spawn("election", async move {
        tokio::select! {
            () = killed => {}
            () = election.run(ended.cancelled_owned()) => {}
        }
    });
    let tasks = tasks.clone();
    Replica {
        leadership,
        end,
        tasks,
    }
}

impl Replica {
    fn leads(&self) -> bool {
        self.leadership.term().is_some()
    }

    async fn elected(&self) -> Duration {
        let began = Instant::now();
        while !self.leads() {
            self.leadership.other_than(None).await;
        }
        began.elapsed()
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn holder(server: &ApiServer) -> String {
    let lease = server.get(PATH).expect("there is a lease");
    lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_of_many_that_begin_at_once_is_elected_and_stays() {
    let server = ApiServer::default();
    let tasks = Tasks::new();
    let replicas: Vec<_> = ["a", "b", "c"]
        .map(|name| replica(&server, name, &tasks))
        .into();
    pass(Duration::from_secs(2)).await;
    let first = holder(&server);
    for _ in 0..60 {
        pass(Duration::from_secs(1)).await;
        let leaders = replicas.iter().filter(|replica| replica.leads());
        assert_eq!(leaders.count(), 1);
        assert_eq!(
            holder(&server),
            first,
            "nobody takes it from one who renews it"
        );
    }
    let lease = server.get(PATH).expect("there is a lease");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    assert_eq!(
        lease["metadata"]["labels"]["app.kubernetes.io/part-of"],
        "tulle"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_another_is_elected_within_five_seconds() {
    let server = ApiServer::default();
    let (mortal, tasks) = (Tasks::new(), Tasks::new());
    let first = replica(&server, "first", &mortal);
    first.elected().await;
    let second = replica(&server, "second", &tasks);
    pass(Duration::from_secs(10)).await;
    assert!(!second.leads());
    first.tasks.cancel();
    let took = second.elected().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!first.leads(), "two at once");
}

#[tokio::test(start_paused = true)]
async fn who_ends_lets_another_begin_within_a_second() {
    let server = ApiServer::default();
    let tasks = Tasks::new();
    let first = replica(&server, "first", &tasks);
    first.elected().await;
    let second = replica(&server, "second", &tasks);
    pass(Duration::from_secs(2)).await;
    first.end.cancel();
    let took = second.elected().await;
    assert!(took < Duration::from_millis(1100), "{took:?}");
    assert!(!first.leads());
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_may_begin() {
    for fault in [
        Fault::Hangs,
        Fault::Answers(500),
        Fault::Answers(429),
        Fault::Breaks,
    ] {
        let (near, far) = (ApiServer::default(), ApiServer::default());
        let tasks = Tasks::new();
        let first = replica(&near, "first", &tasks);
        first.elected().await;
        for _ in 0..1000 {
            near.fault(" ", fault);
        }
        // What the other one sees stands still.
        far.put(PATH, near.get(PATH).expect("a lease"));
        let second = replica(&far, "second", &tasks);
        let until_alone = async {
            first.leadership.other_than(first.leadership.term()).await;
            Instant::now()
        };
        let (stopped, _) = tokio::join!(until_alone, second.elected());
        let lead = Instant::now() - stopped;
        assert!(
            lead > Duration::from_millis(300),
            "{fault:?}: only {lead:?} before the other"
        );
        assert!(second.leads() && !first.leads(), "{fault:?}");
        near.heal();
        first.tasks.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_is_lost_does_not_end_a_term_for_good() {
    let server = ApiServer::default();
    let tasks = Tasks::new();
    let only = replica(&server, "only", &tasks);
    only.elected().await;
    server.fault("PUT", Fault::DoesAndHangs);
    pass(Duration::from_secs(6)).await;
    assert!(only.leads());
    assert_eq!(holder(&server), "only");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_took_ends_the_term_at_the_next_renewal() {
    let server = ApiServer::default();
    let tasks = Tasks::new();
    let first = replica(&server, "first", &tasks);
    first.elected().await;
    let mut lease = server.get(PATH).expect("there is a lease");
    lease["spec"]["holderIdentity"] = "thief".into();
    server.put(PATH, lease);
    first.leadership.other_than(first.leadership.term()).await;
    assert!(!first.leads());
    // The thief does nothing with it.
    first.elected().await;
    assert_eq!(holder(&server), "first");
}

#[tokio::test(start_paused = true)]
async fn clocks_that_differ_do_not_matter() {
    for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let server = ApiServer::default();
        let spec =
            json!({ "holderIdentity": "other", "leaseDurationSeconds": 3, "renewTime": renewed });
        server.put(PATH, json!({ "spec": spec }));
        let tasks = Tasks::new();
        let us = replica(&server, "us", &tasks);
        let took = us.elected().await;
        let due = Duration::from_secs(3)..Duration::from_secs(5);
        assert!(due.contains(&took), "{renewed}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_made_again() {
    let server = ApiServer::default();
    let tasks = Tasks::new();
    let only = replica(&server, "only", &tasks);
    only.elected().await;
    server.remove(PATH);
    pass(Duration::from_secs(5)).await;
    assert!(only.leads());
    assert_eq!(holder(&server), "only");
}
