//! Pods that are a little odd, in the installed mesh: what becomes of them, and where their authors read of it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Image;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually, gate};

use crate::load::order::WEB;

tulle_tests::cases! { in Kubernetes:
    pods_with_resolvers_of_their_own_find_the_control_plane;
    a_copy_that_kubectl_debug_makes_of_a_pod_runs_in_the_mesh;
    the_author_of_a_deployment_reads_at_it_what_is_wrong_with_its_pods;
    prometheus_gets_both_metrics_under_strict_of_apps_with_http_and_https ["etcd", "curl"];
}

const SOON: Duration = Duration::from_secs(90);
const CALL: [&str; 4] = ["/usr/local/bin/tulle", "app", "call", "http://web/"];

/// Of the first nothing is added to a name: it is whole, or it is not found. The others ask somebody who knows no names of the
/// cluster, and nobody at all.
const RESOLVERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: whole }
spec:
  terminationGracePeriodSeconds: 1
  dnsConfig: { options: [{ name: ndots, value: "0" }] }
  containers: [{ name: app, image: "tulle.test/pause:1" }]
---
apiVersion: v1
kind: Pod
metadata: { name: of-the-node }
spec:
  terminationGracePeriodSeconds: 1
  dnsPolicy: Default
  containers: [{ name: app, image: "tulle.test/pause:1" }]
---
apiVersion: v1
kind: Pod
metadata: { name: of-nobody }
spec:
  terminationGracePeriodSeconds: 1
  dnsPolicy: None
  dnsConfig: { nameservers: [127.0.0.1] }
  containers: [{ name: app, image: "tulle.test/pause:1" }]
"#;

/// A workload whose annotations have no effect, the one by its name and the other by its value.
const MISTAKEN: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: mistaken }
spec:
  replicas: 2
  selector: { matchLabels: { app: mistaken } }
  template:
    metadata:
      labels: { app: mistaken }
      annotations: { tulle.dev/exlude-inbound-ports: "9000", tulle.dev/proxy-log-level: loud }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: app, image: "tulle.test/pause:1" }]
"#;

const EARLY: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: early }
spec:
  selector: { matchLabels: { app: early } }
  template:
    metadata: { labels: { app: early } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: app, image: "tulle.test/pause:1" }]
"#;

/// A database that serves its metrics at two ports.
const ETCD: &str = "tulle.test/etcd:1";

async fn pods_with_resolvers_of_their_own_find_the_control_plane(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    // They are ready, which they are not without a certificate and a configuration.
    let odd = kubernetes.apply_meshed("odd-resolver", RESOLVERS).await?;
    let whole = "tulle-control.tulle-system.svc.cluster.local.:15012";
    let pods = odd.get("pods")?;
    ensure!(pods.len() == 3, "{} pods", pods.len());
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().context("it has a name")?;
        let env = pod["spec"]["initContainers"][1]["env"].to_string();
        ensure!(env.contains(whole) == (name == "whole"), "{name}: {env}");
    }
    Ok(())
}

async fn a_copy_that_kubectl_debug_makes_of_a_pod_runs_in_the_mesh(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let odd = kubernetes.apply_meshed("odd-copy", WEB).await?;
    let debug = [
        "debug",
        "web",
        "--copy-to=copy",
        "--container=web",
        "--image=tulle.test/tulle:1",
    ];
    odd.ask(debug, "")?;
    let copy = eventually(SOON, async || {
        let pods = odd.get("pods")?;
        let copy = pods.iter().find(|pod| pod["metadata"]["name"] == "copy");
        copy.cloned().context("there is no copy")
    })
    .await?;
    let labels = &copy["metadata"]["labels"];
    ensure!(labels["tulle.dev/proxied"] == "true", "{labels}");
    // The server takes mutual TLS alone.
    eventually(SOON, async || odd.exec("copy", &CALL, "")?.ok()).await?;
    Ok(())
}

async fn the_author_of_a_deployment_reads_at_it_what_is_wrong_with_its_pods(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let odd = kubernetes.apply_meshed("odd-author", MISTAKEN).await?;
    let said = described(&odd, "mistaken", "InvalidAnnotation").await?;
    for words in [
        "annotation tulle.dev/exlude-inbound-ports is not known and has no effect",
        "annotation tulle.dev/proxy-log-level has the value \"loud\"",
    ] {
        ensure!(said.contains(words), "{said}");
    }
    let events = odd.get("events")?;
    let told = |event: &&Value| event["reason"] == "InvalidAnnotation";
    ensure!(events.iter().filter(told).count() == 1, "{events:?}");

    let early = kubernetes.apply("odd-early", EARLY).await?;
    let label = [
        "label",
        "namespace",
        "odd-early",
        "tulle.dev/inject=enabled",
    ];
    kubernetes.cluster.ask(label, "")?;
    let said = described(&early, "early", "NotInjected").await?;
    for words in [
        "runs without a sidecar of the mesh; made now it would be injected: the namespace is labelled tulle.dev/inject=enabled",
        "run `kubectl rollout restart deployment/early`",
    ] {
        ensure!(said.contains(words), "{said}");
    }
    Ok(())
}

/// What `kubectl describe` says of a Deployment, once there is an Event of that reason.
async fn described(namespace: &Namespace<'_>, name: &str, reason: &str) -> anyhow::Result<String> {
    eventually(SOON, async || {
        let said = namespace.ask(["describe", "deployment", name], "")?;
        ensure!(said.contains(reason), "{said}");
        Ok(said)
    })
    .await
}

async fn prometheus_gets_both_metrics_under_strict_of_apps_with_http_and_https(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let etcd = gate::find("etcd").context("there is no etcd")?;
    let image = Image::new(ETCD, &["etcd"]).program(etcd);
    kubernetes.cluster.load(&image)?;
    let pod = |name: &str, annotations: &str| {
        format!(
            r#"
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{ app: {name} }}
  annotations: {{ prometheus.io/scrape: "true", {annotations} }}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{ name: data, emptyDir: {{}} }}]
  containers:
  - name: etcd
    image: {ETCD}
    args:
    - --data-dir=/data/etcd
    - --listen-metrics-urls=http://0.0.0.0:9100
    - --listen-client-urls=https://0.0.0.0:2379
    - --advertise-client-urls=https://127.0.0.1:2379
    - --auto-tls
    volumeMounts: [{{ name: data, mountPath: /data }}]
    readinessProbe: {{ httpGet: {{ path: /health, port: 9100 }}, periodSeconds: 1 }}
"#
        )
    };
    let manifests = [
        WEB,
        &pod("plain", r#"prometheus.io/port: "9100""#),
        &pod(
            "veiled",
            r#"prometheus.io/port: "2379", prometheus.io/scheme: https"#,
        ),
    ]
    .concat();
    let odd = kubernetes.apply_meshed("odd-metrics", &manifests).await?;
    let node = kubernetes.cluster.node("node1")?;
    // As Prometheus does: by the annotations of the pod alone, and from outside the mesh.
    let scrape = |pod: &Value, port: &str, path: &str| -> anyhow::Result<String> {
        let ip = pod["status"]["podIP"].as_str().context("it has no IP")?;
        let mut curl = node.on_network("curl");
        let url = format!("http://{ip}:{port}{path}");
        let output = curl
            .args(["--silent", "--fail", "--max-time", "5", &url])
            .output()?;
        ensure!(output.status.success(), "{url}: {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    for name in ["plain", "veiled"] {
        let pods = odd.get("pods")?;
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name);
        let pod = pod.context("it is gone")?;
        let said = |name: &str| {
            let said = pod["metadata"]["annotations"][format!("prometheus.io/{name}")].as_str();
            said.with_context(|| format!("no {name}: {pod}"))
        };
        ensure!(said("port")? == "15020" && said("path")? == "/stats/prometheus");
        let metrics = scrape(pod, said("port")?, said("path")?)?;
        for metric in ["\netcd_server_has_leader 1\n", "\ntulle_xds_connected 1\n"] {
            ensure!(metrics.contains(metric), "{name}: no {metric} in {metrics}");
        }
        ensure!(
            scrape(pod, "9100", "/metrics").is_err(),
            "{name} lets anybody in"
        );
    }
    Ok(())
}
