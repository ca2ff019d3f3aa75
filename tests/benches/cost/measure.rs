//! Brings up the pods, sends the loads by turns, and reads the clocks of the sidecars while they carry them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;
use tulle_runtime::names::{annotations, containers};
use tulle_tests::{App, Arena, Mesh, app};

use crate::load::{self, Counted, Kind};
use crate::{bare, serve};

/// How long one measurement counts.
const WINDOW: Duration = Duration::from_millis(1200);
/// How long the load generator may take for a word.
const WORD: Duration = Duration::from_secs(10);

/// Who carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nobody.
    Plain,
    /// The bare pair.
    Bare,
    /// The sidecar as it is injected.
    Tulle,
    /// The sidecar with its access log off.
    Quiet,
}

impl Variant {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Bare, Self::Tulle, Self::Quiet];

    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Bare => "bare",
            Self::Tulle => "tulle",
            Self::Quiet => "quiet",
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Plain => "no sidecars",
            Self::Bare => "bare pair",
            Self::Tulle => "tulle-proxy",
            Self::Quiet => "tulle-proxy, no access log",
        }
    }

    fn manifests(self) -> String {
        let mut server = app(bare::PEER)
            .role(&[serve::ROLE])
            .port("http", serve::HTTP1, serve::HTTP1)
            .port("grpc", serve::HTTP2, serve::HTTP2)
            .port("tcp", serve::TCP, serve::TCP);
        let mut client = app("client");
        if self == Self::Quiet {
            let quiet = |app: App| app.annotate(annotations::ACCESS_LOG, "off");
            (server, client) = (quiet(server), quiet(client));
        }
        let namespace = if self == Self::Plain {
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: plain}"
        } else {
            ""
        };
        (server + client + namespace).as_ref().to_owned()
    }
}

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) counted: Counted,
    /// Seconds of CPU that the two sidecars took.
    pub(crate) cpu: f64,
}

/// All measurements: of each kind, in each round, each variant's.
#[derive(Debug)]
pub(crate) struct Rounds(pub(crate) Vec<(Kind, Vec<[Sample; Variant::ALL.len()]>)>);

impl Rounds {
    pub(crate) async fn run(mesh: &Mesh, kinds: &[Kind], rounds: usize) -> anyhow::Result<Self> {
        let [plain, bare, tulle, quiet] = Variant::ALL.map(|variant| async move {
            let arena = mesh.apply(variant.namespace(), variant.manifests()).await?;
            anyhow::Ok(Pods::find(variant, arena)?)
        });
        let pods = [plain.await?, bare.await?, tulle.await?, quiet.await?];
        let mut measured: Vec<_> = kinds.iter().map(|kind| (*kind, Vec::new())).collect();
        for _ in 0..rounds {
            for (kind, samples) in &mut measured {
                samples.push([
                    pods[0].sample(*kind).await?,
                    pods[1].sample(*kind).await?,
                    pods[2].sample(*kind).await?,
                    pods[3].sample(*kind).await?,
                ]);
            }
        }
        Ok(Self(measured))
    }
}

/// The pods of a variant.
struct Pods<'a> {
    variant: Variant,
    arena: Arena<'a>,
    /// The server as the client names it.
    host: String,
    /// Processes of the sidecars.
    sidecars: Vec<u32>,
}

impl<'a> Pods<'a> {
    fn find(variant: Variant, arena: Arena<'a>) -> anyhow::Result<Self> {
        let pods = [arena.pod("client")?, arena.pod(bare::PEER)?];
        let sidecars = pods
            .iter()
            .filter_map(|pod| pod.container(containers::PROXY)?.pid);
        let sidecars: Vec<_> = sidecars.collect();
        let host = match variant {
            // Neither resolves a Service: they connect to where it would lead.
            Variant::Plain | Variant::Bare => pods[1].ips.v4.to_string(),
            Variant::Tulle | Variant::Quiet => bare::PEER.to_owned(),
        };
        if sidecars.len() != if variant == Variant::Plain { 0 } else { 2 } {
            bail!("{} sidecars in {}", sidecars.len(), variant.namespace());
        }
        Ok(Self {
            variant,
            arena,
            host,
            sidecars,
        })
    }

    async fn sample(&self, kind: Kind) -> anyhow::Result<Sample> {
        let what = || format!("{} over {}", kind.name(), self.variant.namespace());
        let address = format!("{}:{}", self.host, kind.port());
        let window = WINDOW.as_millis().to_string();
        let argv = ["tulle", load::ROLE, kind.name(), &address, &window];
        let mut child = self.arena.spawn("client", argv)?;
        let output = child.stdout.take().context("the load has no output")?;
        let mut lines = BufReader::new(output).lines();
        word(&mut lines, "begin").await.with_context(what)?;
        let before = self.cpu()?;
        let end = word(&mut lines, "end ").await.with_context(what)?;
        let cpu = self.cpu()? - before;
        stop(child).await?;
        let counted: Counted = serde_json::from_str(&end)?;
        if let Some(error) = counted.errors.first() {
            bail!("{} went wrong, so nothing is reported: {error}", what());
        }
        Ok(Sample { counted, cpu })
    }

    /// Seconds of CPU that the sidecars have taken so far.
    fn cpu(&self) -> anyhow::Result<f64> {
        let mut nanoseconds = 0;
        for pid in &self.sidecars {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
                let on_cpu = text.split(' ').next().context("an empty schedstat")?;
                nanoseconds += on_cpu.parse::<u64>()?;
            }
        }
        Ok(nanoseconds as f64 / 1e9)
    }
}

/// The rest of the line that begins with `begin`.
async fn word(lines: &mut Lines<BufReader<ChildStdout>>, begin: &str) -> anyhow::Result<String> {
    let line = timeout(WORD, lines.next_line()).await??;
    let line = line.context("the load ended")?;
    let rest = line.strip_prefix(begin);
    Ok(rest
        .with_context(|| format!("the load said {line}"))?
        .to_owned())
}

/// Ends the load by the end of its input.
async fn stop(mut child: Child) -> anyhow::Result<()> {
    drop(child.stdin.take());
    timeout(WORD, child.wait()).await??;
    Ok(())
}
