//! gRPC's own xDS clients, unmodified and in two languages, in pods that have an agent and no sidecar.
//!
//! They resolve `xds:///` targets through the agent's relay, and call pods with our sidecar over mTLS under STRICT.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_runtime::names::{CONTROL_DNS_NAME, ports};
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::proof::encrypted_requests;
use client::{BOOTSTRAP, Client, Language, Outcome, client};

mod client;
pub(crate) mod peers;

tulle_tests::cases! {
    python_resolves_balances_and_is_known_by_its_identity ["grpcio"];
    python_resolves_many_targets_in_one_process ["grpcio"];
    python_follows_the_endpoints ["grpcio"];
    python_follows_the_routes ["grpcio"];
    python_goes_on_without_a_control_plane_and_finds_it_again ["grpcio", "alone"];
    python_presents_its_certificate_to_the_control_plane_itself ["grpcio"];
    javascript_resolves_balances_and_is_known_by_its_identity ["grpc-js-xds"];
    javascript_resolves_many_targets_in_one_process ["grpc-js-xds"];
    javascript_follows_the_endpoints ["grpc-js-xds"];
    javascript_follows_the_routes ["grpc-js-xds"];
    javascript_goes_on_without_a_control_plane_and_finds_it_again ["grpc-js-xds", "alone"];
}

/// Turns plaintext away from every pod of the namespace, and so lets foreign clients of the mesh in.
const STRICT: &str = "{apiVersion: tulle.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict}, spec: {mtls: {mode: STRICT}}}";
/// How long a change may take to reach a client.
const SOON: Duration = Duration::from_secs(15);

async fn python_resolves_balances_and_is_known_by_its_identity(mesh: &Mesh) -> anyhow::Result<()> {
    resolves(mesh, "grpc-xds-python", Language::Python).await
}

async fn javascript_resolves_balances_and_is_known_by_its_identity(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    resolves(mesh, "grpc-xds-js", Language::JavaScript).await
}

async fn python_resolves_many_targets_in_one_process(mesh: &Mesh) -> anyhow::Result<()> {
    resolves_many(mesh, "grpc-many-python", Language::Python).await
}

async fn javascript_resolves_many_targets_in_one_process(mesh: &Mesh) -> anyhow::Result<()> {
    resolves_many(mesh, "grpc-many-js", Language::JavaScript).await
}

async fn python_follows_the_endpoints(mesh: &Mesh) -> anyhow::Result<()> {
    follows_endpoints(mesh, "grpc-eds-python", Language::Python).await
}

async fn javascript_follows_the_endpoints(mesh: &Mesh) -> anyhow::Result<()> {
    follows_endpoints(mesh, "grpc-eds-js", Language::JavaScript).await
}

async fn python_follows_the_routes(mesh: &Mesh) -> anyhow::Result<()> {
    follows_routes(mesh, "grpc-rds-python", Language::Python).await
}

async fn javascript_follows_the_routes(mesh: &Mesh) -> anyhow::Result<()> {
    follows_routes(mesh, "grpc-rds-js", Language::JavaScript).await
}

async fn python_goes_on_without_a_control_plane_and_finds_it_again(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    survives(mesh, "grpc-alone-python", Language::Python).await
}

async fn javascript_goes_on_without_a_control_plane_and_finds_it_again(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    survives(mesh, "grpc-alone-js", Language::JavaScript).await
}

/// A short name and a full one, both pods in turn, over mTLS, and the server's sidecar knows who calls.
async fn resolves(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let ledger = app("ledger").grpc(9000).replicas(2);
    let arena = mesh.apply(namespace, ledger + client() + STRICT).await?;
    let full = format!("ledger.{namespace}.svc.cluster.local:9000");
    for target in ["ledger:9000", &full] {
        let mut client = Client::start(&arena, "client", language, target)?;
        let outcome = client.good_calls(20).await?;
        let shares: Vec<u64> = outcome.pods.values().copied().collect();
        ensure!(
            shares.len() == 2 && shares.iter().all(|share| *share >= 5),
            "{target}: {outcome:?}"
        );
        let own = format!("URI=spiffe://cluster.local/ns/{namespace}/sa/client");
        ensure!(
            outcome.peers.len() == 1 && outcome.peers.keys().all(|peer| peer.contains(&own)),
            "{target}: {outcome:?}"
        );
    }
    encrypted_requests(&arena, "ledger", 1).await
}

/// Targets of one process: gRPC opens a discovery stream for each.
const TARGETS: u64 = 20;

/// One more Service of the ledger's pods.
fn another(i: u64) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: ledger-{i}}}\nspec:\n  selector: {{app: ledger}}\n  \
         ports: [{{name: grpc, port: 9000, targetPort: 9000}}]\n"
    )
}

/// All of them at once through one agent, none of which may wait for another's stream to end.
async fn resolves_many(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let mut manifests = app("ledger").grpc(9000) + client() + STRICT;
    let mut targets = Vec::new();
    for i in 0..TARGETS {
        manifests = manifests + &*another(i);
        targets.push(format!("ledger-{i}:9000"));
    }
    let arena = mesh.apply(namespace, manifests).await?;
    let mut client = Client::start(&arena, "client", language, &targets.join(","))?;
    for _ in 0..2 {
        let outcome = client.good_calls(1).await?;
        ensure!(outcome.pods.values().sum::<u64>() == TARGETS, "{outcome:?}");
    }
    Ok(())
}

/// Calls until the pods that answer are as many as they should be.
async fn answered_by(client: &mut Client, pods: usize) -> anyhow::Result<Outcome> {
    let client = tokio::sync::Mutex::new(client);
    eventually(SOON, async || {
        let outcome = client.lock().await.calls(12).await?;
        ensure!(
            outcome.pods.len() == pods && outcome.errors.is_empty(),
            "{outcome:?}"
        );
        Ok(outcome)
    })
    .await
}

async fn follows_endpoints(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let arena = mesh
        .apply(namespace, app("ledger").grpc(9000) + client() + STRICT)
        .await?;
    let mut client = Client::start(&arena, "client", language, "ledger:9000")?;
    answered_by(&mut client, 1).await?;
    mesh.sandbox.scale(&arena.key("ledger"), 3)?;
    answered_by(&mut client, 3).await?;
    mesh.sandbox.scale(&arena.key("ledger"), 1)?;
    answered_by(&mut client, 1).await?;
    Ok(())
}

/// A route of `blue`: calls that say so go to `green`, the rest by weight.
fn route(blue: u32, green: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: blue}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: blue}}]\n  rules:\n  \
         - matches: [{{headers: [{{name: x-color, value: green}}]}}]\n    \
           backendRefs: [{{name: green, port: 9000}}]\n  \
         - matches: [{{method: {{service: tulle.app.v1.Gone}}}}]\n    \
           backendRefs: [{{name: gone, port: 9000}}]\n  \
         - backendRefs: [{{name: blue, port: 9000, weight: {blue}}}, {{name: green, port: 9000, weight: {green}}}]\n"
    )
}

async fn follows_routes(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let colors = ["blue", "green"].map(|color| app(color).grpc(9000).version(color));
    let [blue, green] = colors;
    let arena = mesh
        .apply(namespace, blue + green + client() + STRICT + &*route(1, 0))
        .await?;
    let mut client = Client::start(&arena, "client", language, "blue:9000")?;
    let all = client.good_calls(10).await?;
    ensure!(all.versions.get("blue") == Some(&10), "{all:?}");

    let method = "/tulle.app.v1.Echo/Unary";
    let named = client.ask(10, method, &[("x-color", "green")]).await?;
    ensure!(named.versions.get("green") == Some(&10), "{named:?}");
    // A backend that does not exist fails at once, and by itself.
    let gone = client.ask(2, "/tulle.app.v1.Gone/Unary", &[]).await?;
    ensure!(gone.errors.get("UNAVAILABLE") == Some(&2), "{gone:?}");

    arena.edit(|text| text.replace(&route(1, 0), &route(1, 1)))?;
    split(&mut client).await?;
    arena.edit(|text| text.replace(&route(1, 1), &route(0, 1)))?;
    only(&mut client, "green").await
}

/// Calls until both colors answer, about as often.
async fn split(client: &mut Client) -> anyhow::Result<()> {
    let client = tokio::sync::Mutex::new(client);
    eventually(SOON, async || {
        let outcome = client.lock().await.good_calls(60).await?;
        let share = outcome.versions.get("green").copied().unwrap_or_default();
        // Of 60 coins, fewer than 10 or more than 50 heads are one chance in ten million.
        ensure!((10..=50).contains(&share), "{outcome:?}");
        Ok(())
    })
    .await
}

async fn only(client: &mut Client, version: &str) -> anyhow::Result<()> {
    let client = tokio::sync::Mutex::new(client);
    eventually(SOON, async || {
        let outcome = client.lock().await.good_calls(10).await?;
        ensure!(outcome.versions.get(version) == Some(&10), "{outcome:?}");
        Ok(())
    })
    .await
}

async fn survives(mesh: &Mesh, namespace: &str, language: Language) -> anyhow::Result<()> {
    let arena = mesh
        .apply(namespace, app("ledger").grpc(9000) + client() + STRICT)
        .await?;
    let mut client = Client::start(&arena, "client", language, "ledger:9000")?;
    client.good_calls(5).await?;
    mesh.control.kill().await;
    let without = client.good_calls(20).await;
    mesh.control.resume().await;
    without.context("without a control plane")?;
    mesh.sandbox.scale(&arena.key("ledger"), 2)?;
    answered_by(&mut client, 2).await?;
    relayed(&arena).await
}

/// The agent says that streams broke and came back.
async fn relayed(arena: &Arena<'_>) -> anyhow::Result<()> {
    let log = arena.logs("client", Some("tulle-agent"))?;
    ensure!(log.contains("the way to the control plane broke"), "{log}");
    Ok(())
}

/// Without the relay: the bootstrap has mTLS to the control plane, by the name that its certificate carries.
async fn python_presents_its_certificate_to_the_control_plane_itself(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let direct = app("client").agent(&["--bootstrap", "grpc", "--bootstrap-file", BOOTSTRAP]);
    let arena = mesh
        .apply("grpc-direct", app("ledger").grpc(9000) + direct + STRICT)
        .await?;
    // gRPC verifies the host that it was told, and the agent was told an address.
    let address = tulle_cli::mesh::injector().control_address;
    let uri = format!("dns:///{CONTROL_DNS_NAME}:{}", ports::XDS);
    let command = format!("sed -i 's#dns:///{address}#{uri}#' {BOOTSTRAP} && cat {BOOTSTRAP}");
    let bootstrap = arena.exec("client", ["sh", "-c", &command]).await?.ok()?;
    ensure!(bootstrap.contains(&uri), "{bootstrap}");
    let mut client = Client::start(&arena, "client", Language::Python, "ledger:9000")?;
    client.good_calls(5).await?;
    encrypted_requests(&arena, "ledger", 5).await
}
