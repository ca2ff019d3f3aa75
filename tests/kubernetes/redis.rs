//! A server and its client, packed from this machine and run by the cluster: Services, DNS, exec and logs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Image;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually, gate};

tulle_tests::cases! { in Kubernetes:
    a_service_is_reached_by_name_from_another_node ["redis-server", "redis-cli"];
    exec_and_logs_are_those_of_the_container ["redis-server", "redis-cli"];
}

/// How long a node may take to learn of a Service's endpoints.
const SPREAD: Duration = Duration::from_secs(20);
/// The image, on nodes that run both tests.
const IMAGE: &str = "tulle.test/redis:1";

/// The server on one node, a client on the other.
const MANIFESTS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: redis }
spec:
  selector: { matchLabels: { app: redis } }
  template:
    metadata: { labels: { app: redis } }
    spec:
      nodeSelector: { kubernetes.io/hostname: node0 }
      terminationGracePeriodSeconds: 1
      containers:
      - name: redis
        image: tulle.test/redis:1
        args: [--save, "", --protected-mode, "no", --bind, 0.0.0.0, "::"]
        readinessProbe: { tcpSocket: { port: 6379 }, periodSeconds: 1 }
        livenessProbe: { exec: { command: [redis-cli, ping] } }
---
apiVersion: v1
kind: Service
metadata: { name: redis }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: redis }
  ports: [{ port: 6379 }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  nodeSelector: { kubernetes.io/hostname: node1 }
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: tulle.test/redis:1
    command: [sh, -c, "echo here; exec sleep 3600"]
"#;

async fn shop<'a>(kubernetes: &'a Kubernetes, name: &str) -> anyhow::Result<Namespace<'a>> {
    let mut image = Image::new(IMAGE, &["redis-server"]);
    for program in ["redis-server", "redis-cli", "sh", "sleep", "cat"] {
        let path = gate::find(program).with_context(|| format!("there is no {program}"))?;
        image = image.program(path);
    }
    kubernetes.cluster.load(&image)?;
    kubernetes.apply(name, MANIFESTS).await
}

async fn a_service_is_reached_by_name_from_another_node(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let shop = shop(kubernetes, "redis").await?;
    let pods = shop.get("pods")?;
    let on = |node: &str| pods.iter().any(|pod| pod["spec"]["nodeName"] == node);
    ensure!(on("node0") && on("node1"), "{pods:?}");
    let services = shop.get("services")?;
    let addresses = services[0]["spec"]["clusterIPs"].as_array();
    let addresses = addresses.context("a Service has addresses")?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    let addresses = addresses.iter().filter_map(Value::as_str);
    let names = ["redis", "redis.redis", "redis.redis.svc.cluster.local"];
    for (number, host) in names.into_iter().chain(addresses).enumerate() {
        let call = |argv: &[&str]| -> anyhow::Result<String> {
            let argv = [&["redis-cli", "-h", host][..], argv].concat();
            shop.exec("client", &argv, "")?.ok()
        };
        let value = format!("by way of {host}");
        let key = number.to_string();
        // That the pod is ready gets around.
        let set = eventually(SPREAD, async || call(&["set", &key, &value])).await?;
        ensure!(set.trim() == "OK", "{host}: {set}");
        let got = call(&["get", &key])?;
        ensure!(got.trim() == value, "{host}: {got}");
    }
    let nobody = shop.exec("client", &["redis-cli", "-h", "nobody", "ping"], "")?;
    ensure!(nobody.status != 0, "{nobody}");
    ensure!(
        nobody.stderr.contains("Name or service not known"),
        "{nobody}"
    );
    Ok(())
}

async fn exec_and_logs_are_those_of_the_container(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let shop = shop(kubernetes, "exec").await?;
    let script = ["sh", "-c", "cat; echo no >&2; exit 7"];
    let ran = shop.exec("client", &script, "to and fro")?;
    ensure!(ran.status == 7 && ran.stdout == "to and fro", "{ran}");
    ensure!(ran.stderr.starts_with("no\n"), "{ran}");
    let log = shop.ask(["logs", "client"], "")?;
    ensure!(log == "here\n", "{log}");
    let log = shop.ask(["logs", "deployment/redis"], "")?;
    ensure!(log.contains("Ready to accept connections"), "{log}");
    Ok(())
}
