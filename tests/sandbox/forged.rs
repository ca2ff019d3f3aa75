//! Certificates that no honest CA would sign, shown to sidecars as a client's and as a server's. Rows 30 and 31.
//!
//! The mesh's own root signs nearly all of them, so that what is wrong is nothing but what the row says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tulle_runtime::names::{alpn, labels};
use tulle_tests::{Anyone, Arena, Mesh, app, eventually};

use crate::mole::{PORT, burrow};
use crate::place::Place;
use forge::{Forger, Shown};

pub(crate) mod forge;

tulle_tests::cases! {
    row_30_and_31_forged_certificates_of_clients_are_refused;
    row_30_and_31_forged_certificates_of_servers_are_refused;
}

const DEADLINE: Duration = Duration::from_secs(10);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

async fn row_30_and_31_forged_certificates_of_clients_are_refused(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let stranger = app("stranger").label(labels::INJECT, "disabled");
    let namespace = "forged-clients";
    let arena = mesh
        .apply(namespace, app("web").http(PORT) + stranger)
        .await?;
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
    let rows = forge::rows(&Forger::of_the_mesh()?, &id)?;
    let mut served = Vec::new();
    for (row, shown) in rows.iter().enumerate() {
        let path = format!("/{row}");
        let answered = asks(&arena, shown, &path).await?;
        ensure!(answered == shown.believed, "{}: {answered}", shown.name);
        served.extend(shown.believed.then_some(path));
    }
    // Who is believed is served again after all the others, and nothing of theirs has come any further.
    let honest = rows.first().context("no rows")?;
    ensure!(asks(&arena, honest, "/again").await?, "not any more");
    served.push("/again".to_owned());
    eventually(DEADLINE, async || {
        let log = arena.access_log("web")?;
        let paths = log.iter().filter_map(|line| line["path"].as_str());
        let paths: Vec<_> = paths.filter(|path| *path != "/healthz").collect();
        ensure!(paths == served, "{paths:?}, not {served:?}");
        Ok(())
    })
    .await?;
    let refused = rows.iter().filter(|row| !row.believed).count();
    let metrics = arena.metrics("web").await?;
    let labels = [("direction", "inbound"), ("reason", "tls")];
    let counted = metrics.sum("tulle_downstream_connections_refused_total", &labels);
    ensure!(counted == refused as f64, "{counted} of {refused} refused");
    Ok(())
}

/// Shows a certificate to the sidecar of `web`, and asks: whether that is answered.
async fn asks(arena: &Arena<'_>, shown: &Shown, path: &str) -> anyhow::Result<bool> {
    let web = (arena.pod("web")?.ips.v4, PORT).into();
    let tcp = Place::of(arena, "stranger")?.connect(web).await?;
    let mut config = ClientConfig::builder_with_provider(forge::provider())
        .with_protocol_versions(forge::VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())?;
    config.alpn_protocols = vec![alpn::HTTP1.to_vec()];
    let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    // In TLS 1.3 the refusal comes after what the client takes for the handshake's end.
    let Ok(mut tls) = timeout(DEADLINE, connected).await? else {
        return Ok(false);
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    if tls.write_all(request.as_bytes()).await.is_err() {
        return Ok(false);
    }
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, tls.read_to_end(&mut answer)).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

/// A peer that shows what it is told to, and answers whoever believes it.
struct Impostor {
    config: Arc<Mutex<Arc<ServerConfig>>>,
    asked: Arc<AtomicUsize>,
}

impl Impostor {
    fn shows(&self, shown: &Shown) -> anyhow::Result<()> {
        *self.config.lock() = config(shown)?;
        Ok(())
    }

    async fn answer(&self, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = TlsAcceptor::from(self.config.lock().clone());
            let asked = self.asked.clone();
            // Each connection is its client's to end.
            let served = async move {
                let mut tls = acceptor.accept(tcp).await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tls.read_u8().await?);
                }
                asked.fetch_add(1, Ordering::Relaxed);
                tls.write_all(ANSWER).await?;
                tls.shutdown().await
            };
            let _: Result<std::io::Result<()>, _> = timeout(DEADLINE, served).await;
        }
    }
}

fn config(shown: &Shown) -> anyhow::Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(forge::provider())
        .with_protocol_versions(forge::VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.key.clone_key())?;
    config.alpn_protocols = vec![alpn::HTTP1.to_vec()];
    Ok(Arc::new(config))
}

async fn row_30_and_31_forged_certificates_of_servers_are_refused(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let namespace = "forged-servers";
    let (pod, service) = burrow("burrow");
    let manifests = pod + app("client") + service.as_str();
    let arena = mesh.apply(namespace, manifests).await?;
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/burrow");
    let forger = Forger::of_the_mesh()?;
    let mut rows = forge::rows(&forger, &id)?;
    let other = id.replace("/sa/burrow", "/sa/other");
    rows.push(forger.honest("somebody else's", &other)?.disbelieved());
    rows.push(forger.honest("in the end", &id)?);
    let impostor = Impostor {
        config: Arc::new(Mutex::new(config(&rows[0])?)),
        asked: Arc::default(),
    };
    let listener = Place::of(&arena, "burrow")?.listen(PORT)?;
    let calling = async {
        let url = format!("http://burrow:{PORT}/");
        for shown in &rows {
            impostor.shows(shown)?;
            let before = impostor.asked.load(Ordering::Relaxed);
            let answer = arena.app_call("client", &[&url]).await?;
            let expected = if shown.believed { 200 } else { 503 };
            ensure!(answer["status"] == expected, "{}: {answer}", shown.name);
            let asked = impostor.asked.load(Ordering::Relaxed) - before;
            ensure!(
                asked == usize::from(shown.believed),
                "{}: it was asked {asked} times",
                shown.name
            );
        }
        Ok(())
    };
    tokio::select! {
        called = calling => called,
        failed = impostor.answer(&listener) => failed.context("the impostor is gone"),
    }
}
