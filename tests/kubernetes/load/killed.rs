//! Processes that are killed without notice: what may have been processed and must not be twice is all that fails.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tulle_tests::Kubernetes;
use tulle_tests::kubernetes::Container;

use super::shop::{SOON, Shop};

tulle_tests::cases! { in Kubernetes:
    apps_killed_without_notice_lose_no_idempotent_request ["alone"];
    sidecars_killed_without_notice_lose_no_idempotent_request ["alone"];
}

/// How long after a kill a client may still send to what is dead, before it reads so.
const UNREAD: Duration = Duration::from_secs(1);

/// How the paths of requests over gRPC begin.
const GRPC: &str = "/tulle.app.";

/// A container that was killed.
struct Kill {
    /// Of the pod.
    address: String,
    at: Timestamp,
}

async fn apps_killed_without_notice_lose_no_idempotent_request(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    // Who loses it is the server's own sidecar.
    killed(kubernetes, "apps-killed", "web", "inbound|").await
}

async fn sidecars_killed_without_notice_lose_no_idempotent_request(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    killed(kubernetes, "sidecars-killed", "tulle-proxy", "outbound|").await
}

/// Kills a container of each server, one after the other. Sidecars lose requests to it in that direction.
async fn killed(
    kubernetes: &Kubernetes,
    name: &str,
    container: &str,
    direction: &str,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, name).await?;
    let mut kills = Vec::new();
    for server in &shop.servers()? {
        let pod = pod(&shop, server)?;
        let victim = Container::ready(&pod, container)?;
        let address = pod["status"]["podIP"].as_str().context("it has one")?;
        victim.kill()?;
        kills.push(Kill {
            address: address.to_owned(),
            at: Timestamp::now(),
        });
        let end = Instant::now() + SOON;
        while let Err(error) = restarted(&shop, server, container, &victim) {
            ensure!(Instant::now() < end, "{server}: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        shop.settled("web").await?;
    }
    let mut failed = shop.failed()?;
    // What no app was handed was tried elsewhere.
    failed.retain(|request| request["response_flags"] == "UC");
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    for request in &failed {
        let excused = excused(request, &kills)?;
        ensure!(excused, "was in flight to none of the killed: {request}");
    }
    let of = |request: &&Value, field: &str, prefix: &str| {
        let value = request[field].as_str();
        value.is_some_and(|it| it.starts_with(prefix))
    };
    let told = failed
        .iter()
        .filter(|it| of(it, "upstream_cluster", direction) && of(it, "path", GRPC))
        .count() as u64;
    ensure!(grpc.failed <= told, "{grpc}, of which {told} are told of");
    Ok(())
}

/// Whether a request had been sent to a container when that was killed.
fn excused(request: &Value, kills: &[Kill]) -> anyhow::Result<bool> {
    let started = request["start_time"].as_str().context("it has started")?;
    let started: Timestamp = started.parse()?;
    let duration = request["duration"].as_i64().context("it has ended")?;
    let ended = started + SignedDuration::from_millis(duration);
    let upstream = request["upstream_host"].as_str().unwrap_or_default();
    Ok(kills.iter().any(|kill| {
        let there = upstream.starts_with(&format!("{}:", kill.address));
        there && started <= kill.at + UNREAD && ended >= kill.at - UNREAD
    }))
}

fn pod(shop: &Shop<'_>, name: &str) -> anyhow::Result<Value> {
    let pod = shop.namespace.ask(["get", "pod", name, "-o", "json"], "")?;
    Ok(serde_json::from_str(&pod)?)
}

fn restarted(shop: &Shop<'_>, server: &str, name: &str, victim: &Container) -> anyhow::Result<()> {
    let again = Container::ready(&pod(shop, server)?, name)?;
    ensure!(again != *victim, "{name} is not up again");
    Ok(())
}
