//! Workloads whose pods are not made, in Kubernetes' own words: for their sidecars' sake, or for another reason.
//!
//! Deployments, ReplicaSets and ReplicationControllers have a condition for it; of others only Events tell, which say nothing of what has been since. So an
//! Event counts only while pods are missing.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, ReplicationController};
use kube::ResourceExt as _;
use tulle_runtime::names::containers::{CAPTURE, PROXY, STATE_VOLUME, TOKEN_VOLUME};

use super::finding::{Findings, Level};
use super::workloads::Scope;
use crate::cluster::error::ClusterError;

/// Controllers try again after 1,000 s at most: what is older is over, or they have given up.
const RECENT: SignedDuration = SignedDuration::from_mins(20);
/// The reason of an Event that tells of a pod that was not made.
const FAILED: &str = "FailedCreate";
/// With which the names of our webhooks end, and those of labels and annotations begin.
const DOMAIN: &str = "tulle.dev";

/// A workload, and why its pods are not made.
#[derive(Debug, PartialEq, Eq)]
struct Unmade {
    namespace: String,
    /// As `kubectl` takes it.
    name: String,
    message: String,
}

/// Looks at those of all namespaces for what sidecars keep out, and at those of meshed ones for all else.
pub(super) async fn look(
    scope: &Scope<'_>,
    meshed: &[Namespace],
    findings: &mut Findings,
) -> Result<(), ClusterError> {
    let mut unmade = Vec::new();
    let all_seen = find(scope, &mut unmade).await;
    let is_meshed = |name: &str| meshed.iter().any(|it| it.name_any() == name);
    judge(unmade, is_meshed, findings);
    all_seen
}

/// Finds them, up to where somebody may not look further.
async fn find(scope: &Scope<'_>, unmade: &mut Vec<Unmade>) -> Result<(), ClusterError> {
    let deployments: Vec<Deployment> = scope.list("Deployments", "").await?;
    unmade.extend(deployments.iter().filter_map(of_deployment));
    let sets: Vec<ReplicaSet> = scope.list("ReplicaSets", "").await?;
    unmade.extend(sets.iter().filter_map(of_replica_set));
    let controllers: Vec<ReplicationController> = scope.list("ReplicationControllers", "").await?;
    unmade.extend(controllers.iter().filter_map(of_controller));
    let fields = format!("reason={FAILED}");
    let mut events: Vec<Event> = scope.list_with("Events", "", &fields).await?;
    events.retain(|it| is_recent(it, Timestamp::now()));
    if events.is_empty() {
        return Ok(());
    }
    let sets: Vec<StatefulSet> = scope.list("StatefulSets", "").await?;
    let sets = sets.iter().filter(|it| lacks_replicas(it));
    unmade.extend(sets.filter_map(|it| told("statefulset", it, &events)));
    let sets: Vec<DaemonSet> = scope.list("DaemonSets", "").await?;
    let sets = sets.iter().filter(|it| lacks_daemons(it));
    unmade.extend(sets.filter_map(|it| told("daemonset", it, &events)));
    let jobs: Vec<Job> = scope.list("Jobs", "").await?;
    let jobs = jobs.iter().filter(|it| lacks_all(it));
    unmade.extend(jobs.filter_map(|it| told("job", it, &events)));
    Ok(())
}

fn judge(unmade: Vec<Unmade>, is_meshed: impl Fn(&str) -> bool, findings: &mut Findings) {
    let (of_sidecars, others): (Vec<_>, Vec<_>) = unmade.into_iter().partition(|it| {
        // A LimitRange does not name the container.
        let ranges = [" per Container is ", " per Pod is "];
        let of_any = || ranges.iter().any(|words| it.message.contains(words));
        names_us(&it.message) || (is_meshed(&it.namespace) && of_any())
    });
    let said = |it: Unmade| {
        let state = format!("its pods are not made: {}", it.message);
        (format!("{}/{}", it.namespace, it.name), state)
    };
    findings.few(
        Level::Error,
        of_sidecars.into_iter().map(said),
        "put right in its pod template, or in its namespace, what the message says",
    );
    let others = others.into_iter().filter(|it| is_meshed(&it.namespace));
    findings.few(
        Level::Warning,
        others.map(said),
        "put right what the message says, which names nothing of the mesh; what sidecars ask for counts in quotas, too",
    );
}

/// Whether a message is about our webhooks, or what they add. Workloads of others may be called almost as we are.
fn names_us(message: &str) -> bool {
    let within = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '.';
    let words = message.split(|it| !within(it));
    let mut words = words.map(|it| it.trim_end_matches('.'));
    let added = [CAPTURE, PROXY, TOKEN_VOLUME, STATE_VOLUME];
    words.any(|it| added.contains(&it) || it.ends_with(DOMAIN))
}

fn of_deployment(deployment: &Deployment) -> Option<Unmade> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let mut conditions = conditions.map(|it| (&*it.type_, &*it.status, it.message.as_deref()));
    let message = conditions.find_map(failure)?;
    Some(unmade("deployment", deployment, message))
}

/// One of a Deployment's is left to that, which says the same.
fn of_replica_set(set: &ReplicaSet) -> Option<Unmade> {
    let mut owners = set.owner_references().iter();
    if owners.any(|it| it.controller == Some(true)) {
        return None;
    }
    let conditions = set.status.as_ref()?.conditions.iter().flatten();
    let mut conditions = conditions.map(|it| (&*it.type_, &*it.status, it.message.as_deref()));
    let message = conditions.find_map(failure)?;
    Some(unmade("replicaset", set, message))
}

fn of_controller(controller: &ReplicationController) -> Option<Unmade> {
    let conditions = controller.status.as_ref()?.conditions.iter().flatten();
    let mut conditions = conditions.map(|it| (&*it.type_, &*it.status, it.message.as_deref()));
    let message = conditions.find_map(failure)?;
    Some(unmade("replicationcontroller", controller, message))
}

fn failure<'a>((kind, status, message): (&str, &str, Option<&'a str>)) -> Option<&'a str> {
    message.filter(|_| kind == "ReplicaFailure" && status == "True")
}

fn unmade(kind: &str, workload: &impl kube::ResourceExt, message: &str) -> Unmade {
    Unmade {
        namespace: workload.namespace().unwrap_or_default(),
        name: format!("{kind}/{}", workload.name_any()),
        message: message.to_owned(),
    }
}

/// What was said last of a workload.
fn told(kind: &str, workload: &impl kube::ResourceExt, events: &[Event]) -> Option<Unmade> {
    let of_it = |it: &&Event| it.involved_object.uid == workload.uid();
    let last = events.iter().filter(of_it).max_by_key(|it| last_seen(it))?;
    let message = last.message.as_deref().unwrap_or(FAILED);
    Some(unmade(kind, workload, message))
}

fn is_recent(event: &Event, now: Timestamp) -> bool {
    last_seen(event).is_some_and(|seen| now.duration_since(seen) < RECENT)
}

/// When it was so last, whichever way whoever writes Events says it.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref();
    let series = series.and_then(|it| it.last_observed_time.as_ref().map(|it| it.0));
    let last = event.last_timestamp.as_ref().map(|it| it.0);
    let first = event.event_time.as_ref().map(|it| it.0);
    [series, last, first].into_iter().flatten().max()
}

fn lacks_replicas(set: &StatefulSet) -> bool {
    let wanted = set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1);
    let made = set.status.as_ref().map_or(0, |it| it.replicas);
    made < wanted
}

fn lacks_daemons(set: &DaemonSet) -> bool {
    let status = set.status.as_ref();
    status.is_some_and(|it| it.current_number_scheduled < it.desired_number_scheduled)
}

/// Whether a Job is to run and has no pod.
fn lacks_all(job: &Job) -> bool {
    let status = job.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.iter().flatten();
    let rests = ["Complete", "Failed", "Suspended"];
    let rests = conditions.any(|it| rests.contains(&&*it.type_) && it.status == "True");
    !rests && status.active.unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::hand_written::api_server;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn metadata(uid: &str) -> Value {
        json!({ "name": "web", "namespace": "shop", "uid": uid })
    }

    #[test]
    fn a_workload_whose_pods_are_not_made_is_an_error_for_its_sidecars_sake_and_a_warning_for_another()
     {
        let webhook = "admission webhook \"namespace.injector.tulle.dev\" denied the request: no";
        let range = "minimum cpu usage per Container is 50m, but request is 10m";
        let whole = "maximum memory usage per Pod is 128Mi, but limit is 300Mi";
        let quota = "exceeded quota: pods, requested: pods=1";
        let alike =
            "pods \"tulle-proxy-board-7d9c\" is forbidden: exceeded quota: pods, requested: pods=1";
        let policy = "violates PodSecurity \"baseline:latest\": (container \"tulle-capture\" must not include NET_ADMIN)";
        let lacks = "failed quota: cpu: must specify limits.cpu for: app,tulle-proxy.";
        for (message, in_mesh, level) in [
            (webhook, true, Some(Level::Error)),
            (webhook, false, Some(Level::Error)),
            (policy, false, Some(Level::Error)),
            (lacks, false, Some(Level::Error)),
            (
                "annotation tulle.dev/status is not allowed",
                false,
                Some(Level::Error),
            ),
            (range, true, Some(Level::Error)),
            (range, false, None),
            (whole, true, Some(Level::Error)),
            (whole, false, None),
            (alike, true, Some(Level::Warning)),
            (alike, false, None),
            (quota, true, Some(Level::Warning)),
            (quota, false, None),
        ] {
            let mut findings = Findings::default();
            let of = Unmade {
                namespace: "shop".to_owned(),
                name: "deployment/web".to_owned(),
                message: message.to_owned(),
            };
            judge(vec![of], |name| in_mesh && name == "shop", &mut findings);
            let found = findings.all.first();
            assert_eq!(found.map(|it| it.level), level, "{message} {in_mesh}");
            if let Some(found) = found {
                assert_eq!(found.subject, "shop/deployment/web");
                assert_eq!(found.state, format!("its pods are not made: {message}"));
            }
        }
    }

    #[test]
    fn a_condition_tells_of_deployments_controllers_and_replica_sets_of_nobody() {
        let with = |owned: bool, kind: &str, status: &str| {
            let condition = json!({ "type": kind, "status": status, "message": "no" });
            let mut metadata = metadata("1");
            if owned {
                let owner = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "2", "controller": true });
                metadata["ownerReferences"] = json!([owner]);
            }
            json!({ "metadata": metadata, "status": { "replicas": 0, "conditions": [condition] } })
        };
        for (kind, status, expected) in [
            ("ReplicaFailure", "True", true),
            ("ReplicaFailure", "False", false),
            ("Available", "True", false),
        ] {
            let deployment = of_deployment(&read(with(false, kind, status)));
            let name = deployment.map(|it| it.name);
            assert_eq!(name.is_some(), expected, "{kind} {status}");
            let controller = of_controller(&read(with(false, kind, status)));
            let name = controller.map(|it| it.name);
            assert_eq!(
                name.as_deref(),
                expected.then_some("replicationcontroller/web")
            );
            let set = of_replica_set(&read(with(false, kind, status)));
            let name = set.map(|it| it.name);
            assert_eq!(name.as_deref(), expected.then_some("replicaset/web"));
            assert_eq!(of_replica_set(&read(with(true, kind, status))), None);
        }
    }

    #[tokio::test]
    async fn what_a_condition_tells_is_told_also_where_events_may_not_be_seen() {
        let deployment = |path: &str| {
            let condition = json!({ "type": "ReplicaFailure", "status": "True", "message": "container \"tulle-proxy\"" });
            let status = json!({ "conditions": [condition] });
            let items = match path.rsplit_once('/')?.1 {
                "deployments" => json!([{ "metadata": metadata("1"), "status": status }]),
                "replicasets" | "replicationcontrollers" => json!([]),
                _ => return None,
            };
            Some(json!({ "metadata": {}, "items": items }))
        };
        let scope = Scope {
            client: &api_server(deployment),
            namespace: None,
            injectors: None,
        };
        let mut findings = Findings::default();
        let looked = look(&scope, &[], &mut findings).await;
        let unseen = looked.expect_err("there are no Events").to_string();
        assert!(unseen.contains("list the Events"), "{unseen}");
        let subjects: Vec<_> = findings.all.iter().map(|it| &*it.subject).collect();
        assert_eq!(subjects, ["shop/deployment/web"]);
    }

    #[test]
    fn an_event_tells_of_the_workload_that_it_is_about_and_the_last_one_counts() {
        let event = |uid: &str, message: &str, minute: u8| -> Event {
            read(json!({
                "metadata": {}, "involvedObject": { "uid": uid }, "message": message,
                "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
            }))
        };
        let events = [
            event("1", "before", 3),
            event("1", "quota", 5),
            event("2", "of another", 7),
        ];
        let job = |uid: &str| -> Job { read(json!({ "metadata": metadata(uid) })) };
        let said = |uid| told("job", &job(uid), &events).map(|it| (it.name, it.message));
        let expected = ("job/web".to_owned(), "quota".to_owned());
        assert_eq!(said("1"), Some(expected));
        assert_eq!(said("3"), None);
        for (minute, recent) in [(15, true), (40, false)] {
            let now = format!("2026-01-01T00:{minute}:00Z");
            let now = now.parse().expect("a time");
            assert_eq!(is_recent(&events[1], now), recent, "{minute}");
        }
    }

    #[test]
    fn an_event_of_before_says_nothing_of_a_workload_that_has_its_pods() {
        let set = |wanted: Value, made: i32| {
            let spec =
                json!({ "replicas": wanted, "selector": {}, "serviceName": "x", "template": {} });
            let set =
                json!({ "metadata": metadata("1"), "spec": spec, "status": { "replicas": made } });
            lacks_replicas(&read(set))
        };
        assert!(set(json!(2), 1) && set(Value::Null, 0));
        assert!(!set(json!(2), 2) && !set(json!(0), 0) && !set(Value::Null, 1));
        let daemons = |wanted: i32, made: i32| {
            lacks_daemons(&read(json!({ "metadata": metadata("1"), "status": {
                "desiredNumberScheduled": wanted, "currentNumberScheduled": made,
                "numberMisscheduled": 0, "numberReady": 0,
            } })))
        };
        assert!(daemons(2, 1) && !daemons(2, 2));
        let job = |status: Value| {
            lacks_all(&read(
                json!({ "metadata": metadata("1"), "status": status }),
            ))
        };
        let rests = |kind: &str, status: &str| json!({ "conditions": [{ "type": kind, "status": status }] });
        assert!(job(json!({})) && job(rests("Suspended", "False")));
        assert!(!job(json!({ "active": 1 })) && !job(rests("Complete", "True")));
        assert!(!job(rests("Suspended", "True")));
    }
}
