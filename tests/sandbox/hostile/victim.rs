//! The sidecar that suffers it all, looked at from outside: does it serve, what does it cost, is it still the same process.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_runtime::names::containers;
use tulle_tests::{Arena, Mesh, app, eventually};
use tulle_xds_proto::ResourceType;

use super::messages::{assignment, cluster, listener, one};
use super::server::{Hostile, Stream};

/// How long anything good may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// Where cluster `web` is found.
pub(super) const WEB: &str = "10.98.0.1";
/// Memory that it may have whenever it is looked at; a sidecar's usual limit is 256 MiB. A program that is not optimised is
/// 40 of that, and up to 80 are what a flood took, until what is free goes back to the kernel.
const MEMORY: u64 = 144 * 1024 * 1024;
/// Memory that it may have had at any time: some 140 are seen.
const PEAK: u64 = 192 * 1024 * 1024;
const PAGE: u64 = 4096;
/// Ticks of CPU time a second, as every Linux of the last decades has them.
const TICKS: f64 = 100.0;

/// A client whose sidecar follows the hostile server, and a backend.
pub(super) struct Victim<'m> {
    pub(super) arena: Arena<'m>,
    backend: String,
    pid: u32,
    probes: u8,
}

impl<'m> Victim<'m> {
    /// Brings up both, and teaches the sidecar the way to the backend.
    pub(super) async fn start(
        mesh: &'m Mesh,
        name: &str,
        server: &mut Hostile,
    ) -> anyhow::Result<(Self, Stream)> {
        let client = app("client")
            .annotate("tulle.dev/xds-address", server.address())
            .annotate("tulle.dev/xds-name", Hostile::ID);
        let applying = mesh.apply(name, app("backend").http(8080) + client);
        // The pod is ready only once it is answered.
        let (arena, stream) = tokio::join!(applying, async {
            let mut stream = server.stream().await?;
            stream.hello().await?;
            anyhow::Ok(stream)
        });
        let (arena, mut stream) = (arena?, stream?);
        let victim = Self {
            backend: arena.pod("backend")?.ips.v4.to_string(),
            pid: pid(&arena)?,
            arena,
            probes: 0,
        };
        victim.teach(&mut stream).await?;
        victim.serves().await?;
        Ok((victim, stream))
    }

    /// The next stream of the sidecar, taught again.
    pub(super) async fn reconnected(&self, server: &mut Hostile) -> anyhow::Result<Stream> {
        let mut stream = server.stream().await?;
        stream.hello().await?;
        self.teach(&mut stream).await?;
        Ok(stream)
    }

    /// Clusters, listeners and endpoints, each when it is wanted.
    async fn teach(&self, stream: &mut Stream) -> anyhow::Result<()> {
        stream
            .accepted(one(ResourceType::Cluster, "web", &cluster("web")))
            .await?;
        stream.asked(ResourceType::Endpoints).await?;
        stream
            .accepted(one(
                ResourceType::Endpoints,
                "web",
                &assignment("web", &self.backend),
            ))
            .await?;
        stream
            .accepted(one(
                ResourceType::Listener,
                "web",
                &listener("web", WEB, "web"),
            ))
            .await
    }

    /// A request by the last good config is answered.
    pub(super) async fn serves(&self) -> anyhow::Result<()> {
        self.answers(WEB).await
    }

    /// A request to an address reaches the backend.
    pub(super) async fn answers(&self, ip: &str) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let answer = self.call(ip).await?;
            ensure!(
                answer["body"]["name"] == "backend",
                "{ip} answered {answer}"
            );
            Ok(())
        })
        .await
    }

    /// The backend's address.
    pub(super) fn backend(&self) -> &str {
        &self.backend
    }

    /// A request to an address, whatever becomes of it.
    pub(super) async fn call(&self, ip: &str) -> anyhow::Result<Value> {
        let url = format!("http://{ip}:8080/");
        self.arena.app_call("client", &[&url]).await
    }

    /// It is the same process, small enough, serves what it knew, and takes what is good: a listener that is new.
    pub(super) async fn is_well(&mut self, stream: &mut Stream) -> anyhow::Result<()> {
        self.suffers_in_silence().await?;
        self.probes += 1;
        let (name, ip) = (
            format!("probe-{}", self.probes),
            format!("10.98.1.{}", self.probes),
        );
        stream
            .accepted(one(
                ResourceType::Listener,
                &name,
                &listener(&name, &ip, "web"),
            ))
            .await?;
        self.answers(&ip).await
    }

    /// It is the same process, small enough and always has been, and serves what it knew.
    pub(super) async fn suffers_in_silence(&self) -> anyhow::Result<()> {
        ensure!(pid(&self.arena)? == self.pid, "it was started again");
        let memory = self.memory()?;
        ensure!(memory <= MEMORY, "{} MiB", memory >> 20);
        self.was_small()?;
        self.serves().await
    }

    /// It has always been small enough.
    fn was_small(&self) -> anyhow::Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.split_whitespace().next());
        let peak = peak.context("a peak")?.parse::<u64>()? * 1024;
        ensure!(peak <= PEAK, "{} MiB at the most", peak >> 20);
        Ok(())
    }

    /// Bytes in memory.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid))?;
        let resident = text.split(' ').nth(1).context("it has several numbers")?;
        Ok(resident.parse::<u64>()? * PAGE)
    }

    /// Seconds of CPU time so far.
    fn cpu(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let (_, rest) = text.rsplit_once(") ").context("a program's name")?;
        let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
    }

    /// Lets time pass, and returns the share of one core that it took meanwhile.
    pub(super) async fn load_over(&self, time: Duration) -> anyhow::Result<f64> {
        let (before, began) = (self.cpu()?, Instant::now());
        tokio::time::sleep(time).await;
        Ok((self.cpu()? - before) / began.elapsed().as_secs_f64())
    }
}

impl Stream {
    /// Waits for the questions that every stream begins with, and answers them with nothing.
    pub(super) async fn hello(&mut self) -> anyhow::Result<()> {
        for kind in [ResourceType::Cluster, ResourceType::Listener] {
            self.asked(kind).await?;
        }
        for kind in [ResourceType::Cluster, ResourceType::Listener] {
            let nothing = super::messages::response(kind, Vec::new());
            self.accepted(nothing).await?;
        }
        Ok(())
    }
}

fn pid(arena: &Arena<'_>) -> anyhow::Result<u32> {
    let pod = arena.pod("client")?;
    let sidecar = pod.container(containers::PROXY).context("a sidecar")?;
    sidecar.pid.context("it runs")
}
