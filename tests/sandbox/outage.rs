//! Our own control plane out of reach: dead, slow, or behind a network that swallows packets. What is known goes on, what is
//! new waits, and what happened meanwhile counts once it is back.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use tulle_runtime::names::{containers, files, ports};
use tulle_tests::{Arena, Load, Mesh, app, eventually, gate, progress, scaled};

tulle_tests::cases! {
    row_43_without_a_control_plane_pods_go_on_and_new_ones_wait ["alone"];
    row_43_a_slow_control_plane_is_waited_for_and_costs_nobody_a_request ["alone"];
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

/// Requests all the time, of a pod that nothing else happens to.
async fn steady(arena: &Arena<'_>) -> anyhow::Result<Load> {
    let url = "http://server:8080/";
    let known = arena.app_call("steady", &[url]).await?;
    ensure!(known["status"] == 200, "{known}");
    // A machine that has much else to do makes them late, not lost.
    let patience = ["--timeout", "30s"];
    arena.start_load("steady", url, 20, 7_200.0, &patience)
}

/// None of them was lost.
async fn all_answered(load: Load) -> anyhow::Result<()> {
    let summary = load.stop().await?;
    let lost = summary.failed > 0 || summary.ok != summary.sent || summary.ok < 20;
    ensure!(!lost, "requests were lost: {}", summary.line());
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
    let manifests = app("server").http(8080).replicas(2) + app("client") + app("steady");
    let arena = mesh.apply("outage-dead", manifests).await?;
    answered(&arena, 1).await?;
    saved(&arena, "server.outage-dead").await?;
    let load = steady(&arena).await?;
    mesh.control.kill().await;
    let outcome = while_it_is_dead(&arena).await;
    mesh.control.resume().await;
    outcome?;
    // Whoever waited goes on by himself, and so does everybody else.
    arena.wait_ready().await?;
    connected(&arena, true, HEALED).await?;
    let answer = arena.app_call("late", &["http://server:8080/"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    answered(&arena, 5).await?;
    all_answered(load).await
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
    eventually(HEALED, async || {
        let log = arena.mesh().sandbox.logs(&late, Some(containers::PROXY))?;
        let log = String::from_utf8_lossy(&log).into_owned();
        ensure!(log.contains("no certificate yet"), "{log}");
        Ok(())
    })
    .await?;
    let (end, mut told) = (scaled(5, 3_600) as u64, 0);
    while began.elapsed() < Duration::from_secs(end) {
        if began.elapsed().as_secs() > told {
            told += 1;
            answered(arena, 1).await?;
            progress(
                "row 43, seconds without a control plane",
                told as usize,
                end as usize,
            );
        }
        let pods = arena.pods();
        let pod = pods
            .iter()
            .find(|pod| pod.key == late)
            .context("it is there")?;
        let app = pod.container("app").context("its app")?;
        ensure!(!pod.ready && app.pid.is_none(), "it did not wait: {pod:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    answered(arena, 5).await
}

/// A process that hardly ever runs, until dropped.
struct Slow {
    process: Pid,
    _turns: JoinSet<()>,
}

impl Slow {
    /// So long it stands still, and so long it runs then.
    const STILL: Duration = Duration::from_millis(1_200);
    const RUNS: Duration = Duration::from_millis(100);

    fn new(process: u32) -> anyhow::Result<Self> {
        let process = Pid::from_raw(i32::try_from(process)?);
        let mut turns = JoinSet::new();
        turns.spawn(async move {
            // It lives at least as long as this.
            while kill(process, Signal::SIGSTOP).is_ok() {
                tokio::time::sleep(Self::STILL).await;
                let _ = kill(process, Signal::SIGCONT);
                tokio::time::sleep(Self::RUNS).await;
            }
        });
        Ok(Self {
            process,
            _turns: turns,
        })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self._turns.abort_all();
        let _ = kill(self.process, Signal::SIGCONT);
    }
}

async fn row_43_a_slow_control_plane_is_waited_for_and_costs_nobody_a_request(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let manifests = app("server").http(8080).replicas(2)
        + app("other").http(8080)
        + app("client")
        + app("steady");
    let arena = mesh.apply("outage-slow", manifests).await?;
    answered(&arena, 1).await?;
    let streams = async || {
        let metrics = arena.metrics("client").await?;
        anyhow::Ok(metrics.sum("tulle_xds_streams_total", &[]))
    };
    let (before, load) = (streams().await?, steady(&arena).await?);
    let slow = Slow::new(mesh.control.pid().context("it runs")?)?;
    // Whom nobody has asked for is found out within the time that a connection waits, or refused: never sent as it is.
    let answer = eventually(HEALED, async || {
        let answer = arena.app_call("client", &["http://other:8080/"]).await?;
        let refused = answer["status"] == 503;
        ensure!(!refused, "{answer}");
        Ok(answer)
    })
    .await?;
    let client = &answer["body"]["headers"]["x-forwarded-client-cert"];
    ensure!(client.is_string(), "no mutual TLS: {answer}");
    // An endpoint that goes is heard of late, and costs nobody a request.
    mesh.sandbox.scale(&arena.key("server"), 1)?;
    eventually(2 * HEALED, async || {
        let endpoints = endpoints(&arena).await?;
        ensure!(endpoints.len() == 1, "{endpoints:?}");
        Ok(())
    })
    .await?;
    // A new pod waits for its certificate and its config, and gets them.
    arena.add(app("late").yaml())?;
    eventually(2 * HEALED, async || {
        arena.pods_of("late").pop().context("it is not ready")
    })
    .await?;
    let answer = arena.app_call("late", &["http://server:8080/"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    let more = streams().await? - before;
    ensure!(more == 0.0, "{more} streams were given up for being slow");
    drop(slow);
    all_answered(load).await
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
    let seconds = scaled(0, 600);
    for second in 1..=seconds {
        answered(&arena, 1).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        progress("row 44, seconds of silence", second, seconds);
    }
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
