//! `tulle agent` in a pod without a sidecar: its files. That they follow a rotation of the roots is looked at where the
//! roots of the tests' mesh are rotated, which can be done once.

use anyhow::ensure;
use tulle_runtime::names::agent;
use tulle_tests::{Arena, Mesh, app};

tulle_tests::cases! {
    a_pod_with_an_agent_has_a_certificate_of_its_own ["openssl"];
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

/// How many roots the files of pod `client` have, and whether they vouch for its certificate.
pub(crate) async fn trust(arena: &Arena<'_>) -> anyhow::Result<(usize, bool)> {
    let look = format!(
        "cd {} && grep -c BEGIN ca.crt && openssl verify -CAfile ca.crt tls.crt",
        agent::DIR
    );
    let shown = shell(arena, &look).await?;
    let roots = shown.lines().next().unwrap_or_default().parse()?;
    Ok((roots, shown.contains("tls.crt: OK")))
}
