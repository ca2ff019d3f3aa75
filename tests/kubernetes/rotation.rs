//! A root that is replaced under a mesh that runs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Container, Forward, Namespace};
use tulle_tests::{Kubernetes, eventually};

tulle_tests::cases! { in Kubernetes:
    sidecars_of_old_pods_join_again_once_the_old_root_is_gone ["alone"];
}

/// How long a root's whole way may take: it is announced, it signs, and its predecessor goes with its last leaf, all of it by
/// the values below and on a busy machine.
const WAY: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const VALUES: [&str; 3] = [
    "control.replicas=1",
    "control.leafTtl=20s",
    "control.rootPropagation=5s",
];

const SHOP: &str = r#"
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: strict }
spec: { mtls: { mode: STRICT } }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: "tulle.test/tulle:1", args: [app, serve, --http, "8080", --name, web] }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: "tulle.test/tulle:1", args: [app, serve, --http, "8080", --name, client] }]
"#;

/// What the CA of the control plane says of its roots.
fn ca(cluster: &Cluster, method: &str, path: &str) -> anyhow::Result<Value> {
    let forward = Forward::new(cluster, SYSTEM, "deployment/tulle-control", 15014)?;
    let said = forward.ask(method, path)?;
    serde_json::from_str(&said).with_context(|| format!("{method} {path}: {said}"))
}

fn sidecar(shop: &Namespace<'_>, pod: &str) -> anyhow::Result<Container> {
    let get = ["get", "pod", pod, "-o", "json"];
    let pod: Value = serde_json::from_str(&shop.ask(get, "")?)?;
    Container::ready(&pod, "tulle-proxy")
}

fn call(shop: &Namespace<'_>) -> anyhow::Result<String> {
    let call = [
        "/usr/local/bin/tulle",
        "app",
        "call",
        "http://web/",
        "--json",
    ];
    shop.exec("client", &call, "")?.ok()
}

fn roots(ca: &Value) -> anyhow::Result<Vec<String>> {
    let bundle = ca["trust_bundle"].as_str().context("a bundle")?;
    let roots = bundle.split_inclusive("-----END CERTIFICATE-----\n");
    Ok(roots.map(str::to_owned).collect())
}

async fn sidecars_of_old_pods_join_again_once_the_old_root_is_gone(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(2)?;
    install::install(&cluster, &VALUES).await?;
    let shop = Namespace::apply(&cluster, "rotated", "tulle.dev/inject=enabled", SHOP).await?;
    eventually(SOON, async || call(&shop)).await?;
    let old = roots(&ca(&cluster, "GET", "/ca")?)?;
    ensure!(old.len() == 1, "{old:?}");
    ca(&cluster, "POST", "/ca/rotate-root")?;
    let new = eventually(WAY, async || {
        call(&shop)?;
        let now = roots(&ca(&cluster, "GET", "/ca")?)?;
        ensure!(now.len() == 1 && now != old, "{} roots", now.len());
        Ok(now)
    })
    .await?;
    for pod in ["web", "client"] {
        let victim = sidecar(&shop, pod)?;
        victim.kill()?;
        let again = async || {
            let again = sidecar(&shop, pod)?;
            ensure!(again != victim, "{pod}: it is not started again yet");
            Ok(())
        };
        eventually(SOON, again).await?;
    }
    let answer = eventually(SOON, async || call(&shop)).await?;
    ensure!(
        answer.contains("spiffe://cluster.local/ns/rotated/sa/default"),
        "{answer}"
    );
    ensure!(
        roots(&ca(&cluster, "GET", "/ca")?)? == new,
        "and nobody else was needed"
    );
    Ok(())
}
