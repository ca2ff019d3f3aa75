//! What starts before what, and what ends after what: an application has its network from its first act to its last.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Image;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};

use super::shop::SOON;

tulle_tests::cases! { in Kubernetes:
    row_50_first_acts_and_init_containers_have_the_mesh;
    row_50_jobs_and_cron_jobs_complete;
    row_50_an_app_that_ends_can_still_call;
}

/// A server that counts, under STRICT, so that whoever is answered had a sidecar.
pub(crate) const WEB: &str = r#"
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: strict }
spec: { mtls: { mode: STRICT } }
---
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, web]
    ports: [{ name: http, containerPort: 8080 }]
    readinessProbe: { httpGet: { path: /ready, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: http }] }
"#;

/// A server on a node, of no namespace of the mesh.
const OUTSIDE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: outside }
spec:
  hostNetwork: true
  nodeSelector: { kubernetes.io/hostname: node1 }
  terminationGracePeriodSeconds: 1
  containers:
  - name: outside
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8087", --name, outside]
    readinessProbe: { httpGet: { path: /ready, port: 8087 }, periodSeconds: 1 }
"#;

/// Pods that call once, at once, before and beside each other.
const FIRST: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: { name: first }
spec:
  completions: 4
  parallelism: 4
  backoffLimit: 0
  template:
    metadata: { labels: { app: first } }
    spec:
      restartPolicy: Never
      initContainers:
      - name: mesh-first
        image: tulle.test/tulle:1
        args: [app, call, "http://web/?id=init"]
      - name: outside-first
        image: tulle.test/tulle:1
        args: [app, call, "http://10.90.0.11:8087/?id=init"]
      containers:
      - name: mesh
        image: tulle.test/tulle:1
        args: [app, call, "http://web/?id=first"]
      - name: outside
        image: tulle.test/tulle:1
        args: [app, call, "http://10.90.0.11:8087/?id=first"]
"#;

const JOBS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: { name: job }
spec:
  backoffLimit: 0
  template:
    metadata: { labels: { app: job } }
    spec:
      restartPolicy: Never
      containers:
      - name: job
        image: tulle.test/tulle:1
        args: [app, load, --url, "http://web/", --rate, "20", --duration, 3s, --expect-no-failures]
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
        metadata: { labels: { app: cron } }
        spec:
          restartPolicy: OnFailure
          containers:
          - name: cron
            image: tulle.test/tulle:1
            args: [app, call, "http://web/?id=cron"]
"#;

/// An image with a shell, and the same program.
const SHELL: &str = "tulle.test/shell:1";

/// Calls before it ends, when it is told to, and after a moment of that.
pub(crate) const LEAVING: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: leaving, labels: { app: leaving } }
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: app
    image: tulle.test/shell:1
    args:
    - -c
    - |
      trap 'tulle app call http://web/?id=told; sleep 1; tulle app call http://web/?id=last; exit 0' TERM
      tulle app call http://web/?id=begun
      while :; do sleep 0.1; done
    lifecycle:
      preStop: { exec: { command: [tulle, app, call, "http://web/?id=stopping"] } }
"#;

async fn row_50_first_acts_and_init_containers_have_the_mesh(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let _outside = kubernetes.apply("first-outside", OUTSIDE).await?;
    let first = kubernetes.apply_meshed("first", WEB).await?;
    first.ask(["apply", "--server-side", "-f", "-"], FIRST)?;
    completed(&first, "first", 4).await?;
    ensure!(count(&first, "init")? == 4 && count(&first, "first")? == 4);
    Ok(())
}

async fn row_50_jobs_and_cron_jobs_complete(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let jobs = kubernetes.apply_meshed("jobs", WEB).await?;
    jobs.ask(["apply", "--server-side", "-f", "-"], JOBS)?;
    completed(&jobs, "job", 1).await?;
    // Its minute must come first.
    completed(&jobs, "cron", 1).await?;
    ensure!(count(&jobs, "cron")? >= 1);
    let all = jobs.get("jobs")?;
    ensure!(all.len() >= 2, "{all:?}");
    eventually(SOON, async || {
        let first = jobs.ask(
            [
                "wait",
                "--for=condition=Complete",
                "job",
                "--all",
                "--timeout=0",
            ],
            "",
        );
        first.map(drop)
    })
    .await
}

async fn row_50_an_app_that_ends_can_still_call(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    can_still_call(kubernetes, "leaving", LEAVING).await
}

/// Has the pod `leaving` come and go in a namespace of its own; each of its calls must have been answered.
pub(crate) async fn can_still_call(
    kubernetes: &Kubernetes,
    name: &str,
    pod: &str,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let shell = Image::new(SHELL, &["/bin/sh"])
        .program("/bin/sh")
        .program("/bin/sleep")
        .program_at(std::env::current_exe()?, "/usr/local/bin/tulle");
    kubernetes.cluster.load(&shell)?;
    let leaving = kubernetes.apply_meshed(name, WEB).await?;
    leaving.ask(["apply", "--server-side", "-f", "-"], pod)?;
    eventually(SOON, async || {
        ensure!(count(&leaving, "begun")? == 1, "it has not begun");
        Ok(())
    })
    .await?;
    leaving.ask(["delete", "pod", "leaving"], "")?;
    for id in ["begun", "stopping", "told", "last"] {
        let count = count(&leaving, id)?;
        ensure!(count == 1, "{id}: {count} calls have come");
    }
    Ok(())
}

/// Waits until so many pods of an app have succeeded, and fails if one has not.
pub(crate) async fn completed(
    namespace: &Namespace<'_>,
    app: &str,
    count: usize,
) -> anyhow::Result<()> {
    let all = eventually(SOON, async || {
        let pods = namespace.get("pods")?;
        let own = pods
            .into_iter()
            .filter(|pod| pod["metadata"]["labels"]["app"] == app);
        let (ended, others): (Vec<_>, Vec<_>) = own.partition(ended);
        ensure!(
            ended.len() >= count,
            "{app}: {} have ended, {others:?} not",
            ended.len()
        );
        Ok(ended)
    })
    .await?;
    let failed = all.iter().find(|pod| pod["status"]["phase"] != "Succeeded");
    ensure!(failed.is_none(), "{app}: {failed:?}");
    Ok(())
}

fn ended(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed"
}

/// How many requests of an id have come to the server.
pub(crate) fn count(namespace: &Namespace<'_>, id: &str) -> anyhow::Result<u64> {
    let url = format!("http://127.0.0.1:8080/count?id={id}");
    let call = ["/usr/local/bin/tulle", "app", "call", &url, "--json"];
    let said = namespace.exec("web", &call, "")?.ok()?;
    let said: Value = serde_json::from_str(&said)?;
    let body: Value = match &said["body"] {
        Value::String(text) => serde_json::from_str(text)?,
        other => other.clone(),
    };
    let count = body["count"].as_u64();
    count.with_context(|| format!("no count in {said}"))
}
