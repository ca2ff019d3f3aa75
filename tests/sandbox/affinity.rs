//! `sessionAffinity: ClientIP`: a client pod keeps its server pod, whatever it speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_tests::{Arena, Mesh, app, eventually};

tulle_tests::cases! {
    a_client_keeps_its_pod_until_that_leaves_and_clients_are_spread;
    without_affinity_a_client_reaches_every_pod;
}

const DEADLINE: Duration = Duration::from_secs(10);
const URLS: [&str; 3] = ["http://shop:8080/", "grpc://shop:9090", "tcp://shop:9000"];

/// The pods that answer some requests of a client. Over TCP each of them has a connection of its own.
async fn answering(arena: &Arena<'_>, client: &str, url: &str) -> anyhow::Result<BTreeSet<String>> {
    let more: &[&str] = if url.starts_with("tcp") {
        &["--server-first", "--no-reuse"]
    } else {
        &[]
    };
    let summary = arena.load(client, url, 40, 0.4, more).await?;
    ensure!(
        summary.failed == 0 && summary.ok >= 10,
        "{client} {url}: {summary:?}"
    );
    Ok(summary.pods.into_keys().collect())
}

/// The one pod that answers each client, by client and URL.
async fn kept(arena: &Arena<'_>) -> anyhow::Result<BTreeMap<(String, &'static str), String>> {
    let mut kept = BTreeMap::new();
    for client in arena.pods_of("client") {
        let client = client.key.name;
        for url in URLS {
            let mut pods = answering(arena, &client, url).await?;
            ensure!(pods.len() == 1, "{client} {url} went to {pods:?}");
            let pod = pods.pop_first().context("somebody answered")?;
            kept.insert((client.clone(), url), pod);
        }
    }
    Ok(kept)
}

async fn a_client_keeps_its_pod_until_that_leaves_and_clients_are_spread(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let shop = app("shop").http(8080).grpc(9090);
    let shop = shop.serve("--tcp-server-first", 9000, "tcp");
    let manifests = shop.replicas(3).sticky() + app("client").replicas(5);
    let arena = mesh.apply("affinity", manifests).await?;
    let before = kept(&arena).await?;
    ensure!(before.len() == 15, "{before:?}");
    // That all clients have the same pod for all they speak is next to impossible, unless they are not told apart.
    let choices: BTreeSet<_> = arena
        .pods_of("client")
        .into_iter()
        .map(|client| URLS.map(|url| before[&(client.key.name.clone(), url)].clone()))
        .collect();
    ensure!(choices.len() > 1, "all clients chose {choices:?}");

    arena.edit(|text| text.replace(r#""replicas":3"#, r#""replicas":2"#))?;
    let left = eventually(DEADLINE, async || {
        let left: BTreeSet<_> = arena
            .pods_of("shop")
            .into_iter()
            .map(|pod| pod.key.name)
            .collect();
        ensure!(left.len() == 2, "{left:?}");
        Ok(left)
    })
    .await?;
    let after = eventually(DEADLINE, async || {
        let after = kept(&arena).await?;
        ensure!(
            after.values().all(|pod| left.contains(pod)),
            "{after:?}, but {left:?}"
        );
        Ok(after)
    })
    .await?;
    for (client, pod) in before {
        ensure!(
            after[&client] == pod || !left.contains(&pod),
            "{client:?} left {pod}, which is still there, for {}",
            after[&client]
        );
    }
    Ok(())
}

async fn without_affinity_a_client_reaches_every_pod(mesh: &Mesh) -> anyhow::Result<()> {
    let shop = app("shop").http(8080).grpc(9090);
    let shop = shop.serve("--tcp-server-first", 9000, "tcp");
    let manifests = shop.replicas(2).sticky() + app("client");
    let arena = mesh.apply("affinity-none", manifests).await?;
    kept(&arena).await?;
    arena.edit(|text| text.replace("ClientIP", "None"))?;
    for url in URLS {
        eventually(DEADLINE, async || {
            let pods = answering(&arena, "client", url).await?;
            ensure!(pods.len() == 2, "{url}: {pods:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
