//! Workloads whose pods are not made, and no sidecar is to blame.

use anyhow::ensure;
use serde_json::Value;
use tulle_tests::{Kubernetes, eventually};

use super::{SOON, findings_of};

/// One that has a condition for it, and one of which only Events tell.
const WORKLOADS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: none, image: "tulle.test/pause:1" }]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: none, image: "tulle.test/pause:1" }]
"#;

/// Lets no pod be made.
const FULL: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: { name: full }
spec: { hard: { pods: "0" } }
"#;

pub(super) async fn pods_that_are_not_made_for_no_sidecars_sake_are_a_warning_until_they_are(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let namespace = kubernetes.apply_meshed("is-full", WORKLOADS).await?;
    namespace.ask(["apply", "-f", "-"], FULL)?;
    eventually(SOON, async || {
        let quota = namespace.get("resourcequota")?;
        ensure!(quota[0]["status"]["hard"]["pods"] == "0", "{quota:?}");
        Ok(())
    })
    .await?;
    namespace.ask(["delete", "pod", "--all"], "")?;
    let unmade = || -> anyhow::Result<Vec<Value>> {
        let mut found = findings_of(kubernetes, &["-n", "is-full"])?;
        found.retain(|it| it["state"].to_string().contains("are not made"));
        Ok(found)
    };
    eventually(SOON, async || {
        let found = unmade()?;
        for subject in ["is-full/deployment/web", "is-full/statefulset/db"] {
            let told = found.iter().any(|it| {
                let state = it["state"].as_str().unwrap_or_default();
                it["level"] == "warning"
                    && it["subject"] == subject
                    && state.contains("exceeded quota: full")
            });
            ensure!(told, "{subject}: {found:?}");
        }
        Ok(())
    })
    .await?;
    namespace.ask(["delete", "resourcequota", "full"], "")?;
    // Or they are tried again after a while that grows.
    let restart = ["rollout", "restart", "deployment/web", "statefulset/db"];
    namespace.ask(restart, "")?;
    eventually(SOON, async || {
        let found = unmade()?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
    .await
}
