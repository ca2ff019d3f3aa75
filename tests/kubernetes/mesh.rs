//! Tulle installed, a namespace labelled, and an application that knows nothing of it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};

tulle_tests::cases! { in Kubernetes:
    an_unmodified_application_speaks_mutual_tls;
}

/// How long the mesh may take to know of a change.
const SOON: Duration = Duration::from_secs(30);

/// A server on one node and its client on the other.
const SHOP: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: web }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      serviceAccountName: web
      nodeSelector: { kubernetes.io/hostname: node0 }
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: tulle.test/tulle:1
        args: [app, serve, --http, "8080", --name, web]
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe: { httpGet: { path: /ready, port: http }, periodSeconds: 1 }
        livenessProbe: { tcpSocket: { port: 8080 } }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: http }] }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: client }
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  serviceAccountName: client
  nodeSelector: { kubernetes.io/hostname: node1 }
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, client]
"#;

async fn an_unmodified_application_speaks_mutual_tls(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let shop = kubernetes.apply_meshed("shop", SHOP).await?;
    let answer = eventually(SOON, async || call(&shop, "http://web/")).await?;
    let seen = answer.to_string();
    for identity in [
        "spiffe://cluster.local/ns/shop/sa/client",
        "spiffe://cluster.local/ns/shop/sa/web",
    ] {
        ensure!(seen.contains(identity), "{identity} is not in {seen}");
    }
    Ok(())
}

/// What the client is answered.
fn call(shop: &Namespace<'_>, url: &str) -> anyhow::Result<Value> {
    let argv = ["/usr/local/bin/tulle", "app", "call", url, "--json"];
    let said = shop.exec("client", &argv, "")?.ok()?;
    serde_json::from_str(&said).context("one document")
}
