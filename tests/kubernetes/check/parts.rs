//! What keeps sidecars from starting, and from the control plane, though everything of the mesh runs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::{Kubernetes, eventually};

use super::{SOON, findings};

/// As one that was injected, whose image nobody has.
const STUCK: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: stuck }
---
apiVersion: v1
kind: Pod
metadata: { name: stuck, namespace: stuck }
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{ name: tulle-capture, image: "tulle.test/nosuch:1", imagePullPolicy: Never }]
  containers: [{ name: app, image: "tulle.test/pause:1" }]
"#;
/// How long such a pod is given, and a while.
const GIVEN_UP: Duration = Duration::from_secs(90);
const SERVICE: [&str; 4] = ["-n", SYSTEM, "service", "tulle-control"];

pub(super) async fn what_keeps_sidecars_from_starting_and_from_the_control_plane_is_found(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let cluster = &kubernetes.cluster;
    let apply = ["apply", "--server-side", "-f", "-"];
    // It may be made a moment later than its namespace has an account for it.
    eventually(SOON, async || cluster.ask(apply, STUCK)).await?;
    let outcome = without_service(kubernetes).await;
    eventually(SOON, async || install::serves(cluster)).await?;
    outcome?;
    eventually(GIVEN_UP, async || {
        let state = state(kubernetes, "sidecars")?;
        let words = ["tulle-capture", "stuck/stuck", "ErrImageNeverPull"];
        ensure!(words.iter().all(|it| state.contains(it)), "{state}");
        Ok(())
    })
    .await?;
    cluster.ask(["delete", "namespace", "stuck"], "").map(drop)
}

async fn without_service(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let cluster = &kubernetes.cluster;
    let subject = format!("Service {SYSTEM}/tulle-control");
    let get = ["get", "-o", "json"];
    let service = cluster.ask(get.into_iter().chain(SERVICE), "")?;
    let mut service: Value = serde_json::from_str(&service)?;
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
    ] {
        service["metadata"]
            .as_object_mut()
            .context("it has some")?
            .remove(field);
    }
    service["status"] = json!({});
    cluster.ask(["delete"].into_iter().chain(SERVICE), "")?;
    let found = eventually(SOON, async || state(kubernetes, &subject)).await;
    // Whatever was found, it comes back, with its address.
    let service = service.to_string();
    let again = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    eventually(SOON, async || cluster.ask(again, &service)).await?;
    let found = found?;
    ensure!(found.contains("it is missing"), "{found}");
    eventually(SOON, async || {
        let found = state(kubernetes, &subject);
        ensure!(found.is_err(), "{found:?}");
        Ok(())
    })
    .await
}

/// What is said of an error about a subject; fails if there is none.
fn state(kubernetes: &Kubernetes, subject: &str) -> anyhow::Result<String> {
    let found = findings(kubernetes)?;
    let mut errors = found.iter().filter(|it| it["level"] == "error");
    let error = errors.find(|it| it["subject"] == subject);
    let error = error.with_context(|| format!("no error about {subject}: {found:?}"))?;
    Ok(error["state"].as_str().unwrap_or_default().to_owned())
}
