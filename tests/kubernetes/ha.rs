//! The profile for high availability: as many nodes as replicas, and nobody who empties one takes what others need.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::Program;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::{Kubernetes, eventually};

tulle_tests::cases! { in Kubernetes:
    the_profile_ha_is_rolled_where_nodes_are_as_many_as_replicas_and_evictions_take_turns ["alone"];
}

/// How long pods may take to come and go, on a busy machine.
const SOON: Duration = Duration::from_secs(120);
/// What profile `ha` is made of, to be set.
const HA: [&str; 6] = [
    "control.replicas=3",
    "control.antiAffinity=required",
    "control.autoscaling.enabled=true",
    "injector.replicas=3",
    "injector.antiAffinity=required",
    "injector.autoscaling.enabled=true",
];

async fn the_profile_ha_is_rolled_where_nodes_are_as_many_as_replicas_and_evictions_take_turns(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    install::install(&cluster, &HA).await?;
    let before = eventually(SOON, async || three(&cluster)).await?;
    let restart = ["rollout", "restart", "-n", SYSTEM];
    let parts = ["deployment/tulle-control", "deployment/tulle-injector"];
    cluster.ask(restart.into_iter().chain(parts), "")?;
    let after = eventually(SOON, async || {
        install::serves(&cluster)?;
        three(&cluster)
    })
    .await?;
    ensure!(before.is_disjoint(&after), "{before:?} became {after:?}");

    for part in ["tulle-control-", "tulle-injector-"] {
        let mut pods = after.iter().filter(|name| name.starts_with(part));
        let (first, second) = pods.next().zip(pods.next()).context("there are three")?;
        evict(&cluster, first)?;
        let refused = evict(&cluster, second).err();
        let refused = refused.context("two were evicted at once")?;
        let refused = format!("{refused:#}");
        ensure!(refused.contains("disruption budget"), "{refused}");
    }
    eventually(SOON, async || three(&cluster)).await?;
    back_to_where_two_may_be_on_one_node(&cluster)
}

/// Fails unless the way back is as free, and an upgrade whose pods have nowhere to be says so.
fn back_to_where_two_may_be_on_one_node(cluster: &Cluster) -> anyhow::Result<()> {
    let program = Program::new()?;
    let images = program.image_values();
    let upgrade = |wait: &str, more: &[&str]| {
        let values = HA.iter().chain(more).copied();
        let values = values.chain(images.iter().map(String::as_str));
        let set = values.flat_map(|value| ["--set", value]);
        let arguments: Vec<_> = ["upgrade", "--yes", wait].into_iter().chain(set).collect();
        program.run(cluster, &arguments)
    };
    let preferred = [
        "control.antiAffinity=preferred",
        "injector.antiAffinity=preferred",
    ];
    let back = upgrade("--wait=2m", &preferred)?;
    ensure!(back.status == 0, "{back}");
    for part in ["tulle-control", "tulle-injector"] {
        let said = format!("Deployment {SYSTEM}/{part} is rolled out");
        ensure!(back.stderr.contains(&said), "{back}");
    }
    install::serves(cluster)?;
    let nowhere = [&preferred[..], &["injector.nodeSelector.nowhere=it"]].concat();
    let stuck = upgrade("--wait=5s", &nowhere)?;
    ensure!(
        stuck.status == 1
            && stuck.stderr.contains(
                "tulle-system/tulle-injector has not got on for 5 s: 1 of 3 pods are new"
            )
            && stuck.stderr.contains("didn't match Pod's node affinity"),
        "{stuck}"
    );
    let again = upgrade("--no-wait", &nowhere)?;
    ensure!(
        again.status == 0 && again.stderr.contains("Nothing would change"),
        "{again}"
    );
    let found = program.run(cluster, &["check"])?;
    ensure!(
        found.status == 1
            && found
                .stdout
                .contains("its rollout does not get on: 1 of 3 pods are new")
            && found.stdout.contains("didn't match Pod's node affinity"),
        "{found}"
    );
    upgrade(
        "--no-wait",
        &[&preferred[..], &["proxy.cpuRequest=11m"]].concat(),
    )?
    .ok()?;
    program.run(cluster, &["check", "--wait=2m"])?.ok()?;
    let over = [
        "rollout",
        "status",
        "-n",
        SYSTEM,
        "--watch=false",
        "deployment/tulle-injector",
    ];
    let over = cluster.ask(over, "")?;
    ensure!(over.contains("successfully rolled out"), "{over}");
    Ok(())
}

/// Fails unless each part has three pods that are ready, on three nodes; their names.
fn three(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let pods = ["get", "pods", "-n", SYSTEM, "-o", "json"];
    let pods: Value = serde_json::from_str(&cluster.ask(pods, "")?)?;
    let pods = pods["items"].as_array().context("a list")?;
    let mut places = BTreeSet::new();
    for pod in pods {
        let name = &pod["metadata"]["name"];
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
        let ending = !pod["metadata"]["deletionTimestamp"].is_null();
        ensure!(ready && !ending, "{name} is not ready: {}", pod["status"]);
        let part = &pod["metadata"]["labels"]["app.kubernetes.io/name"];
        places.insert(format!("{part} on {}", pod["spec"]["nodeName"]));
    }
    ensure!(pods.len() == 6 && places.len() == 6, "{places:?}");
    let names = pods
        .iter()
        .filter_map(|pod| pod["metadata"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Asks the API server to end a pod as whoever empties a node does.
fn evict(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}/eviction");
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "name": pod, "namespace": SYSTEM },
    });
    let create = ["create", "--raw", &path, "-f", "-"];
    cluster.ask(create, &eviction.to_string())
}
