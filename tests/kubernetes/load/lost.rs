//! A node that is gone at once, with its servers, its parts of the mesh and everything in flight. Some call often and some
//! seldom, some over connections that they share and some over one each time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, eventually};

use super::generators::Generators;
use super::shop::{CLIENT, SERVERS, settle};

tulle_tests::cases! { in Kubernetes:
    traffic_leaves_a_lost_node_before_its_endpoints_go ["alone"];
}

const LOST: &str = "node1";
/// How long traffic may take to leave, and the report of the last second that has met the node to come.
const LEFT: Duration = Duration::from_secs(5);
/// How long traffic is watched after that.
const WATCHED: Duration = Duration::from_secs(10);
/// Slower than this is a request, in milliseconds, that has met the lost node.
const SLOW: f64 = 500.0;
/// How long what is new may take with half of the parts gone.
const RECOVERED: Duration = Duration::from_secs(120);

/// How many requests over gRPC may have been sent to the lost node that nobody may send again: of those within two seconds.
const IN_FLIGHT: u64 = 40;

/// Who calls once in a while, over HTTP and over TCP with a connection each time.
const SELDOM: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: seldom, labels: { app: seldom, load: seldom } }
spec:
  nodeSelector: { kubernetes.io/hostname: node0 }
  terminationGracePeriodSeconds: 15
  containers:
  - name: seldom-http
    image: tulle.test/tulle:1
    args: [app, load, --url, "http://web/", --rate, "4", --timeout, 20s]
  - name: seldom-tcp
    image: tulle.test/tulle:1
    args: [app, load, --url, "tcp://web:7000", --rate, "4", --no-reuse, --timeout, 20s]
"#;

/// One more server, on a node.
fn server(name: &str, node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: web }} }}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {{ kubernetes.io/hostname: {node} }}
  containers:
  - name: web
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --grpc, "9000", --tcp, "7000", --name, web]
    ports: [{{ name: http, containerPort: 8080 }}, {{ name: grpc, containerPort: 9000 }}]
    readinessProbe: {{ httpGet: {{ path: /ready, port: http }}, periodSeconds: 1 }}
"#
    )
}

async fn traffic_leaves_a_lost_node_before_its_endpoints_go(_: &Kubernetes) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2)?;
    install::install(&cluster, &[]).await?;
    let mut load = Generators::default();
    {
        let label = "tulle.dev/inject=enabled";
        let servers = [
            ("replicas: 3", "replicas: 4"),
            ("--grpc, \"9000\"", "--grpc, \"9000\", --tcp, \"7000\""),
            (
                "port: 9000, targetPort: grpc }",
                "port: 9000, targetPort: grpc }, { name: tcp, port: 7000 }",
            ),
        ];
        let servers = servers
            .iter()
            .fold(SERVERS.to_owned(), |all, (from, to)| all.replace(from, to));
        let shop = Namespace::apply(&cluster, "lost", label, &servers).await?;
        settle(&shop, "web").await?;
        // Most of them are lost.
        shop.ask(["apply", "--server-side", "-f", "-"], &server("far", LOST))?;
        shop.ask(
            ["wait", "--for=condition=Ready", "pod/far", "--timeout=60s"],
            "",
        )?;
        ensure!(on(&shop.get("pods")?, LOST) == 3, "servers are not spread");
        let parts = cluster.ask(["get", "pods", "-n", SYSTEM, "-o", "json"], "")?;
        let parts: Value = serde_json::from_str(&parts)?;
        let parts = parts["items"].as_array().context("a list")?;
        ensure!(on(parts, LOST) == 2, "the parts are not spread");
        for client in [CLIENT, SELDOM] {
            shop.ask(["apply", "--server-side", "-f", "-"], client)?;
        }
        load.steady(&shop, 4).await?;
        // With the cluster it goes, too.
        std::mem::forget(shop);
    }
    let lost = Instant::now();
    cluster.lose(LOST)?;
    tokio::time::sleep(LEFT).await;
    // Its servers still count for Kubernetes.
    let slices = ["get", "endpointslices", "-n", "lost", "-o", "json"];
    let slices: Value = serde_json::from_str(&cluster.ask(slices, "")?)?;
    ensure!(ready_on(&slices, LOST) > 0, "they are gone: {slices}");
    tokio::time::sleep(WATCHED).await;

    for name in ["http", "grpc", "seldom-http", "seldom-tcp"] {
        let said = load.said(name);
        let bad: Vec<_> = said
            .iter()
            .filter(|(when, said)| *when > lost && is_bad(said))
            .map(|(when, said)| (*when - lost, &said["failed"], &said["latency_ms"]["p90"]))
            .collect();
        let failed: u64 = bad
            .iter()
            .filter_map(|(_, failed, _)| failed.as_u64())
            .sum();
        eprintln!("{name}: {failed} failed; seconds with failures or slow requests: {bad:?}");
        // Who calls seldom may meet the node late, and others of it no more from then on.
        let first = match name.starts_with("seldom") {
            true => bad.first().map_or(Duration::ZERO, |(when, ..)| *when),
            false => Duration::ZERO,
        };
        let left = bad.last().is_none_or(|(when, ..)| *when - first <= LEFT);
        ensure!(left, "traffic over {name} had not left in time: {bad:?}");
        let most = if name == "grpc" { IN_FLIGHT } else { 0 };
        ensure!(failed <= most, "{failed} requests over {name} failed");
    }

    let new = ["apply", "-n", "lost", "-f", "-"];
    let kept = server("new", "node0");
    eventually(RECOVERED, async || cluster.ask(new, &kept)).await?;
    let ready = [
        "wait",
        "-n",
        "lost",
        "--for=condition=Ready",
        "pod/new",
        "--timeout=0",
    ];
    eventually(RECOVERED, async || cluster.ask(ready, "")).await?;
    eprintln!("a new server was ready {:?} after the loss", lost.elapsed());
    let delete = ["delete", "-n", "lost", "--wait=false"];
    cluster.ask(
        delete
            .into_iter()
            .chain(["deployment/client", "pod/seldom"]),
        "",
    )?;
    let totals = load.total().await?;
    eprintln!("{totals:?}");
    for name in ["http", "grpc"] {
        let total = totals.get(name).context("there was load")?;
        ensure!(total.pods.contains("new"), "nobody was told of it: {total}");
    }
    totals
        .get("http")
        .context("there was load")?
        .lost_nothing()?;
    is_named_by_check(&cluster).await?;
    goes_but_for_what_nobody_can_end(&cluster)
}

/// Fails unless `tulle check` names the node, as something that the mesh works without, and says nothing of its pods that it cannot
/// know.
async fn is_named_by_check(cluster: &Cluster) -> anyhow::Result<()> {
    let program = Program::new()?;
    eventually(RECOVERED, async || {
        let said = program.run(cluster, &["check"])?;
        let named = said.stdout.lines().any(|line| {
            line.contains("warning")
                && line.contains(&format!("node {LOST}"))
                && line.contains("is not ready (since")
        });
        // Of the parts of the mesh on it nobody knows.
        ensure!(said.status != 0 && named, "{said}");
        ensure!(!said.stdout.contains("cannot believe"), "{said}");
        Ok(())
    })
    .await
}

/// Fails unless the mesh can be uninstalled, and what stays until the node is back is said, with what ends that.
fn goes_but_for_what_nobody_can_end(cluster: &Cluster) -> anyhow::Result<()> {
    let gone = Program::new()?.run(cluster, &["uninstall", "--yes", "--force"])?;
    let stays = |title: &str| {
        let said = format!("{title} is still there: it goes with its pods ");
        let mut lines = gone.stderr.lines();
        lines.any(|line| line.contains(&said) && line.contains("kubectl delete node node1"))
    };
    let deployments = ["tulle-control", "tulle-injector"];
    let named = deployments.map(|name| stays(&format!("Deployment {SYSTEM}/{name}")));
    ensure!(
        gone.status == 3 && named == [true; 2] && stays(&format!("Namespace {SYSTEM}")),
        "{gone}"
    );
    let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,secrets,serviceaccounts,configmaps";
    let ours = "app.kubernetes.io/part-of=tulle";
    let left = cluster.ask(["get", kinds, "-A", "-l", ours, "-o", "name"], "")?;
    ensure!(left.is_empty(), "{left}");
    cluster.ask(["delete", "node", LOST], "")?;
    let namespace = format!("namespace/{SYSTEM}");
    let wait = ["wait", "--for=delete", &namespace, "--timeout=2m"];
    cluster.ask(wait, "").map(drop)
}

/// How many pods are on a node.
fn on(pods: &[Value], node: &str) -> usize {
    let on = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node);
    on.count()
}

fn ready_on(slices: &Value, node: &str) -> usize {
    let slices = slices["items"].as_array().into_iter().flatten();
    let endpoints = slices.filter_map(|slice| slice["endpoints"].as_array());
    let on = endpoints.flatten().filter(|it| it["nodeName"] == node);
    on.filter(|it| it["conditions"]["ready"] == true).count()
}

/// Whether something of this second has failed, or more than one in ten requests was slow: one at a time finds out
/// whether an endpoint is back.
fn is_bad(second: &Value) -> bool {
    let slow = second["latency_ms"]["p90"].as_f64().unwrap_or(0.0);
    second["failed"] != 0 || slow > SLOW
}
