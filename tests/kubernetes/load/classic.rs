//! Pods whose sidecar is an ordinary container, which Kubernetes waits for: it ends when the app has ended for good.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};

use super::order::{WEB, completed, count};
use super::shop::SOON;

tulle_tests::cases! { in Kubernetes:
    row_50_jobs_and_cron_jobs_with_ordinary_sidecars_complete_fail_and_are_tried_again;
    a_deployment_with_ordinary_sidecars_goes_on_when_its_app_ends;
}

const JOBS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: { name: good }
spec:
  backoffLimit: 0
  template:
    metadata: { labels: { app: good }, annotations: { tulle.dev/native-sidecar: "false" } }
    spec:
      restartPolicy: Never
      containers:
      - name: one
        image: tulle.test/tulle:1
        args: [app, call, "http://web/?id=good"]
      - name: two
        image: tulle.test/tulle:1
        args: [app, load, --url, "http://web/", --rate, "20", --duration, 3s, --expect-no-failures]
---
apiVersion: batch/v1
kind: Job
metadata: { name: bad }
spec:
  backoffLimit: 1
  template:
    metadata: { labels: { app: bad }, annotations: { tulle.dev/native-sidecar: "false" } }
    spec:
      restartPolicy: Never
      containers:
      - name: bad
        image: tulle.test/tulle:1
        args: [app, call, "http://nobody.invalid/"]
---
apiVersion: batch/v1
kind: CronJob
metadata: { name: cron }
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        metadata: { labels: { app: cron }, annotations: { tulle.dev/native-sidecar: "false" } }
        spec:
          restartPolicy: OnFailure
          containers:
          - name: cron
            image: tulle.test/tulle:1
            args: [app, call, "http://web/?id=cron"]
"#;

/// An app that ends whenever it is started, as no app of a Deployment should.
const ENDING: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: ending }
spec:
  selector: { matchLabels: { app: ending } }
  template:
    metadata: { labels: { app: ending }, annotations: { tulle.dev/native-sidecar: "false" } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: ending
        image: tulle.test/tulle:1
        args: [app, call, "http://web/?id=ending"]
"#;

async fn row_50_jobs_and_cron_jobs_with_ordinary_sidecars_complete_fail_and_are_tried_again(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let jobs = kubernetes.apply_meshed("classic-jobs", WEB).await?;
    jobs.ask(["apply", "--server-side", "-f", "-"], JOBS)?;
    completed(&jobs, "good", 1).await?;
    has_condition(&jobs, "good", "Complete").await?;
    has_condition(&jobs, "bad", "Failed").await?;
    let bad = pods(&jobs, "bad")?;
    ensure!(bad.len() == 2, "it is tried again once: {bad:?}");
    for pod in &bad {
        ensure!(pod["status"]["phase"] == "Failed", "{pod}");
    }
    // Its minute must come first.
    completed(&jobs, "cron", 1).await?;
    for app in ["good", "bad", "cron"] {
        for pod in pods(&jobs, app)? {
            let sidecar = status(&pod, "tulle-proxy")?;
            let code = &sidecar["state"]["terminated"]["exitCode"];
            let phase = &pod["status"]["phase"];
            ensure!(phase == "Running" || *code == 0, "{app}: {sidecar}");
        }
    }
    ensure!(count(&jobs, "good")? == 1 && count(&jobs, "cron")? >= 1);
    Ok(())
}

async fn a_deployment_with_ordinary_sidecars_goes_on_when_its_app_ends(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let namespace = kubernetes.apply_meshed("classic-ending", WEB).await?;
    namespace.ask(["apply", "--server-side", "-f", "-"], ENDING)?;
    eventually(SOON, async || {
        let pods = pods(&namespace, "ending")?;
        let pod = pods.first().context("no pod yet")?;
        let restarts = status(pod, "ending")?["restartCount"].as_u64();
        ensure!(restarts >= Some(2), "restarted {restarts:?} times");
        let sidecar = status(pod, "tulle-proxy")?;
        ensure!(
            sidecar["restartCount"] == 0 && sidecar["ready"] == true,
            "{sidecar}"
        );
        Ok(())
    })
    .await?;
    // Each time it had the mesh.
    ensure!(count(&namespace, "ending")? >= 2);
    Ok(())
}

async fn has_condition(
    namespace: &Namespace<'_>,
    job: &str,
    condition: &str,
) -> anyhow::Result<()> {
    let (condition, job) = (format!("--for=condition={condition}"), format!("job/{job}"));
    let wait = ["wait", &condition, &job, "--timeout=0"];
    eventually(SOON, async || namespace.ask(wait, "").map(drop)).await
}

fn pods(namespace: &Namespace<'_>, app: &str) -> anyhow::Result<Vec<Value>> {
    let mut pods = namespace.get("pods")?;
    pods.retain(|pod| pod["metadata"]["labels"]["app"] == app);
    Ok(pods)
}

fn status<'a>(pod: &'a Value, container: &str) -> anyhow::Result<&'a Value> {
    let all = pod["status"]["containerStatuses"].as_array();
    let mut named = all
        .into_iter()
        .flatten()
        .filter(|it| it["name"] == container);
    named.next().with_context(|| format!("{container}: {pod}"))
}
