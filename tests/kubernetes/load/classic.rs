//! Pods whose sidecar is an ordinary container, which Kubernetes waits for, and tells to end when it tells the app: it ends when
//! the app has ended for good.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};

use super::order::{LEAVING, WEB, can_still_call, completed, count};
use super::shop::{SOON, Shop};

tulle_tests::cases! { in Kubernetes:
    row_50_jobs_and_cron_jobs_with_ordinary_sidecars_complete_fail_and_are_tried_again;
    a_deployment_with_ordinary_sidecars_goes_on_when_its_app_ends;
    row_49_servers_with_ordinary_sidecars_ended_again_and_again_lose_nothing ["alone"];
    row_50_an_app_with_an_ordinary_sidecar_serves_and_calls_to_its_end;
    native_sidecars_of_a_pods_own_start_before_an_ordinary_one;
    row_50_an_app_that_never_listens_can_still_call_by_an_ordinary_sidecar;
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

/// An app that nobody calls, and that has a while before it is told to end, as many have until everybody has heard.
const IDLE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: idle, labels: { app: idle }, annotations: { tulle.dev/native-sidecar: "false" } }
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: idle
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, idle]
    readinessProbe: { httpGet: { path: /ready, port: 8080 }, periodSeconds: 1 }
    lifecycle: { preStop: { sleep: { seconds: 10 } } }
"#;

/// A pod with a native sidecar of its own, which Kubernetes probes before it starts the next container.
const HELPED: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: helped, labels: { app: helped }, annotations: { tulle.dev/native-sidecar: "false" } }
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - name: helper
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8081", --name, helper]
    restartPolicy: Always
    startupProbe: { httpGet: { path: /ready, port: 8081 }, periodSeconds: 1 }
    readinessProbe: { httpGet: { path: /ready, port: 8081 }, periodSeconds: 1 }
  containers:
  - name: helped
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, helped]
    readinessProbe: { httpGet: { path: /ready, port: 8080 }, periodSeconds: 1 }
"#;

/// Who calls an app from outside of the mesh.
const CALLER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: caller }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: caller
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, caller]
    readinessProbe: { httpGet: { path: /ready, port: 8080 }, periodSeconds: 1 }
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

async fn row_49_servers_with_ordinary_sidecars_ended_again_and_again_lose_nothing(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "classic-ended").await?;
    let ordinary = r#"{"spec":{"template":{"metadata":{"annotations":{"tulle.dev/native-sidecar":"false"}}}}}"#;
    let patch = ["patch", "deployment", "web", "--patch", ordinary];
    shop.namespace.ask(patch, "")?;
    shop.settled("web").await?;
    for number in 0..6 {
        let servers = shop.servers()?;
        let server = &servers[number % servers.len()];
        shop.namespace.ask(["delete", "pod", server], "")?;
        shop.settled("web").await?;
    }
    for pod in pods(&shop.namespace, "web")? {
        status(&pod, "tulle-proxy").context("it is an ordinary container")?;
    }
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()
}

async fn row_50_an_app_with_an_ordinary_sidecar_serves_and_calls_to_its_end(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let outside = kubernetes.apply("classic-caller", CALLER).await?;
    let namespace = kubernetes.apply_meshed("classic-idle", IDLE).await?;
    let call = |from: &Namespace<'_>, pod: &str, url: &str| -> anyhow::Result<()> {
        let call = ["/usr/local/bin/tulle", "app", "call", url];
        from.exec(pod, &call, "")?.ok().map(drop)
    };
    let address = |namespace: &Namespace<'_>| -> anyhow::Result<String> {
        let address = namespace.get("pods")?[0]["status"]["podIP"].clone();
        let address = address.as_str().context("a pod has an address")?;
        Ok(format!("http://{address}:8080/"))
    };
    let (idle, caller) = (address(&namespace)?, address(&outside)?);
    namespace.ask(["delete", "pod", "idle", "--wait=false"], "")?;
    let told = Instant::now();
    let mut calls = 0;
    while told.elapsed() < Duration::from_secs(8) {
        call(&outside, "caller", &idle).with_context(|| format!("in, {:?}", told.elapsed()))?;
        call(&namespace, "idle", &caller).with_context(|| format!("out, {:?}", told.elapsed()))?;
        calls += 1;
        // Longer than a sidecar waits that takes silence for the end.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    ensure!(calls >= 3, "{calls} calls");
    eventually(SOON, async || {
        ensure!(namespace.get("pods")?.is_empty(), "it is there yet");
        Ok(())
    })
    .await?;
    let lasted = told.elapsed();
    ensure!(lasted < Duration::from_secs(40), "it lasted {lasted:?}");
    Ok(())
}

async fn native_sidecars_of_a_pods_own_start_before_an_ordinary_one(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    // Ready under STRICT, so the later probe goes through the sidecar.
    let namespace = kubernetes.apply_meshed("classic-helped", WEB).await?;
    namespace.ask(["apply", "--server-side", "-f", "-"], HELPED)?;
    eventually(SOON, async || {
        let pods = pods(&namespace, "helped")?;
        let pod = pods.first().context("no pod yet")?;
        for container in ["tulle-proxy", "helped"] {
            ensure!(status(pod, container)?["ready"] == true, "{pod}");
        }
        let helper = &pod["status"]["initContainerStatuses"][0];
        ensure!(
            helper["ready"] == true && helper["restartCount"] == 0,
            "{helper}"
        );
        Ok(())
    })
    .await
}

async fn row_50_an_app_that_never_listens_can_still_call_by_an_ordinary_sidecar(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let labels = "labels: { app: leaving }";
    let annotations = r#"annotations: { tulle.dev/native-sidecar: "false" }"#;
    let pod = LEAVING.replace(labels, &format!("{labels}, {annotations}"));
    can_still_call(kubernetes, "classic-leaving", &pod).await
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
