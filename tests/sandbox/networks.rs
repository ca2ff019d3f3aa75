//! What the control plane's port leaves to one address: of IPv6 to one /64, whichever addresses of it are used. A control
//! plane of its own, two pods whose addresses have a /64 in common, and loopback, which has another one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::FutureExt;
use futures_util::future::select_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tulle_runtime::names::labels::INJECT;
use tulle_sandbox::{GATEWAY_V6, HostProcess};
use tulle_tests::{Anyone, Mesh, app, eventually};

use crate::forged::forge;
use crate::place::Place;

tulle_tests::cases! {
    addresses_of_one_ipv6_network_share_what_an_address_may_take ["ipv6"];
}

const DEADLINE: Duration = Duration::from_secs(8);
/// Connections that one address may have, in every way that is tried.
const MOST: usize = 2;

/// How a client takes a place among those of its address.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// By a handshake that goes no further.
    Handshake,
    /// By a connection without a certificate.
    Connection,
}

impl Takes {
    fn limit(self) -> &'static str {
        match self {
            Self::Handshake => "handshakes_of_address",
            Self::Connection => "anonymous_connections_of_address",
        }
    }

    fn option(self) -> String {
        let option = match self {
            Self::Handshake => "--max-handshakes-per-address",
            Self::Connection => "--max-anonymous-connections-per-address",
        };
        format!("{option}={MOST}")
    }

    async fn take(self, mut tcp: TcpStream) -> anyhow::Result<Open> {
        match self {
            Self::Handshake => {
                // How a record of a handshake begins. Who is one too many may be gone by now.
                let _ = tcp.write_all(&[22]).await;
                Ok(Box::new(tcp))
            }
            Self::Connection => {
                let config = ClientConfig::builder_with_provider(forge::provider())
                    .with_protocol_versions(forge::VERSIONS)?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Anyone))
                    .with_no_client_auth();
                let name = IpAddr::from(Ipv6Addr::LOCALHOST).into();
                let connector = TlsConnector::from(Arc::new(config));
                Ok(Box::new(connector.connect(name, tcp).await?))
            }
        }
    }
}

/// A place that is held.
type Open = Box<dyn AsyncRead + Unpin>;

/// Until the control plane ends it.
async fn ended(open: &mut Open) {
    let mut buffer = [0; 1024];
    while matches!(open.read(&mut buffer).await, Ok(read) if read > 0) {}
}

/// Of these one ends, and one only.
async fn one_ends(open: &mut [Open]) -> anyhow::Result<()> {
    let ends = select_all(open.iter_mut().map(|open| Box::pin(ended(open))));
    let ((), _, mut others) = timeout(DEADLINE, ends).await.context("none ended")?;
    let more = others
        .iter_mut()
        .filter_map(FutureExt::now_or_never)
        .count();
    ensure!(more == 0, "{more} more ended");
    Ok(())
}

/// A port that was free a moment ago; nobody else lives in this node.
fn free(address: Ipv6Addr) -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?)
}

/// A control plane that listens on every address.
struct Control {
    process: HostProcess,
    port: u16,
    admin: SocketAddr,
}

impl Control {
    async fn start(mesh: &Mesh, place: &Path, option: String) -> anyhow::Result<Self> {
        std::fs::create_dir(place.join("source"))?;
        let file = |name: &str| place.join(name).display().to_string();
        let (xds, admin) = (free(Ipv6Addr::UNSPECIFIED)?, free(Ipv6Addr::LOCALHOST)?);
        let argv = [
            "tulle".to_owned(),
            "control".to_owned(),
            format!("--source={}", file("source")),
            format!("--state-dir={}", file("state")),
            format!("--bundle-dir={}", file("bundle")),
            format!("--jwks={}", mesh.sandbox.jwks().display()),
            format!("--xds-address={xds}"),
            format!("--admin-address={admin}"),
            "--log=warn".to_owned(),
            option,
        ];
        let control = Self {
            process: mesh.sandbox.spawn_host("networks-control", argv, [])?,
            port: xds.port(),
            admin,
        };
        eventually(DEADLINE, async || control.ask("/ready").await).await?;
        Ok(control)
    }

    async fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut tcp = TcpStream::connect(self.admin).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(answer)
    }

    /// The limit was reached so often.
    async fn reached(&self, limit: &str, expected: usize) -> anyhow::Result<()> {
        let name = format!("tulle_control_limits_reached_total{{limit=\"{limit}\"}} ");
        eventually(DEADLINE, async || {
            let metrics = self.ask("/metrics").await?;
            let found = metrics.lines().find_map(|line| line.strip_prefix(&name));
            let found = found.unwrap_or("0");
            ensure!(
                found == expected.to_string(),
                "{limit}: {found}, not {expected}"
            );
            Ok(())
        })
        .await
    }
}

async fn addresses_of_one_ipv6_network_share_what_an_address_may_take(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let outside = |name| app(name).annotate(INJECT, "disabled");
    let arena = mesh
        .apply("networks", outside("one") + outside("two"))
        .await?;
    let (one, two) = (Place::of(&arena, "one")?, Place::of(&arena, "two")?);
    for takes in [Takes::Handshake, Takes::Connection] {
        let directory = tempfile::tempdir()?;
        let control = Control::start(mesh, directory.path(), takes.option()).await?;
        let gateway = SocketAddr::from((GATEWAY_V6, control.port));
        let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, control.port));
        let outcome = async {
            let mut pods = Vec::new();
            for place in [&one, &two] {
                pods.push(takes.take(place.connect(gateway).await?).await?);
            }
            let mut others = Vec::new();
            for _ in 0..MOST {
                others.push(takes.take(TcpStream::connect(loopback).await?).await?);
            }
            // Each network has as many as it may, and not one more.
            pods.push(takes.take(one.connect(gateway).await?).await?);
            one_ends(&mut pods).await?;
            control.reached(takes.limit(), 1).await?;
            others.push(takes.take(TcpStream::connect(loopback).await?).await?);
            one_ends(&mut others).await?;
            control.reached(takes.limit(), 2).await
        };
        let outcome = outcome.await;
        control.process.terminate().await;
        outcome.with_context(|| {
            let log = String::from_utf8_lossy(&control.process.logs()).into_owned();
            format!("{takes:?}: {log}")
        })?;
    }
    Ok(())
}
