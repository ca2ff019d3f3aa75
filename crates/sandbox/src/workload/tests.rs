//! Deployments and StatefulSets into the pods that they want.

use super::*;

fn deployment(image: &str) -> Workload {
    let raw = json!({ "spec": { "template": {
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": image }], "newField": 1 },
    } } });
    Workload::new(
        Kind::Deployment,
        ObjectKey::new("shop", "web"),
        2,
        template(&raw),
    )
}

fn set(image: &str) -> Workload {
    Workload {
        ordered: true,
        service: Some("db".to_owned()),
        kind: Kind::StatefulSet,
        key: ObjectKey::new("shop", "db"),
        ..deployment(image)
    }
}

fn existing(workload: &Workload, name: &str, ready: bool) -> Existing {
    Existing {
        key: ObjectKey::new("shop", name),
        owner: workload.owner(),
        hash: workload.hash.clone(),
        ready,
        terminating: false,
    }
}

fn actions(workload: &Workload, replicas: usize, pods: &[Existing]) -> Vec<Action> {
    plan(
        std::iter::once((workload, replicas)),
        pods,
        &mut fastrand::Rng::with_seed(1),
    )
}

fn deleted(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Delete(key) => Some(key.name.as_str()),
            Action::Create { .. } => None,
        })
        .collect()
}

fn created(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Create { key, .. } => Some(key.name.as_str()),
            Action::Delete(_) => None,
        })
        .collect()
}

#[test]
fn a_deployments_pods_look_like_those_of_a_cluster() {
    let web = deployment("a");
    let actions = actions(&web, 2, &[]);
    assert_eq!(created(&actions).len(), 2);
    let Action::Create { key, pod, .. } = &actions[0] else {
        panic!("{actions:?}")
    };
    let parts: Vec<_> = key.name.split('-').collect();
    assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("web", 10, 5));
    assert_eq!(pod["metadata"]["labels"]["pod-template-hash"], parts[1]);
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
    assert_eq!(
        pod["metadata"]["ownerReferences"][0]["name"],
        format!("web-{}", parts[1])
    );
    assert_eq!(pod["spec"]["newField"], 1, "unknown fields survive");
}

#[test]
fn scaling_down_takes_pods_that_do_not_serve_first() {
    let web = deployment("a");
    let pods = [
        existing(&web, "web-1", true),
        existing(&web, "web-2", false),
        existing(&web, "web-3", true),
    ];
    let actions = actions(&web, 2, &pods);
    assert_eq!(
        (deleted(&actions), created(&actions)),
        (vec!["web-2"], vec![])
    );
}

#[test]
fn a_changed_template_rolls_without_a_gap() {
    let (old, new) = (deployment("a"), deployment("b"));
    let mut pods = vec![existing(&old, "old-1", true), existing(&old, "old-2", true)];
    let first = actions(&new, 2, &pods);
    assert_eq!((created(&first).len(), deleted(&first).len()), (2, 0));
    pods.extend([
        existing(&new, "new-1", true),
        existing(&new, "new-2", false),
    ]);
    assert_eq!(actions(&new, 2, &pods), vec![]);
    pods[3].ready = true;
    assert_eq!(deleted(&actions(&new, 2, &pods)), ["old-1", "old-2"]);
}

#[test]
fn a_pod_is_replaced_when_its_manifest_changed_and_deleted_when_it_is_gone() {
    let key = ObjectKey::new("shop", "p");
    let (old, new) = (
        Workload::pod(key.clone(), json!({"spec": 1})),
        Workload::pod(key, json!({"spec": 2})),
    );
    let mut pod = existing(&old, "p", true);
    assert_eq!(actions(&old, 1, std::slice::from_ref(&pod)), vec![]);
    assert_eq!(
        deleted(&actions(&new, 1, std::slice::from_ref(&pod))),
        ["p"]
    );
    pod.terminating = true;
    assert_eq!(
        actions(&new, 1, std::slice::from_ref(&pod)),
        vec![],
        "it waits for the name"
    );
    assert_eq!(created(&actions(&new, 1, &[])), ["p"]);
    pod.terminating = false;
    let nothing = plan(std::iter::empty(), &[pod], &mut fastrand::Rng::with_seed(1));
    assert_eq!(deleted(&nothing), ["p"]);
}

#[test]
fn a_stateful_set_starts_in_order_and_rolls_from_the_end() {
    let (old, new) = (set("a"), set("b"));
    assert_eq!(created(&actions(&old, 2, &[])), ["db-0"]);
    let mut pods = vec![existing(&old, "db-0", false)];
    assert_eq!(actions(&old, 2, &pods), vec![], "db-1 waits for db-0");
    pods[0].ready = true;
    let second = actions(&old, 2, &pods);
    let [Action::Create { key, pod, .. }] = &second[..] else {
        panic!("{second:?}")
    };
    assert_eq!(
        (key.name.as_str(), &pod["spec"]["hostname"]),
        ("db-1", &json!("db-1"))
    );
    assert_eq!(pod["spec"]["subdomain"], "db");
    pods.push(existing(&old, "db-1", true));
    assert_eq!(deleted(&actions(&new, 2, &pods)), ["db-1"]);
    assert_eq!(deleted(&actions(&old, 1, &pods)), ["db-1"]);
}
