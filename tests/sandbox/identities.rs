//! Connections that are kept for the next request are one identity's: that of the peer, and our own. Row 33.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_identity::Identity;
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::certificate::svid;
use crate::mole::{Mole, PORT, burrow};

tulle_tests::cases! {
    row_33_a_pooled_connection_is_never_used_for_another_service_account;
}

const DEADLINE: Duration = Duration::from_secs(15);

/// The file that tells the control plane of a pod.
fn pod_file(arena: &Arena<'_>, name: &str) -> anyhow::Result<PathBuf> {
    let pod = arena.pod(name)?.key;
    let state = arena.mesh().sandbox.sources().pop().context("no sources")?;
    Ok(state.join(format!("pod_{}_{}.json", pod.namespace, pod.name)))
}

/// From now on the pod at that address runs as another service account, as if it were another pod.
fn run_as(arena: &Arena<'_>, name: &str, account: &str) -> anyhow::Result<()> {
    let file = pod_file(arena, name)?;
    let mut pod: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let spec = pod["spec"]["serviceAccountName"].as_str();
    ensure!(spec != Some(account), "it is {account} already");
    pod["spec"]["serviceAccountName"] = account.into();
    let new = file.with_file_name(".identities.new");
    std::fs::write(&new, pod.to_string())?;
    Ok(std::fs::rename(&new, &file)?)
}

async fn call(arena: &Arena<'_>, options: &[&str]) -> anyhow::Result<Value> {
    let url = format!("http://burrow:{PORT}/");
    let call: Vec<_> = [url.as_str()].iter().chain(options).copied().collect();
    arena.app_call("client", &call).await
}

/// Requests are answered, by one connection. Its number.
async fn answered(arena: &Arena<'_>, options: &[&str]) -> anyhow::Result<u64> {
    let mut connections = Vec::new();
    for _ in 0..3 {
        let answer = call(arena, options).await?;
        ensure!(answer["status"] == 200, "{answer}");
        connections.push(answer["body"]["connection"].as_u64().context("a number")?);
    }
    ensure!(
        connections.iter().all(|it| *it == connections[0]),
        "no connection is kept: {connections:?}"
    );
    Ok(connections[0])
}

/// Requests are refused from some moment on, and none reaches the peer after it.
async fn refused(arena: &Arena<'_>, options: &[&str], mole: &Mole) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let answer = call(arena, options).await?;
        ensure!(answer["status"] == 503, "{answer}");
        Ok(())
    })
    .await?;
    let reached = mole.calls().len();
    for _ in 0..5 {
        let answer = call(arena, options).await?;
        ensure!(answer["status"] == 503, "{answer}");
    }
    let more = mole.calls().len() - reached;
    ensure!(more == 0, "{more} requests reached somebody else");
    Ok(())
}

async fn row_33_a_pooled_connection_is_never_used_for_another_service_account(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let namespace = "pool-identities";
    let (pod, service) = burrow("burrow");
    let manifests = pod + app("client") + service.as_str();
    let arena = mesh.apply(namespace, manifests).await?;
    let identity = |account: &str| {
        let (svid, bundle) = svid(&format!(
            "spiffe://cluster.local/ns/{namespace}/sa/{account}"
        ))?;
        anyhow::Ok(Identity::new(svid, bundle))
    };
    let mole = Mole::start(&arena, "burrow", identity("burrow")?)?;
    for options in [&[][..], &["--http2"]] {
        let first = answered(&arena, options).await?;
        // The address is another account's now: what stands there has not proven to be that.
        run_as(&arena, "burrow", "other")?;
        refused(&arena, options, &mole).await?;
        mole.becomes(identity("other")?);
        let second = eventually(DEADLINE, async || answered(&arena, options).await).await?;
        ensure!(
            second != first,
            "the connection of another identity was used"
        );
        // And back, while that one is still open.
        run_as(&arena, "burrow", "burrow")?;
        refused(&arena, options, &mole).await?;
        mole.becomes(identity("burrow")?);
        let third = eventually(DEADLINE, async || answered(&arena, options).await).await?;
        ensure!(
            third != first && third != second,
            "{first} {second} {third}"
        );
    }
    Ok(())
}
