//! h2spec's cases against both listeners, on a port declared h2c and over the mesh's own TLS.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tulle_identity::{Identity, SpiffeId, Svid, TrustBundle};
use tulle_runtime::names::{agent, alpn, labels::INJECT};
use tulle_tests::manifests::Manifests;
use tulle_tests::{Arena, Mesh, app, gate};

use crate::place::Place;

tulle_tests::cases! {
    h2spec_passes_against_the_outbound_listener ["h2spec"];
    h2spec_passes_against_the_inbound_listener ["h2spec"];
    h2spec_passes_against_the_inbound_listener_over_mutual_tls ["h2spec"];
}

/// Cases that fail in plaintext, with the reason; one that passes fails the test.
const PLAINTEXT: &[(&str, &str)] = &[(
    "http2/3.5: Sends invalid connection preface",
    "a port declared h2c also serves clients of HTTP/1 (RFC 9113, 3.3), so what is no preface gets 400 of HTTP/1 and the \
     connection is closed; h2spec reads that answer as a frame",
)];
/// How many cases there are.
const CASES: usize = 146;
/// How long they may take together.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the tunnel into mutual TLS listens, in a pod of its own.
const TUNNEL: u16 = 9443;

/// An app that speaks HTTP/2 and says so.
fn web() -> tulle_tests::App {
    app("web")
        .serve("--http", 8080, "web")
        .app_protocol("kubernetes.io/h2c")
}

async fn h2spec_passes_against_the_outbound_listener(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh.apply("h2spec-outbound", web() + app("client")).await?;
    let vip = arena.exec("client", ["getent", "ahostsv4", "web"]).await?;
    let vip = vip.ok()?;
    let vip = vip
        .split_whitespace()
        .next()
        .context("web has no address")?;
    passes(&arena, vip, 8080, PLAINTEXT).await
}

async fn h2spec_passes_against_the_inbound_listener(mesh: &Mesh) -> anyhow::Result<()> {
    let client = app("client").annotate(INJECT, "disabled");
    let arena = mesh.apply("h2spec-inbound", web() + client).await?;
    let pod = arena.pod("web")?.ips.v4.to_string();
    passes(&arena, &pod, 8080, PLAINTEXT).await
}

async fn h2spec_passes_against_the_inbound_listener_over_mutual_tls(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let client = app("client").agent(&[]);
    let manifests: Manifests = web() + client;
    let arena = mesh.apply("h2spec-mtls", manifests).await?;
    let mut tasks = JoinSet::new();
    tunnel(&arena, &mut tasks).await?;
    passes(&arena, "127.0.0.1", TUNNEL, &[]).await?;
    let metrics = arena.metrics("web").await?;
    let encrypted = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let requests = metrics.sum("istio_requests_total", &encrypted);
    ensure!(requests > 100.0, "{requests} requests came over mutual TLS");
    Ok(())
}

/// Takes plaintext in the client's pod into mutual TLS to the sidecar of `web`, as a peer's sidecar would.
async fn tunnel(arena: &Arena<'_>, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let read = async |files: &str| {
        let command = format!("cd {} && cat {files}", agent::DIR);
        arena.exec("client", ["sh", "-c", &command]).await?.ok()
    };
    let svid = Svid::from_pem(&read("tls.crt tls.key").await?)?;
    let bundle = TrustBundle::from_pem(read("ca.crt").await?.as_bytes())?;
    let namespace = arena.namespace();
    let server = SpiffeId::parse(&format!("spiffe://cluster.local/ns/{namespace}/sa/web"))?;
    let identity = Identity::new(svid, bundle);
    let connector = TlsConnector::from(identity.load().client(&[server], alpn::H2));
    let place = Place::of(arena, "client")?;
    let web = (arena.pod("web")?.ips.v4, 8080).into();
    let listener = place.listen(TUNNEL)?;
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        while let Ok((plain, _)) = listener.accept().await {
            if let Ok(tcp) = place.connect(web).await {
                tunnels.spawn(carry(plain, tcp, connector.clone()));
            }
        }
    });
    Ok(())
}

async fn carry(mut plain: TcpStream, tcp: TcpStream, connector: TlsConnector) {
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    if let Ok(mut tls) = connector.connect(name, tcp).await {
        let _ = copy_bidirectional(&mut plain, &mut tls).await;
    }
}

/// Runs all cases from the client's pod.
async fn passes(
    arena: &Arena<'_>,
    host: &str,
    port: u16,
    deviations: &[(&str, &str)],
) -> anyhow::Result<()> {
    let program = gate::built("h2spec").display().to_string();
    let report = "/run/secrets/h2spec.xml";
    let command = format!(
        "{program} -host {host} -port {port} -timeout 3 -report {report} >&2; cat {report}"
    );
    let running = arena.spawn("client", ["sh", "-c", &command])?;
    let output = timeout(PATIENCE, running.wait_with_output()).await??;
    let xml = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let cases: Vec<_> = xml.split("<testcase ").skip(1).collect();
    ensure!(cases.len() == CASES, "{} cases: {said}", cases.len());
    let failed = cases
        .iter()
        .filter(|case| case.contains("<failure") || case.contains("<error"));
    let failed: Vec<_> = failed.map(|case| name(case)).collect();
    let known = |name: &String| deviations.iter().any(|(known, _)| known == name);
    let new: Vec<_> = failed.iter().filter(|name| !known(name)).collect();
    let tail = said.find("Failures:").map_or("", |at| &said[at..]);
    ensure!(new.is_empty(), "{new:#?} failed\n{tail}");
    let gone = deviations
        .iter()
        .find(|(known, _)| !failed.iter().any(|name| name == known));
    ensure!(gone.is_none(), "{gone:?} passes now");
    Ok(())
}

/// `section/number: what the case does`.
fn name(case: &str) -> String {
    let attribute = |name: &str| {
        let (_, value) = case.split_once(&format!("{name}=\""))?;
        Some(value.split_once('"')?.0.to_owned())
    };
    let part = |name| attribute(name).unwrap_or_default();
    format!("{}: {}", part("package"), part("classname"))
}
