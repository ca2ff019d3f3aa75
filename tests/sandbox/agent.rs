//! `tulle agent` in a pod without a sidecar: its files, and that they follow a rotation.

use std::time::Duration;

use anyhow::ensure;
use tulle_runtime::names::agent;
use tulle_tests::{Arena, Mesh, app, eventually};

tulle_tests::cases! {
    a_pod_with_an_agent_has_a_certificate_of_its_own ["openssl"];
    roots_that_rotate_reach_the_files ["alone", "openssl"];
}

/// What the shell says in the pod.
async fn shell(arena: &Arena<'_>, command: &str) -> anyhow::Result<String> {
    arena.exec("client", ["sh", "-c", command]).await?.ok()
}

async fn a_pod_with_an_agent_has_a_certificate_of_its_own(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("agent-files", app("client").agent(&[]).yaml())
        .await?;
    let dir = agent::DIR;
    let modes = shell(
        &arena,
        &format!("cd {dir} && stat -L -c '%n %a' tls.crt tls.key ca.crt && readlink tls.key"),
    )
    .await?;
    ensure!(
        modes == "tls.crt 644\ntls.key 600\nca.crt 644\n..data/tls.key\n",
        "{modes}"
    );
    let of = |text: String| text.trim().to_owned();
    let names = shell(
        &arena,
        &format!("cd {dir} && openssl x509 -in tls.crt -noout -ext subjectAltName && openssl verify -CAfile ca.crt tls.crt"),
    )
    .await?;
    ensure!(
        names.contains("URI:spiffe://cluster.local/ns/agent-files/sa/client")
            && names.contains("tls.crt: OK"),
        "{names}"
    );
    let pair = [
        format!("openssl x509 -in {dir}/tls.crt -noout -pubkey"),
        format!("openssl pkey -in {dir}/tls.key -pubout"),
    ];
    let [certificate, key] = [
        of(shell(&arena, &pair[0]).await?),
        of(shell(&arena, &pair[1]).await?),
    ];
    ensure!(certificate == key, "the key is not the certificate's");
    Ok(())
}

async fn roots_that_rotate_reach_the_files(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("agent-roots", app("client").agent(&[]).yaml())
        .await?;
    let look = format!(
        "cd {} && grep -c BEGIN ca.crt && openssl verify -CAfile ca.crt tls.crt",
        agent::DIR
    );
    let before = shell(&arena, &look).await?;
    mesh.control_post("/ca/rotate-root").await?;
    eventually(Duration::from_secs(20), async || {
        let after = shell(&arena, &look).await?;
        ensure!(after != before, "the files did not change: {after}");
        ensure!(after.contains("tls.crt: OK"), "{after}");
        Ok(())
    })
    .await
}
