//! Attacks on what a sidecar has little of: files, memory, patience. A client that behaves loses nothing meanwhile.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_runtime::names::{containers, variables};
use tulle_tests::{Arena, Mesh, app, eventually, progress, scaled};

use crate::attack::{Attack, Way};
use crate::behaved::Behaved;
use crate::floods::short;
use crate::limited::Limits;
use crate::process::{Cgroup, Process};

tulle_tests::cases! {
    row_24_six_thousand_connections_at_512_files_cost_a_client_nothing ["alone"];
    row_25_a_load_of_many_times_the_memory_is_shed_and_the_sidecar_lives ["alone"];
    row_19_slow_clients_are_let_go_and_others_served;
}

pub(crate) const MEMORY: u64 = 64 << 20;
/// What may stay of it after an attack: what the allocator cannot give back.
const RESIDUE: u64 = 6 << 20;
/// CPU time that a hundred slow clients may cost until they are let go, with what is served meanwhile.
const SLOW: Duration = Duration::from_secs(2);
/// CPU time that a flood of connections may cost, with what is served meanwhile, of a build without optimisation.
const FLOOD: Duration = Duration::from_secs(2);
const CGROUP: &str = "tulle-test-memory";

/// What the sidecars of these tests get.
pub(crate) const LIMITS: [Limits; 5] = [
    Limits {
        namespace: "flood",
        app: "web",
        files: Some(512),
        cgroup: None,
        variables: &[],
    },
    Limits {
        namespace: "memory",
        app: "web",
        files: None,
        cgroup: Some(CGROUP),
        variables: &[],
    },
    Limits {
        namespace: short::ANSWERS,
        app: "web",
        files: None,
        cgroup: Some(short::CGROUP),
        variables: &[],
    },
    Limits {
        namespace: short::REQUESTS,
        app: "web",
        files: None,
        cgroup: Some(short::CGROUP),
        variables: &[],
    },
    Limits {
        namespace: "slow",
        app: "web",
        files: None,
        cgroup: None,
        variables: &[
            (variables::REQUEST_HEAD_TIMEOUT, "2s"),
            (variables::BODY_TIMEOUT, "2s"),
            (variables::UNREAD_TIMEOUT, "2s"),
            (variables::FIRST_REQUEST_TIMEOUT, "2s"),
        ],
    },
];

const DEADLINE: Duration = Duration::from_secs(20);

/// `web`, a client of it in the mesh, and an attacker from outside.
fn manifests() -> String {
    let attacker = app("attacker").annotate("tulle.dev/inject", "disabled");
    let all = app("web").http(8080) + app("client") + attacker;
    all.as_ref().to_owned()
}

/// How often a limit was reached by what came in.
async fn reached(arena: &Arena<'_>, limit: &str) -> anyhow::Result<f64> {
    let labels = [("limit", limit), ("listener", "inbound")];
    let metrics = arena.metrics("web").await?;
    Ok(metrics.sum("tulle_limits_reached_total", &labels))
}

async fn row_24_six_thousand_connections_at_512_files_cost_a_client_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let arena = mesh.apply("flood", manifests()).await?;
    let sidecar = Process::of(&arena, "web")?;
    let behaved = Behaved::begin(&arena, 20).await?.begun().await?;
    let cpu = sidecar.cpu()?;
    let attack = Attack::begin(&arena, "attacker", Way::Silent, "web:8080", 6_000).await?;
    let opened = attack.opened();
    ensure!(opened.connected > 500, "an attack that is none: {opened:?}");
    behaved.newcomers().await?;
    for _ in 0..10 {
        let files = sidecar.files()?;
        ensure!(files < 512, "{files} files are open");
        ensure!(
            reached(&arena, "connections").await? >= 1.0,
            "no limit was reached"
        );
        let ready = arena.admin("web", "/ready").await?;
        ensure!(ready == "ready\n", "admin says {ready}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let open = arena.metrics("web").await?;
    let open = open.sum(
        "tulle_downstream_connections_open",
        &[("direction", "inbound")],
    );
    ensure!((60.0..=70.0).contains(&open), "{open} connections are open");
    ensure!(
        reached(&arena, "files").await? == 0.0,
        "files ran out all the same"
    );
    let cpu = sidecar.cpu()? - cpu;
    ensure!(cpu < FLOOD, "the flood cost {cpu:?}");
    attack.end().await?;
    // Whoever comes now is served.
    eventually(DEADLINE, async || {
        let answer = arena.app_call("attacker", &["http://web:8080/"]).await?;
        ensure!(answer["status"] == 200, "{answer}");
        Ok(())
    })
    .await?;
    behaved.end(100).await?;
    sidecar.lives(&arena, "web")
}

async fn row_25_a_load_of_many_times_the_memory_is_shed_and_the_sidecar_lives(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let cgroup = Cgroup::create(CGROUP, MEMORY)?;
    let applied = mesh.apply("memory", manifests());
    let (arena, moved) = tokio::join!(applied, confine(mesh, "memory", &cgroup));
    moved?;
    let arena = arena?;
    let sidecar = Process::of(&arena, "web")?;
    let limit = arena
        .metrics("web")
        .await?
        .sum("tulle_memory_limit_bytes", &[]);
    ensure!(
        limit == MEMORY as f64,
        "the sidecar believes in {limit} bytes"
    );
    let behaved = Behaved::begin(&arena, 20).await?.begun().await?;
    let before = sidecar.memory()?;
    let mut attacks = Vec::new();
    for way in [Way::Unread, Way::UnreadHttp2] {
        let number = scaled(300, 1_500);
        attacks.push(Attack::begin(&arena, "attacker", way, "web:8080", number).await?);
    }
    behaved.newcomers().await?;
    let (looks, mut paused) = (scaled(25, 1_500), false);
    for look in 1..=looks {
        paused = paused || has_paused(&arena)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let ready = arena.admin("web", "/ready").await?;
        ensure!(ready == "ready\n", "admin says {ready}");
        ensure!(cgroup.kills()? == 0, "the kernel has killed it");
        progress("row 25, looks while it is attacked", look, looks);
    }
    behaved.newcomers().await?;
    let shed = reached(&arena, "memory").await?;
    ensure!(
        shed >= 1.0,
        "no limit was reached: {} bytes at most",
        cgroup.peak()?
    );
    // Before anybody had to go, nobody more was let in.
    ensure!(paused, "accepting has never paused");
    for attack in attacks {
        attack.end().await?;
    }
    eventually(DEADLINE, async || {
        let answer = arena.app_call("attacker", &["http://web:8080/"]).await?;
        ensure!(answer["status"] == 200, "{answer}");
        Ok(())
    })
    .await?;
    eventually(DEADLINE, async || {
        let now = sidecar.memory()?;
        ensure!(
            now <= before + RESIDUE,
            "{before} bytes of memory became {now}"
        );
        Ok(())
    })
    .await?;
    behaved.end(100).await?;
    sidecar.lives(&arena, "web")
}

/// Whether the sidecar has said that it accepts nobody for want of memory. What is kept of its log is not everything, and
/// later it says other things of memory.
fn has_paused(arena: &Arena<'_>) -> anyhow::Result<bool> {
    let log = arena.logs("web", Some(containers::PROXY))?;
    let mut lines = log.lines().filter(|line| line.contains("memory"));
    Ok(lines.any(|line| line.contains("no connection is accepted until there is room")))
}

/// Puts the sidecar of `web` into a cgroup as soon as its process is there.
pub(crate) async fn confine(mesh: &Mesh, namespace: &str, cgroup: &Cgroup) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let pods = mesh.sandbox.pods();
        let pod = pods
            .iter()
            .find(|pod| pod.key.namespace == namespace && pod.key.name.starts_with("web"));
        let sidecar = pod.and_then(|pod| pod.container(containers::PROXY)?.pid);
        cgroup.add(sidecar.context("no sidecar yet")?)
    })
    .await
}

async fn row_19_slow_clients_are_let_go_and_others_served(mesh: &Mesh) -> anyhow::Result<()> {
    const EACH: usize = 20;
    let arena = mesh.apply("slow", manifests()).await?;
    let sidecar = Process::of(&arena, "web")?;
    let behaved = Behaved::begin(&arena, 20).await?.begun().await?;
    let cpu = sidecar.cpu()?;
    let mut attacks = Vec::new();
    for way in [Way::Silent, Way::Head, Way::Body, Way::Drip, Way::Unread] {
        attacks.push((
            way,
            Attack::begin(&arena, "attacker", way, "web:8080", EACH).await?,
        ));
    }
    eventually(DEADLINE, async || {
        for limit in ["first_request", "body", "unread"] {
            let count = reached(&arena, limit).await?;
            // Who stops in a body, and who sends a byte of it now and then.
            let ways = if limit == "body" { 2 } else { 1 };
            ensure!(count >= (ways * EACH) as f64, "{limit}: {count}");
        }
        let late = [("direction", "inbound"), ("reason", "slow_head")];
        let metrics = arena.metrics("web").await?;
        let late = metrics.sum("tulle_downstream_connections_refused_total", &late);
        ensure!(late >= EACH as f64, "head: {late}");
        Ok(())
    })
    .await?;
    for (way, attack) in attacks {
        ensure!(
            attack.opened().connected == EACH,
            "{way:?}: {:?}",
            attack.opened()
        );
        let ended = attack.end().await?;
        match way {
            Way::Silent => ensure!(ended.closed == EACH, "{way:?}: {ended:?}"),
            Way::Head | Way::Body | Way::Drip => {
                ensure!(ended.closed == EACH, "{way:?}: {ended:?}");
                ensure!(
                    ended.answers.get("408") == Some(&EACH),
                    "{way:?}: {ended:?}"
                );
            }
            Way::Unread | Way::UnreadHttp2 => {}
        }
    }
    let cpu = sidecar.cpu()? - cpu;
    ensure!(cpu < SLOW, "they cost {cpu:?}");
    behaved.end(40).await
}
