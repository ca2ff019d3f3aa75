//! What the mesh hides, and what it must not repeat.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::RATE;
use crate::demo::report::Evidence;
use crate::demo::stage::Stage;

pub(super) async fn retries(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let pod = stage.pod("web")?;
    let app = "http://127.0.0.1:8080";
    behave(
        stage,
        &pod.key,
        &format!("{app}/behave?status=503&probability=1"),
    )
    .await?;
    let summary = stage.load("http://web/", RATE, 2.0, &[])?.summary().await?;
    evidence.tell(
        "one pod of three",
        format!("{} answers 503 to everything", pod.key),
    );
    evidence.hold("GET through the mesh", summary.line(), summary.failed == 0);
    behave(stage, &pod.key, &format!("{app}/behave?probability=0")).await
}

pub(super) async fn exactly_once(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let app = "http://127.0.0.1:8080";
    // The app takes the request and then drops the connection without an answer, half of the time.
    let url = "http://web/?abort=true&probability=0.5";
    let more = [
        "--method",
        "POST",
        "--body-size",
        "100",
        "--id-prefix",
        "once",
    ];
    let summary = stage.load(url, RATE / 3, 2.0, &more)?.summary().await?;
    evidence.tell("POST to pods that drop connections", summary.line());
    // By id over all pods: a repeated request would most likely land on another one.
    let mut received: BTreeMap<String, u64> = BTreeMap::new();
    for pod in stage.pods("web") {
        let (_, answer) = stage
            .call(&pod.key, &[&format!("{app}/counts?prefix=once")])
            .await?;
        let counts = counts(&answer).with_context(|| format!("{} counts {answer}", pod.key))?;
        for (id, count) in counts {
            *received.entry(id).or_default() += count;
        }
    }
    let (seen, twice) = (
        received.len(),
        received.values().filter(|count| **count > 1).count(),
    );
    evidence.hold("some got no answer", summary.failed, summary.failed > 0);
    evidence.hold(
        "POSTs that reached an app",
        format!("{seen} of {}", summary.sent),
        seen as u64 == summary.sent,
    );
    evidence.hold("processed more than once", twice, twice == 0);
    Ok(())
}

fn counts(answer: &Value) -> Option<BTreeMap<String, u64>> {
    let counts = answer.get("body")?.get("counts")?.as_object()?;
    Some(
        counts
            .iter()
            .filter_map(|(id, count)| Some((id.clone(), count.as_u64()?)))
            .collect(),
    )
}

async fn behave(stage: &Stage, pod: &tulle_sandbox::ObjectKey, url: &str) -> anyhow::Result<()> {
    let (status, answer) = stage.call(pod, &[url]).await?;
    anyhow::ensure!(status == 0, "{pod} does not change its behaviour: {answer}");
    Ok(())
}

pub(super) async fn sigterm(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let pods = stage.pods("web").len();
    let get = stage.load("http://web/?latency=20ms", RATE, 4.0, &[])?;
    let post = stage.load(
        "http://web/?latency=20ms",
        RATE / 3,
        4.0,
        &["--method", "POST", "--body-size", "500"],
    )?;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let pod = stage.pod("web")?;
    stage.sandbox.delete_pod(&pod.key, None)?;
    evidence.tell("SIGTERM", &pod.key);
    let (get, post) = (get.summary().await?, post.summary().await?);
    evidence.hold("GET", get.line(), get.failed == 0);
    evidence.hold("POST", post.line(), post.failed == 0);
    stage.wait_for("web", pods).await
}

pub(super) async fn sigkill(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let pods = stage.pods("web").len();
    let get = stage.load("http://web/?latency=20ms", RATE, 4.0, &[])?;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let pod = stage.pod("web")?;
    stage.sandbox.kill_pod(&pod.key)?;
    evidence.tell("SIGKILL to app and sidecar", &pod.key);
    let get = get.summary().await?;
    evidence.hold("GET", get.line(), get.failed == 0);
    stage.wait_for("web", pods).await
}

pub(super) async fn outage(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let load = stage.load("http://web/", RATE, 4.0, &[])?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.control.kill().await;
    evidence.tell("control plane", "killed");
    let down = stage
        .load("http://web/", RATE / 3, 1.0, &["--no-reuse"])?
        .summary()
        .await?;
    evidence.hold(
        "new connections while it is down",
        down.line(),
        down.failed == 0,
    );
    stage.control.resume().await;
    evidence.tell("control plane", "started again");
    let summary = load.summary().await?;
    evidence.hold("GET all the while", summary.line(), summary.failed == 0);
    followed(stage, evidence).await
}

/// A change made after the restart still reaches the sidecars.
async fn followed(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let swap = |text: &str, from: &str, to: &str| text.replacen(from, to, 1);
    stage.edit("25-reviews-route.yaml", |text| {
        swap(text, "weight: 90", "weight: 0")
    })?;
    let mut versions = Vec::new();
    for _ in 0..30 {
        let summary = stage
            .load("http://reviews/", 100, 0.2, &[])?
            .summary()
            .await?;
        versions = summary.versions.keys().cloned().collect();
        if versions == ["v2"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    evidence.hold(
        "a route edited after the restart",
        format!("{} answers", versions.join(", ")),
        versions == ["v2"],
    );
    stage.edit("25-reviews-route.yaml", |text| {
        swap(text, "weight: 0", "weight: 90")
    })
}
