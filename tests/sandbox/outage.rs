//! Our own control plane out of reach: dead, or behind a network that swallows packets. What is known goes on, what is new
//! waits, and what happened meanwhile counts once it is back.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tulle_runtime::names::{containers, files, ports};
use tulle_tests::{Arena, Mesh, app, eventually, gate};

tulle_tests::cases! {
    row_43_without_a_control_plane_pods_go_on_and_new_ones_wait ["alone"];
    row_44_a_stream_into_the_void_is_left_and_what_was_removed_meanwhile_vanishes ["nft"];
}

/// Pings every two seconds, two for the answer, and something for a busy machine.
const NOTICED: Duration = Duration::from_secs(8);
const HEALED: Duration = Duration::from_secs(20);

async fn answered(arena: &Arena<'_>, times: usize) -> anyhow::Result<()> {
    for _ in 0..times {
        let answer = arena.app_call("client", &["http://server:8080/"]).await?;
        ensure!(answer["status"] == 200, "{answer}");
    }
    Ok(())
}

async fn connected(arena: &Arena<'_>, wanted: bool, deadline: Duration) -> anyhow::Result<()> {
    eventually(deadline, async || {
        let metrics = arena.metrics("client").await?;
        let connected = metrics.sum("tulle_xds_connected", &[]) > 0.0;
        ensure!(connected == wanted, "connected: {connected}");
        Ok(())
    })
    .await
}

/// Addresses of the endpoints of Service `server` that the client's sidecar knows.
async fn endpoints(arena: &Arena<'_>) -> anyhow::Result<Vec<String>> {
    let clusters = arena.admin("client", "/config_dump").await?;
    let cluster = clusters["clusters"]
        .as_object()
        .and_then(|clusters| clusters.iter().find(|(name, _)| name.contains("||server.")))
        .context("the cluster is not known")?;
    let endpoints = cluster.1["endpoints"]
        .as_array()
        .context("it has endpoints")?;
    let addresses = endpoints
        .iter()
        .map(|endpoint| endpoint["address"].to_string());
    Ok(addresses.collect())
}

async fn row_43_without_a_control_plane_pods_go_on_and_new_ones_wait(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let manifests = app("server").http(8080).replicas(2) + app("client");
    let arena = mesh.apply("outage-dead", manifests).await?;
    answered(&arena, 1).await?;
    saved(&arena, "server.outage-dead").await?;
    mesh.control.kill().await;
    let outcome = while_it_is_dead(&arena).await;
    mesh.control.resume().await;
    outcome?;
    // Whoever waited goes on by himself, and so does everybody else.
    arena.wait_ready().await?;
    connected(&arena, true, HEALED).await?;
    let answer = arena.app_call("late", &["http://server:8080/"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    answered(&arena, 5).await
}

/// Resolves when the client's sidecar has saved what it knows of a Service, which it does a moment after it has learned it.
async fn saved(arena: &Arena<'_>, service: &str) -> anyhow::Result<()> {
    let client = arena.pod("client")?;
    let sidecar = client.container(containers::PROXY).and_then(|it| it.pid);
    let sidecar = sidecar.context("no sidecar runs")?;
    // `/var/run` is a link, and would lead out of the container.
    let directory = files::STATE_DIR.trim_start_matches("/var");
    let file = format!("/proc/{sidecar}/root{directory}/config.pb");
    eventually(HEALED, async || {
        let saved = std::fs::read(&file)?;
        let known = saved
            .windows(service.len())
            .any(|it| it == service.as_bytes());
        ensure!(known, "{service} is not in {file}");
        Ok(())
    })
    .await
}

async fn while_it_is_dead(arena: &Arena<'_>) -> anyhow::Result<()> {
    connected(arena, false, NOTICED).await?;
    answered(arena, 10).await?;
    // A sidecar that is started again finds certificate and config where it left them.
    let client = arena.pod("client")?.key;
    arena.mesh().sandbox.kill_pod(&client)?;
    eventually(HEALED, async || answered(arena, 1).await).await?;
    arena.add(app("late").yaml())?;
    let began = Instant::now();
    let pods = eventually(HEALED, async || {
        let pods = arena.pods();
        let late = pods
            .into_iter()
            .find(|pod| pod.key.name.starts_with("late-"));
        late.filter(|pod| {
            pod.containers
                .iter()
                .any(|container| container.pid.is_some())
        })
        .context("its sidecar has not been started")
    });
    let late = pods.await?.key;
    while began.elapsed() < Duration::from_secs(5) {
        let pods = arena.pods();
        let pod = pods
            .iter()
            .find(|pod| pod.key == late)
            .context("it is there")?;
        let app = pod.container("app").context("its app")?;
        ensure!(!pod.ready && app.pid.is_none(), "it did not wait: {pod:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let log = arena.mesh().sandbox.logs(&late, Some(containers::PROXY))?;
    let log = String::from_utf8_lossy(&log).into_owned();
    ensure!(log.contains("no certificate yet"), "{log}");
    answered(arena, 5).await
}

/// Swallows what a pod and somebody else say to each other, until dropped.
pub(crate) struct Void(String);

impl Void {
    /// A pod and the control plane.
    fn between(pod: &str, table: &str) -> anyhow::Result<Self> {
        let port = ports::XDS;
        let rules = format!(
            "table inet {table} {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {pod} tcp dport {port} drop; }}\n\
             chain out {{ type filter hook output priority 0; ip daddr {pod} tcp sport {port} drop; }}\n\
             }}"
        );
        nft(&rules)?;
        Ok(Self(table.to_owned()))
    }

    /// What one pod sends to another.
    pub(crate) fn from_to(from: &str, to: &str, table: &str) -> anyhow::Result<Self> {
        let rules = format!(
            "table inet {table} {{\n\
             chain forward {{ type filter hook forward priority 0; ip saddr {from} ip daddr {to} drop; }}\n\
             }}"
        );
        nft(&rules)?;
        Ok(Self(table.to_owned()))
    }
}

impl Drop for Void {
    fn drop(&mut self) {
        // The node goes with the process at the latest.
        let _ = nft(&format!("delete table inet {}", self.0));
    }
}

fn nft(rules: &str) -> anyhow::Result<()> {
    let program = gate::find("nft").context("nft")?;
    let output = Command::new(program).arg(rules).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn row_44_a_stream_into_the_void_is_left_and_what_was_removed_meanwhile_vanishes(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let manifests = app("server").http(8080).replicas(2) + app("client");
    let arena = mesh.apply("outage-void", manifests).await?;
    answered(&arena, 4).await?;
    ensure!(
        endpoints(&arena).await?.len() == 2,
        "{:?}",
        endpoints(&arena).await?
    );

    let client = arena.pod("client")?.ips.v4.to_string();
    let void = Void::between(&client, "outage_void")?;
    let began = Instant::now();
    // No packet says that the stream is over: the pings that nobody answers do.
    connected(&arena, false, NOTICED).await?;
    ensure!(began.elapsed() > Duration::from_secs(1), "it was told");
    mesh.sandbox.scale(&arena.key("server"), 1)?;
    eventually(HEALED, async || {
        let pods = arena.pods_of("server").len();
        ensure!(pods == 1, "{pods} pods");
        Ok(())
    })
    .await?;
    // The endpoint that is gone is still known, and costs nobody a request.
    answered(&arena, 10).await?;
    ensure!(endpoints(&arena).await?.len() == 2, "nobody can have told");

    drop(void);
    connected(&arena, true, HEALED).await?;
    eventually(Duration::from_secs(2), async || {
        let endpoints = endpoints(&arena).await?;
        ensure!(endpoints.len() == 1, "{endpoints:?}");
        Ok(())
    })
    .await?;
    answered(&arena, 5).await
}
