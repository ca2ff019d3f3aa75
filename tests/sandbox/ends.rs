//! How connections end, at either end and in every order, through two sidecars and mutual TLS between them: what is whole
//! arrives whole, nothing else looks whole, and the access log says who has cut it. Row 27.

mod frames;
mod http;
mod http2;
mod opaque;
mod requests;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::place::Place;
use crate::proof::encrypted_requests;

pub(crate) fn cases() -> Vec<tulle_tests::Case> {
    [
        http::cases(),
        http2::cases(),
        opaque::cases(),
        requests::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two apps with a sidecar each, whose sockets are the test's own.
pub(crate) struct Pair<'a> {
    pub(crate) arena: Arena<'a>,
    client: Place,
    pub(crate) listener: TcpListener,
    server: SocketAddr,
}

impl<'a> Pair<'a> {
    /// With a service `web` on a port of that name.
    pub(crate) async fn new(mesh: &'a Mesh, namespace: &str, port: &str) -> anyhow::Result<Self> {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n  \
             ports: [{{name: {port}, port: 8080, targetPort: 8080}}]"
        );
        let manifests = app("web") + app("client") + service.as_str();
        let arena = mesh.apply(namespace, manifests).await?;
        let found = arena.exec("client", ["getent", "ahostsv4", "web"]).await?;
        let found = found.ok()?;
        let address = found.split_whitespace().next().context("no address")?;
        Ok(Self {
            client: Place::of(&arena, "client")?,
            listener: Place::of(&arena, "web")?.listen(8080)?,
            server: SocketAddr::new(address.parse()?, 8080),
            arena,
        })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<TcpStream> {
        self.client.connect(self.server).await
    }

    /// The line of an access log for which this is so: it is written when the exchange is over.
    async fn logged(&self, pod: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        eventually(PATIENCE, async || {
            let log = self.arena.access_log(pod)?;
            let line = log.iter().find(|line| wanted(line)).cloned();
            line.with_context(|| format!("{pod} has no such line: {:?}", log.last()))
        })
        .await
    }
}

/// The client's sidecar and the app's have logged each request `/N` with one of these flags, and all came over mutual TLS.
async fn flagged(pair: &Pair<'_>, expected: &[[&str; 2]]) -> anyhow::Result<()> {
    for (side, pod) in ["client", "web"].into_iter().enumerate() {
        eventually(PATIENCE, async || {
            let log = pair.arena.access_log(pod)?;
            for (number, flags) in expected.iter().enumerate() {
                let path = format!("/{number}");
                let line = log.iter().find(|line| line["path"] == path.as_str());
                let line = line.with_context(|| format!("{pod} has no line of {path}"))?;
                let flag = line["response_flags"].as_str().unwrap_or_default();
                let mut expected = flags[side].split(' ');
                ensure!(
                    expected.any(|it| it == flag),
                    "{pod}, not {}: {line}",
                    flags[side]
                );
            }
            Ok(())
        })
        .await?;
    }
    encrypted_requests(&pair.arena, "web", u32::try_from(expected.len())?).await
}

/// Ends a connection at once, and not in peace.
fn reset(tcp: &TcpStream) -> anyhow::Result<()> {
    Ok(SockRef::from(tcp).set_linger(Some(Duration::ZERO))?)
}

/// Everything that comes, and whether it ends in peace.
async fn rest(tcp: &mut TcpStream) -> anyhow::Result<(Vec<u8>, bool)> {
    let mut seen = Vec::new();
    let peace = timeout(PATIENCE, tcp.read_to_end(&mut seen)).await;
    let peace = peace.context("the connection did not end")?.is_ok();
    Ok((seen, peace))
}

/// A head, up to its empty line; `None`: the connection ended before.
async fn head(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Says something, and closes its side or everything.
async fn say(tcp: &mut TcpStream, what: &[u8]) -> anyhow::Result<()> {
    tcp.write_all(what).await?;
    Ok(tcp.flush().await?)
}
