//! An unmodified Envoy as a sidecar, of our control plane, beside our own.

mod pod;

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{Mesh, app, eventually};

use crate::proof::encrypted_requests;
use pod::{DELTA, FULL, access_log, all_accepted, with_envoy};

tulle_tests::cases! {
    envoy_and_our_sidecar_call_each_other_with_mtls ["envoy", "curl"];
}

const DEADLINE: Duration = Duration::from_secs(10);

async fn envoy_and_our_sidecar_call_each_other_with_mtls(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = [
        with_envoy(&app("theirs").http(8080), FULL)?,
        with_envoy(&app("other").http(8080), DELTA)?,
        app("ours").http(8080).yaml(),
    ];
    let arena = mesh.apply("envoy-both", manifests.concat()).await?;
    for (from, to) in [
        ("theirs", "ours"),
        ("ours", "theirs"),
        ("theirs", "other"),
        ("other", "ours"),
    ] {
        let url = format!("http://{to}:8080/");
        let answer = arena.app_call(from, &[&url]).await?;
        ensure!(
            answer["status"] == 200 && answer["body"]["name"] == to,
            "{from} to {to}: {answer}"
        );
        let client = &answer["body"]["headers"]["x-forwarded-client-cert"];
        let uri = format!("URI=spiffe://cluster.local/ns/envoy-both/sa/{from}");
        ensure!(
            client.to_string().contains(&uri),
            "{from} to {to}: {answer}"
        );
    }
    encrypted_requests(&arena, "ours", 2).await?;
    for pod in ["theirs", "other"] {
        all_accepted(&arena, pod).await?;
    }
    let peer = "spiffe://cluster.local/ns/envoy-both/sa/ours";
    eventually(DEADLINE, async || {
        let log = access_log(&arena, "theirs")?;
        for key in ["upstream_peer", "downstream_peer"] {
            ensure!(
                log.iter().any(|line| line[key] == peer),
                "no {key}: {log:?}"
            );
        }
        Ok(())
    })
    .await
}
