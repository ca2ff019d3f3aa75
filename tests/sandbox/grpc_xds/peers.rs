//! gRPC servers that are mesh peers themselves, with the certificate that an agent keeps for them.

use std::time::Duration;

use anyhow::ensure;
use tulle_runtime::names::{agent, labels};
use tulle_tests::manifests::FILES;
use tulle_tests::{App, Mesh, app, eventually, gate};

use crate::foreign::script;

use super::STRICT;
use super::client::{BOOTSTRAP, Client, Language, client, with_agent};

tulle_tests::cases! {
    python_refuses_a_server_with_another_identity ["grpcio"];
    javascript_refuses_a_server_with_another_identity ["grpcio", "grpc-js-xds"];
    an_xds_server_takes_clients_of_the_mesh_and_nobody_else ["grpcio"];
    an_xds_server_follows_the_policy ["grpcio"];
    our_sidecar_calls_an_xds_server ["grpcio"];
}

/// A server that serves by itself what a sidecar would: mTLS.
fn peer(name: &str, arguments: &[&str]) -> App {
    let python = gate::python().display().to_string();
    let server = format!("{FILES}/server.py");
    let argv = [&python, "-B", &server].into_iter();
    with_agent(app(name))
        .label(labels::PROXIED, labels::PROXIED_GRPC)
        .command(argv.chain(arguments.iter().copied()))
        .file("server.py", include_str!("server.py"))
        .port("grpc", 9000, 9000)
}

async fn python_refuses_a_server_with_another_identity(mesh: &Mesh) -> anyhow::Result<()> {
    refuses(mesh, "grpc-pin-python", Language::Python).await
}

async fn javascript_refuses_a_server_with_another_identity(mesh: &Mesh) -> anyhow::Result<()> {
    refuses(mesh, "grpc-pin-js", Language::JavaScript).await
}

/// A server with the certificate that its pod should have is called; one with another pod's, good in itself, is not.
async fn refuses(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let arena = mesh
        .apply(
            namespace,
            peer("vault", &["tls", agent::DIR, agent::DIR]) + client() + STRICT,
        )
        .await?;
    let mut good = Client::start(&arena, "client", language, "vault:9000")?;
    let outcome = good.good_calls(3).await?;
    let own = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
    ensure!(outcome.peers.get(&own) == Some(&3), "{outcome:?}");

    let mut impostor = peer("impostor", &["tls", FILES, agent::DIR]);
    for name in [agent::CERT, agent::KEY] {
        let stolen = arena
            .exec("vault", ["cat", &format!("{}/{name}", agent::DIR)])
            .await?;
        impostor = impostor.file(name, stolen.ok()?);
    }
    arena.add(impostor.yaml())?;
    arena.wait_ready().await?;
    let mut bad = Client::start(&arena, "client", language, "impostor:9000")?;
    let outcome = bad.calls(3).await?;
    ensure!(outcome.errors.get("UNAVAILABLE") == Some(&3), "{outcome:?}");
    let details = outcome.details.to_lowercase();
    ensure!(
        ["verif", "certificate", "handshake", "subject alternative"]
            .iter()
            .any(|word| details.contains(word)),
        "refused for another reason: {outcome:?}"
    );
    Ok(())
}

async fn an_xds_server_takes_clients_of_the_mesh_and_nobody_else(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let namespace = "grpc-xds-server";
    let arena = mesh
        .apply(
            namespace,
            peer("vault", &["xds", BOOTSTRAP]) + client() + STRICT,
        )
        .await?;
    let mut caller = Client::start(&arena, "client", Language::Python, "vault:9000")?;
    let outcome = caller.good_calls(5).await?;
    let own = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
    ensure!(outcome.peers.get(&own) == Some(&5), "{outcome:?}");
    for (who, frame) in [("known", "4"), ("stranger", "none")] {
        let argv = script(
            &gate::python().display().to_string(),
            KNOCK,
            &["vault", agent::DIR, who],
        );
        let answered = arena.exec("client", argv).await?.ok()?;
        ensure!(answered.trim() == frame, "{who} got frame {answered}");
    }
    Ok(())
}

/// Begins HTTP/2 over TLS, with a certificate or without, and prints the type of the first frame that comes back.
const KNOCK: &str = r"
import socket, ssl, sys
host, folder, who = sys.argv[1:]
context = ssl.create_default_context(cafile=folder + '/ca.crt')
context.check_hostname = False
context.set_alpn_protocols(['h2'])
if who == 'known':
    context.load_cert_chain(folder + '/tls.crt', folder + '/tls.key')
stream = context.wrap_socket(socket.create_connection((host, 9000), 10))
try:
    stream.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = stream.recv(9)
except OSError:
    head = b''
print(head[3] if len(head) == 9 else 'none')
";

/// Under DISABLE the server speaks plaintext, and so do its clients; under STRICT both stop.
async fn an_xds_server_follows_the_policy(mesh: &Mesh) -> anyhow::Result<()> {
    let off = STRICT.replace("STRICT", "DISABLE");
    let arena = mesh
        .apply(
            "grpc-xds-policy",
            peer("vault", &["xds", BOOTSTRAP]) + client() + &*off,
        )
        .await?;
    let mut caller = Client::start(&arena, "client", Language::Python, "vault:9000")?;
    let plain = caller.good_calls(3).await?;
    ensure!(plain.peers.get("nobody") == Some(&3), "{plain:?}");
    arena.edit(|text| text.replace(&off, STRICT))?;
    let caller = tokio::sync::Mutex::new(caller);
    eventually(Duration::from_secs(15), async || {
        let outcome = caller.lock().await.calls(3).await?;
        let own = "spiffe://cluster.local/ns/grpc-xds-policy/sa/client";
        ensure!(outcome.peers.get(own) == Some(&3), "{outcome:?}");
        Ok(())
    })
    .await
}

/// An app behind our sidecar knows nothing of all this.
async fn our_sidecar_calls_an_xds_server(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply(
            "grpc-xds-called",
            peer("vault", &["xds", BOOTSTRAP]) + app("caller") + STRICT,
        )
        .await?;
    let answer = arena.app_call("caller", &["grpc://vault:9000"]).await?;
    let seen = answer.to_string();
    ensure!(
        seen.contains("spiffe://cluster.local/ns/grpc-xds-called/sa/caller"),
        "{answer}"
    );
    Ok(())
}
