//! An application as people have it, of every kind of workload and protocol, under STRICT and without a change to it.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Image;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually, gate};

tulle_tests::cases! { in Kubernetes:
    every_kind_of_workload_works_under_strict ["redis-server", "redis-cli", "python3", "curl"];
}

/// How long the mesh may take to know of a change.
const SOON: Duration = Duration::from_secs(60);

const MANIFESTS: &str = include_str!("application.yaml");
/// What the stranger says, and what others do.
const PLAIN: &str = "said-in-the-clear";
const VEILED: &str = "said-behind-a-veil";
/// What the database is told by two of its names, and the key by which a CronJob counts.
const STORED: [&str; 2] = ["stored-by-name", "stored-in-full"];
const COUNTED: &str = "counted-behind-a-veil";
/// Listens to whatever passes a node, also among its own pods, until its input ends, and says which of its arguments it has heard.
const TAP: &str = "
import select, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
print('ready', flush=True)
seen = set()
while True:
    ready, _, _ = select.select([tap, sys.stdin], [], [])
    if tap in ready:
        packet, (interface, *_) = tap.recvfrom(1 << 16)
        # What kubelet and the container runtime say to each other there is not of the mesh.
        if interface != 'lo':
            seen.update(word for word in sys.argv[1:] if word.encode() in packet)
    elif sys.stdin in ready:
        break
print(' '.join(sorted(seen)))
";
/// The image of the database, packed from Debian.
const REDIS: &str = "tulle.test/redis:1";

/// Where the client calls, and what each answer has in it.
const CALLS: [(&str, &str); 6] = [
    ("http://web/", "web"),
    ("grpc://ledger:9000", "ledger"),
    ("tcp://echo:7000", VEILED),
    // A pod of a StatefulSet, by the name that its headless Service gives it.
    ("http://node-0.node:8080/", "node"),
    ("http://node:8080/", "node"),
    (
        "http://node-1.node.workloads.svc.cluster.local:8080/",
        "node",
    ),
];

async fn every_kind_of_workload_works_under_strict(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut image = Image::new(REDIS, &["redis-server"]);
    for program in ["redis-server", "redis-cli", "sh", "sleep", "cat"] {
        let path = gate::find(program).with_context(|| format!("there is no {program}"))?;
        image = image.program(path);
    }
    kubernetes.cluster.load(&image)?;
    let app = kubernetes.apply_meshed("workloads", MANIFESTS).await?;
    let wires = [
        Wire::tap(kubernetes, "node0")?,
        Wire::tap(kubernetes, "node1")?,
    ];
    strict(&app).await?;
    for (url, words) in CALLS {
        let answer = eventually(SOON, async || call(&app, url)).await?;
        ensure!(answer.to_string().contains(words), "{url}: {answer}");
    }
    for (name, value) in [
        ("redis", STORED[0]),
        ("redis.workloads.svc.cluster.local", STORED[1]),
    ] {
        let run = |argv: &[&str]| -> anyhow::Result<String> {
            let argv = [&["redis-cli", "-h", name][..], argv].concat();
            app.exec("deployment/cache-client", &argv, "")?.ok()
        };
        let set = eventually(SOON, async || run(&["set", "key", value])).await?;
        ensure!(set.trim() == "OK", "{set}");
        let got = run(&["get", "key"])?;
        ensure!(got.trim() == value, "{got}");
    }
    jobs_complete(&app).await?;
    for wire in wires {
        let seen = wire.seen()?;
        ensure!(seen == [PLAIN], "in passing was seen: {seen:?}");
    }
    all_are_mutual_tls(&app)?;
    stays_healthy(&app)?;
    people_reach_it(&app)
}

/// Somebody who listens on a node.
struct Wire(Child);

impl Wire {
    fn tap(kubernetes: &Kubernetes, node: &str) -> anyhow::Result<Self> {
        let mut command = kubernetes.cluster.node(node)?.on_network("python3");
        command
            .args(["-c", TAP, PLAIN, VEILED, COUNTED])
            .args(STORED)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().context("it has an output")?;
        stdout.read_exact(&mut ready)?;
        Ok(Self(child))
    }

    fn seen(mut self) -> anyhow::Result<Vec<String>> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let stdout = self.0.stdout.as_mut().context("it has an output")?;
        stdout.read_to_string(&mut said)?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing else is accepted from now on: neither from the kubelet nor from a pod without a sidecar.
async fn strict(app: &Namespace<'_>) -> anyhow::Result<()> {
    let outside = [
        "/usr/local/bin/tulle",
        "app",
        "call",
        "http://web/",
        "--data",
        PLAIN,
    ];
    // It is accepted until then, which shows that the stranger can call at all.
    eventually(SOON, async || app.exec("stranger", &outside, "")?.ok()).await?;
    let policy = "apiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: { name: strict }\n\
                  spec: { mtls: { mode: STRICT } }\n";
    app.ask(["apply", "--server-side", "-f", "-"], policy)?;
    eventually(SOON, async || {
        let ran = app.exec("stranger", &outside, "")?;
        ensure!(ran.status != 0, "plaintext was answered: {ran}");
        Ok(())
    })
    .await
}

/// What the sidecars of servers took came over mutual TLS from the client.
fn all_are_mutual_tls(app: &Namespace<'_>) -> anyhow::Result<()> {
    for (server, name) in [
        ("web", "istio_requests_total"),
        ("ledger", "istio_requests_total"),
        ("node", "istio_requests_total"),
        ("echo", "istio_tcp_connections_opened_total"),
        ("redis", "istio_tcp_connections_opened_total"),
    ] {
        let mut metrics = String::new();
        for pod in app.pods_of(server)? {
            metrics += &app.forward(&pod, 15020)?.get("/metrics")?;
        }
        let all: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.contains("reporter=\"destination\""))
            .collect();
        let mutual = all.iter().filter(|line| {
            line.contains("connection_security_policy=\"mutual_tls\"")
                && line
                    .contains("source_principal=\"spiffe://cluster.local/ns/workloads/sa/default\"")
        });
        let mutual = mutual.count();
        ensure!(
            mutual > 0,
            "{server}: nothing came over mutual TLS: {all:?}"
        );
        // The stranger was heard by one of them, for a while.
        ensure!(server == "web" || mutual == all.len(), "{server}: {all:?}");
    }
    Ok(())
}

async fn jobs_complete(app: &Namespace<'_>) -> anyhow::Result<()> {
    app.ask(["create", "job", "now", "--from=cronjob/again"], "")?;
    eventually(SOON, async || {
        let jobs = app.get("jobs")?;
        let of = |owned: bool| {
            jobs.iter()
                .filter(move |job| job["metadata"]["ownerReferences"].is_array() == owned)
        };
        let done = |job: &&Value| job["status"]["succeeded"] == 1;
        ensure!(
            of(false).all(|job| done(&job)) && of(false).count() == 1,
            "the Job goes on: {jobs:?}"
        );
        ensure!(
            of(true).any(|job| done(&job)),
            "no Job of the CronJob is done: {jobs:?}"
        );
        Ok(())
    })
    .await
}

/// Every pod is ready or done and no container has been restarted, although probes are plaintext and were answered for longer
/// than it takes to give a container up.
fn stays_healthy(app: &Namespace<'_>) -> anyhow::Result<()> {
    for pod in app.get("pods")? {
        let (status, name) = (&pod["status"], &pod["metadata"]["name"]);
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut met = conditions.filter(|it| it["status"] == "True");
        let ready = met.any(|it| it["type"] == "Ready") || status["phase"] == "Succeeded";
        ensure!(ready, "{name}: {status}");
        let lists = ["initContainerStatuses", "containerStatuses"];
        let containers = lists
            .iter()
            .flat_map(|list| status[*list].as_array().into_iter().flatten());
        for container in containers {
            ensure!(container["restartCount"] == 0, "{name}: {container}");
        }
    }
    Ok(())
}

/// `kubectl exec` was used all along; `logs` and `port-forward` work, too.
fn people_reach_it(app: &Namespace<'_>) -> anyhow::Result<()> {
    let log = app.ask(["logs", "deployment/redis", "-c", "redis"], "")?;
    ensure!(log.contains("Ready to accept connections"), "{log}");
    let answer = app
        .forward(&app.pods_of("web")?[0], 8080)?
        .get("/by-hand")?;
    ensure!(answer.contains("/by-hand"), "{answer}");
    Ok(())
}

/// What the client is answered.
fn call(app: &Namespace<'_>, url: &str) -> anyhow::Result<Value> {
    let argv = [
        "/usr/local/bin/tulle",
        "app",
        "call",
        url,
        "--json",
        "--data",
        VEILED,
    ];
    let said = app.exec("deployment/client", &argv, "")?.ok()?;
    serde_json::from_str(&said).context("one document")
}
