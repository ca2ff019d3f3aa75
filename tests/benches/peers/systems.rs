//! Who carries the bytes, and the pods that they are carried between.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tulle_runtime::names::{annotations, containers, ports};
use tulle_sandbox::PodView;
use tulle_tests::{App, Arena, Mesh, app};

use crate::bare::PEER;
use crate::cores::{self, Cores};
use crate::load::Kind;
use crate::probe::{self, Found};
use crate::{envoy, linkerd, serve, ztunnel};

/// The pod that the load comes from.
pub(crate) const CLIENT: &str = "client";

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// No sidecars.
    Plain,
    /// The bare pair.
    Bare,
    /// The sidecar as it is injected.
    Tulle,
    /// The sidecar with its access log off.
    Quiet,
    /// Envoy.
    Envoy,
    /// linkerd2-proxy, if --linkerd names one.
    Linkerd,
    /// ztunnel, if --ztunnel names one.
    Ztunnel,
}

impl System {
    /// Those that are measured unless others are named.
    pub(crate) const USUAL: [Self; 4] = [Self::Plain, Self::Bare, Self::Tulle, Self::Envoy];

    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Bare => "bare",
            Self::Tulle => "tulle",
            Self::Quiet => "quiet",
            Self::Envoy => "envoy",
            Self::Linkerd => "linkerd",
            Self::Ztunnel => "ztunnel",
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Plain => "no proxy",
            Self::Bare => "bare pair",
            Self::Tulle => "tulle-proxy",
            Self::Quiet => "tulle-proxy, no access log",
            Self::Envoy => "Envoy",
            Self::Linkerd => "linkerd2-proxy",
            Self::Ztunnel => "ztunnel (L4 over HTTP/2 CONNECT)",
        }
    }

    /// On which port the servers' sidecars shake hands with those of clients.
    pub(crate) fn handshakes(self, kind: Kind) -> u16 {
        match self {
            Self::Linkerd => ports::INBOUND,
            Self::Ztunnel => ztunnel::HBONE,
            _ => kind.port(),
        }
    }

    /// The manifests of one of the two apps.
    fn manifests(self, app: App) -> String {
        match self {
            Self::Quiet => app.annotate(annotations::ACCESS_LOG, "off").yaml(),
            Self::Ztunnel => ztunnel::annotate(app).yaml(),
            _ => app.yaml(),
        }
    }
}

/// The pods of a system.
pub(crate) struct Pods<'a> {
    pub(crate) system: System,
    pub(crate) arena: Arena<'a>,
    /// The server as the client names it.
    host: String,
    pub(crate) server_ip: Ipv4Addr,
    /// Processes of the sidecars, the client's first.
    pub(crate) sidecars: Vec<u32>,
    /// Process of the server.
    pub(crate) server: u32,
}

impl<'a> Pods<'a> {
    /// Brings them up, the server first, and puts every process on its core.
    pub(crate) async fn bring_up(
        mesh: &'a Mesh,
        system: System,
        cores: Option<&Cores>,
    ) -> anyhow::Result<Self> {
        let server = app(PEER)
            .role(&[serve::ROLE])
            .port("http", serve::HTTP1, serve::HTTP1)
            .port("http2", serve::HTTP2, serve::HTTP2)
            .port("grpc", serve::GRPC, serve::GRPC)
            .port("tcp", serve::TCP, serve::TCP);
        let server = match system {
            System::Linkerd => linkerd::annotate_server(server),
            _ => server,
        };
        let arena = apply(
            mesh,
            system,
            system.manifests(server),
            &system.manifests(app(CLIENT)),
        )
        .await?;
        let server_ip = arena.pod(PEER)?.ips.v4;
        let pods = [arena.pod(CLIENT)?, arena.pod(PEER)?];
        let sidecars = pods.iter().filter_map(|pod| pid(pod, containers::PROXY));
        let sidecars: Vec<_> = sidecars.collect();
        if sidecars.len() != if system == System::Plain { 0 } else { 2 } {
            bail!("{} sidecars in {}", sidecars.len(), system.namespace());
        }
        let mut apps = pods[1].containers.iter().filter(|one| !one.init);
        let server = apps.find_map(|one| one.pid.filter(|pid| !sidecars.contains(pid)));
        let server = server.context("the server does not run")?;
        if let Some(cores) = cores {
            for sidecar in &sidecars {
                cores::keep(*sidecar, &cores.sidecars)?;
                cores::prefer(*sidecar);
                // Who reads its log keeps up with it.
                cores::children(*sidecar)
                    .into_iter()
                    .for_each(cores::prefer);
            }
            cores::keep(server, &cores.server)?;
        }
        let host = match system {
            // They resolve no Service: they connect to where it would lead.
            System::Plain | System::Bare | System::Envoy | System::Ztunnel => server_ip.to_string(),
            System::Tulle | System::Quiet | System::Linkerd => PEER.to_owned(),
        };
        Ok(Self {
            system,
            arena,
            host,
            server_ip,
            sidecars,
            server,
        })
    }

    /// Has the server's sidecar probed from the client's.
    pub(crate) async fn probe(&self, mesh: &Mesh) -> anyhow::Result<Found> {
        let pod = self.arena.pod(CLIENT)?.key;
        let server = self.server_ip.to_string();
        let argv = ["tulle", probe::ROLE, &server, self.system.namespace()];
        let probed = mesh
            .sandbox
            .exec(&pod, Some(containers::PROXY), argv)
            .await?;
        ensure!(
            probed.status == 0,
            "{}",
            String::from_utf8_lossy(&probed.stderr).trim()
        );
        Ok(serde_json::from_slice(&probed.stdout)?)
    }

    /// Where the server is for a kind of load.
    pub(crate) fn address(&self, kind: Kind) -> String {
        format!("{}:{}", self.host, kind.port())
    }
}

/// Brings up both apps, the server first where its address must be told.
async fn apply<'a>(
    mesh: &'a Mesh,
    system: System,
    mut server: String,
    client: &str,
) -> anyhow::Result<Arena<'a>> {
    let namespace = system.namespace();
    if system == System::Plain {
        server += "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: plain}\n";
    }
    if system == System::Ztunnel {
        // Neither is ready before it knows both.
        let both = mesh.apply(namespace, server + client);
        let (arena, ()) = tokio::try_join!(both, ztunnel::tell(mesh))?;
        return Ok(arena);
    }
    let arena = mesh.apply(namespace, server).await?;
    let address = arena.pod(PEER)?.ips.v4.to_string();
    match system {
        System::Envoy => envoy::tell(&address)?,
        System::Linkerd => linkerd::tell(&address)?,
        _ => {}
    }
    arena.add(client)?;
    arena.wait_ready().await?;
    Ok(arena)
}

fn pid(pod: &PodView, container: &str) -> Option<u32> {
    pod.container(container)?.pid
}
