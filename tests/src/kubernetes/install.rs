//! Tulle, installed in a cluster as a person would.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;

use super::Program;
use crate::arena::eventually;

/// How long it may take until both parts serve, on a busy machine.
const UP: Duration = Duration::from_secs(90);
/// The namespace of the control plane.
pub const SYSTEM: &str = "tulle-system";

/// Puts the images of this build on the nodes, applies what `tulle install` prints with those values, and waits until all of it
/// serves.
pub async fn install(cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    let program = Program::new()?;
    load(&program, cluster)?;
    apply(&program, cluster, values).await
}

/// Puts the images of a build on the nodes.
pub fn load(program: &Program, cluster: &Cluster) -> anyhow::Result<()> {
    let images = program.images()?;
    images.iter().try_for_each(|image| cluster.load(image))
}

/// Applies what the `tulle install` of a build prints, and waits until all of it serves.
pub async fn apply(program: &Program, cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    let manifests = program.manifests(values)?;
    cluster.ask(["apply", "--server-side", "-f", "-"], &manifests)?;
    let up = eventually(UP, async || serves(cluster)).await;
    up.with_context(|| describe(cluster))
}

/// Fails unless every Deployment of ours has the replicas that it wants, in their newest form, and the webhook can be called.
pub fn serves(cluster: &Cluster) -> anyhow::Result<()> {
    let list = ["get", "deployments", "-n", SYSTEM, "-o", "json"];
    let list: Value = serde_json::from_str(&cluster.ask(list, "")?)?;
    let deployments = list["items"].as_array().context("a list")?;
    ensure!(deployments.len() >= 2, "{} Deployments", deployments.len());
    for deployment in deployments {
        let (status, wanted) = (&deployment["status"], &deployment["spec"]["replicas"]);
        let current = status["observedGeneration"] == deployment["metadata"]["generation"];
        let counts = ["readyReplicas", "updatedReplicas", "replicas"];
        let all = counts.iter().all(|count| status[count] == *wanted);
        let name = &deployment["metadata"]["name"];
        ensure!(current && all, "{name} is not there yet: {status}");
    }
    let list = ["get", "mutatingwebhookconfigurations", "-o", "json"];
    let list: Value = serde_json::from_str(&cluster.ask(list, "")?)?;
    let webhooks = list["items"].as_array().into_iter().flatten();
    for webhook in webhooks.flat_map(|it| it["webhooks"].as_array().into_iter().flatten()) {
        let bundle = webhook["clientConfig"]["caBundle"].as_str();
        ensure!(
            bundle.is_some_and(|it| !it.is_empty()),
            "{} has no bundle",
            webhook["name"]
        );
    }
    Ok(())
}

/// What a person would look at.
fn describe(cluster: &Cluster) -> String {
    let mut text = String::new();
    for arguments in [
        &["describe", "pods", "-n", SYSTEM][..],
        &[
            "logs",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/part-of=tulle",
            "--tail=40",
            "--prefix",
        ],
    ] {
        let said = cluster.ask(arguments.iter().copied(), "");
        text += &said.unwrap_or_else(|error| format!("{error:#}"));
    }
    text
}
