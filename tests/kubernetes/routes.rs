//! What the authors of routes and policies read in their status, written by the control plane of a real cluster.

mod broken;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::{Program, install};
use tulle_tests::{Kubernetes, eventually};

use crate::conformance;
use broken::what_an_edit_has_broken_outlives_every_replica;

tulle_tests::cases! { in Kubernetes:
    routes_are_told_what_becomes_of_them ["conformance"];
    what_an_edit_has_broken_outlives_every_replica ["conformance"];
}

/// How long the control plane may take, on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const APPLY: [&str; 4] = ["apply", "--server-side", "-f", "-"];
const CONTROLLER: &str = "tulle.dev/mesh";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { ports: [{ name: http, port: 80, appProtocol: http }, { name: db, port: 81, appProtocol: tcp }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 80 }, { name: front }]
  rules: [{ backendRefs: [{ name: next, port: 80 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 81 }]
  rules: [{ backendRefs: [{ name: web, port: 80 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: { name: db }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 81 }]
  rules: [{ backendRefs: [{ name: web, port: 81 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { name: db }
spec:
  hostnames: [db.example.com]
  parentRefs: [{ group: "", kind: Service, name: other, port: 81 }]
  rules: [{ backendRefs: [{ name: web, port: 81 }] }]
---
apiVersion: v1
kind: Service
metadata: { name: bare }
spec: { clusterIP: None, ports: [{ name: http, port: 80 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: bare }
spec:
  parentRefs: [{ group: "", kind: Service, name: bare }]
  rules: [{ backendRefs: [{ name: web, port: 80 }] }]
"#;

/// Two for a namespace, and one for a Service that is not there.
const POLICIES: &str = r#"
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: a }
spec: { mtls: { mode: STRICT } }
---
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: b }
spec: { mtls: { mode: PERMISSIVE } }
---
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: c }
spec: { targetRefs: [{ kind: Service, name: nowhere }], mtls: { mode: DISABLE } }
"#;

/// A backend that comes later.
const NEXT: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: next }
spec: { ports: [{ port: 80 }] }
"#;

async fn routes_are_told_what_becomes_of_them(_: &Kubernetes) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    conformance::define(&cluster)?;
    install::install(&cluster, &[]).await?;
    cluster.ask(APPLY, MANIFESTS)?;
    let fine = ["True Accepted", "True ResolvedRefs"];
    for (route, expected) in [
        ("httproute/web", [fine[0], "False BackendNotFound"]),
        ("grpcroute/web", ["False NoMatchingParent", fine[1]]),
        ("tcproute/db", fine),
        ("tlsroute/db", ["False NoMatchingParent", fine[1]]),
        ("httproute/bare", ["False NoMatchingParent", fine[1]]),
    ] {
        says(&cluster, route, expected).await?;
    }
    cluster.ask(APPLY, POLICIES)?;
    for (policy, expected) in [
        ("a", fine),
        ("b", ["False Conflicted", fine[1]]),
        ("c", [fine[0], "False TargetNotFound"]),
    ] {
        let policy = format!("peerauthentication/{policy}");
        let told = eventually(SOON, async || {
            let said = cluster.ask(["get", &policy, "-o", "json"], "")?;
            let object: Value = serde_json::from_str(&said)?;
            is_told(&object["status"]["conditions"], expected)
        });
        told.await.with_context(|| policy.clone())?;
    }
    let columns = cluster.ask(["get", "peerauthentication", "b"], "")?;
    ensure!(columns.contains("False"), "{columns}");
    found(&cluster).await?;

    // The author of another controller's entry, which is first in the list by now.
    let mut parents = entries(&cluster, "httproute/web", "default")?;
    let foreign = json!({
        "parentRef": { "name": "front" },
        "controllerName": "example.com/gateway",
        "conditions": [{
            "type": "Accepted", "status": "False", "reason": "Pending", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    parents.insert(0, foreign);
    let patch = json!({ "status": { "parents": parents } }).to_string();
    let status = ["patch", "httproute", "web", "--subresource=status"];
    let words = ["--type=merge", "-p", &patch];
    cluster.ask(status.into_iter().chain(words), "")?;

    cluster.ask(APPLY, NEXT)?;
    says(&cluster, "httproute/web", fine).await?;
    cluster.ask(["delete", "service", "web"], "")?;
    let gone = ["False NoMatchingParent", fine[1]];
    says(&cluster, "httproute/web", gone).await?;
    let entries = entries(&cluster, "httproute/web", "default")?;
    ensure!(entries.len() == 2, "{entries:?}");
    ensure!(entries[0]["controllerName"] == "example.com/gateway");
    ensure!(entries[0]["conditions"][0]["reason"] == "Pending");
    Ok(())
}

/// Waits until `tulle check` has one finding for each that is not followed as it is written, and none for one that is.
async fn found(cluster: &Cluster) -> anyhow::Result<()> {
    let program = Program::new()?;
    eventually(SOON, async || {
        let run = program.run(cluster, &["check", "--output", "json"])?;
        let found: Vec<Value> =
            serde_json::from_str(&run.stdout).with_context(|| run.to_string())?;
        for (subject, count, state) in [
            (
                "HTTPRoute default/web",
                1,
                "ResolvedRefs is False (BackendNotFound)",
            ),
            (
                "GRPCRoute default/web",
                1,
                "Accepted is False (NoMatchingParent)",
            ),
            (
                "TLSRoute default/db",
                1,
                "Accepted is False (NoMatchingParent)",
            ),
            (
                "HTTPRoute default/bare",
                1,
                "Accepted is False (NoMatchingParent)",
            ),
            ("TCPRoute default/db", 0, ""),
            ("PeerAuthentication default/a", 0, ""),
            (
                "PeerAuthentication default/b",
                1,
                "PeerAuthentication default/a comes first",
            ),
        ] {
            let told: Vec<_> = found.iter().filter(|it| it["subject"] == subject).collect();
            let said = |it: &&Value| {
                let words = it["state"].as_str().is_some_and(|it| it.contains(state));
                it["level"] == "warning" && it["remedy"].is_string() && words
            };
            ensure!(
                told.len() == count && told.iter().all(said),
                "{subject}: {found:?}"
            );
        }
        Ok(())
    })
    .await
}

/// The entries of a route's status.
fn entries(cluster: &Cluster, route: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let said = cluster.ask(["get", route, "-n", namespace, "-o", "json"], "")?;
    let object: Value = serde_json::from_str(&said)?;
    let entries = object["status"]["parents"].as_array();
    entries.cloned().context("it has no status")
}

/// Waits until a route is told that by us, of its present generation.
async fn says(cluster: &Cluster, route: &str, expected: [&str; 2]) -> anyhow::Result<()> {
    let told = eventually(SOON, async || {
        let entries = entries(cluster, route, "default")?;
        let mut ours = entries
            .iter()
            .filter(|it| it["controllerName"] == CONTROLLER);
        let entry = ours.next().context("it has no entry of ours")?;
        ensure!(ours.next().is_none(), "one parent is ours: {entries:?}");
        is_told(&entry["conditions"], expected)
    });
    told.await.with_context(|| route.to_owned())
}

/// Whether conditions say that, of the first generation.
fn is_told(conditions: &Value, expected: [&str; 2]) -> anyhow::Result<()> {
    let list = conditions.as_array().context("it has no conditions")?;
    let said = list.iter().map(|it| {
        let word = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}", word("status"), word("reason"))
    });
    let said: Vec<_> = said.collect();
    ensure!(said == expected, "{conditions}");
    ensure!(list[0]["observedGeneration"] == 1, "{conditions}");
    Ok(())
}
