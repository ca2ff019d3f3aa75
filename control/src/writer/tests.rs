//! The writer, over a hand-written API server and by a clock that only the test moves.

use serde_json::json;
use tulle_runtime::tasks::Tasks;

use super::places::PATIENCE;
use super::*;
use crate::platform::hand_written_api_server::{ApiServer, Fault};
use crate::store::{MeshSettings, Store, StoreWriter};

/// A cluster whose namespaces all ask for the mesh.
struct Lab {
    server: ApiServer,
    sink: ClusterSink,
    metrics: Metrics,
    tasks: Tasks,
    _store: StoreWriter,
    _worlds: watch::Sender<Arc<World>>,
}

impl Lab {
    fn new() -> Self {
        let server = ApiServer::default();
        let (store, stored) = Store::new(MeshSettings::default());
        let (sender, worlds) = watch::channel(store.world());
        let metrics = Metrics::register(&mut Registry::default());
        let leadership = Leadership::alone();
        let (writer, sink) = Writer::new(server.client(), leadership, worlds, metrics.clone());
        let tasks = Tasks::new();
        let cancelled = tasks.cancelled();
        tasks.spawn("writer", async move {
            tokio::select! {
                () = cancelled => {}
                () = writer.run() => {}
            }
        });
        let lab = Self {
            server,
            sink,
            metrics,
            tasks,
            _store: stored,
            _worlds: sender,
        };
        for namespace in [names::CONTROL_NAMESPACE, "shop", "full"] {
            lab.label(namespace);
        }
        lab
    }

    fn label(&self, namespace: &str) {
        let labels = json!({ names::labels::INJECT: "enabled" });
        let object = json!({ "metadata": { "labels": labels } });
        self.server
            .put(&format!("/api/v1/namespaces/{namespace}"), object);
    }

    /// From now on its ConfigMap cannot be written.
    fn refuse(&self, namespace: &str) {
        let write = format!("PATCH /api/v1/namespaces/{namespace}/configmaps");
        for _ in 0..2_000 {
            self.server.fault(&write, Fault::Answers(403));
        }
    }

    /// Whether the bundle has arrived with all that are waited for.
    async fn arrives(&self, pem: &str) -> bool {
        self.sink.publish(pem).await.is_ok()
    }

    fn has(&self, namespace: &str) -> serde_json::Value {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/tulle-ca-root");
        let map = self.server.get(&path).unwrap_or_default();
        map["data"]["root.pem"].clone()
    }

    fn refused(&self, place: &str) -> Option<i64> {
        let place = place.to_owned();
        let labels = PlaceLabels { place };
        self.metrics.refused.get(&labels).map(|gauge| gauge.get())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

const FULL: &str = "ConfigMap full/tulle-ca-root";

#[tokio::test(start_paused = true)]
async fn a_namespace_that_cannot_be_written_is_waited_for_an_hour_and_told() {
    let lab = Lab::new();
    assert!(lab.arrives("one").await);
    lab.refuse("full");
    let error = lab.sink.publish("two").await.expect_err("it is waited for");
    assert!(error.to_string().starts_with(FULL), "{error}");
    assert_eq!(lab.has("shop"), "two", "others have it meanwhile");
    let event = "/api/v1/namespaces/full/events/tulle-ca-root.not-written";
    let event = lab.server.get(event).expect("its author is told");
    assert_eq!(event["reason"], "TrustBundleNotWritten");
    assert_eq!(event["involvedObject"]["name"], "tulle-ca-root");
    assert_eq!(lab.refused(FULL), Some(1));
    pass(PATIENCE - Duration::from_secs(60)).await;
    assert!(!lab.arrives("two").await);
    pass(Duration::from_secs(60)).await;
    assert!(lab.arrives("two").await, "the others go on");
    assert_eq!(lab.refused(FULL), Some(2));
    assert!(lab.sink.refused()[0].starts_with(FULL));
    assert!(lab.sink.lacks("full", "two"));
    assert!(!lab.sink.lacks("shop", "two") && !lab.sink.lacks("unknown", "two"));
    lab.server.heal();
    pass(Duration::from_secs(12)).await;
    assert_eq!(lab.has("full"), "two", "it is tried again for ever");
    assert_eq!((lab.refused(FULL), lab.sink.refused().len()), (None, 0));
    assert!(!lab.sink.lacks("full", "two"));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_namespace_in_which_no_pod_can_have_started() {
    let lab = Lab::new();
    lab.refuse("full");
    assert!(lab.arrives("one").await);
    assert!(!lab.sink.lacks("full", "one"), "it has none at all");
    // The next one, too.
    assert!(lab.arrives("two").await);
}

#[tokio::test(start_paused = true)]
async fn patience_begins_anew_with_another_bundle() {
    let lab = Lab::new();
    assert!(lab.arrives("one").await);
    lab.refuse("full");
    assert!(!lab.arrives("two").await);
    pass(PATIENCE).await;
    assert!(lab.arrives("two").await);
    assert!(!lab.arrives("three").await);
}

#[tokio::test(start_paused = true)]
async fn everybody_waits_for_the_namespace_of_the_control_plane() {
    let lab = Lab::new();
    lab.refuse(names::CONTROL_NAMESPACE);
    for _ in 0..3 {
        assert!(!lab.arrives("one").await);
        pass(PATIENCE).await;
    }
}

/// A webhook configuration with our label, whose webhook calls a Service.
fn configuration(lab: &Lab, name: &str, service: &str) -> String {
    let path =
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
    let (namespace, service) = service.split_once('/').expect("two names");
    let webhook = json!({
        "name": "one.webhook",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": { "service": { "namespace": namespace, "name": service } },
    });
    let labels = json!({ names::labels::PART_OF: names::labels::PART_OF_TULLE });
    let object = json!({ "metadata": { "labels": labels }, "webhooks": [webhook] });
    lab.server.put(&path, object);
    path
}

#[tokio::test(start_paused = true)]
async fn whose_webhooks_call_somebody_else_is_left_alone() {
    let lab = Lab::new();
    let ours = configuration(&lab, "tulle-injector", "tulle-system/tulle-injector");
    let others = [
        configuration(&lab, "dashboards", "dashboards/webhook"),
        configuration(&lab, "namesake", "shop/tulle-injector"),
    ];
    assert!(lab.arrives("one").await, "nobody waits for others");
    let bundle = |path: &str| {
        let object = lab.server.get(path).expect("it is there");
        object["webhooks"][0]["clientConfig"]["caBundle"].clone()
    };
    assert!(bundle(&ours).is_string());
    for other in others {
        assert!(bundle(&other).is_null(), "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn webhooks_that_may_not_be_written_are_waited_for_an_hour_and_others_for_ever() {
    for (code, hour) in [(403, true), (500, false)] {
        let lab = Lab::new();
        let path = configuration(&lab, "copy", "tulle-system/tulle-injector");
        for _ in 0..2_000 {
            lab.server
                .fault(&format!("PATCH {path}"), Fault::Answers(code));
        }
        assert!(!lab.arrives("one").await);
        pass(PATIENCE - Duration::from_secs(60)).await;
        assert!(!lab.arrives("one").await);
        pass(Duration::from_secs(60)).await;
        assert_eq!(lab.arrives("one").await, hour, "{code}");
    }
}
