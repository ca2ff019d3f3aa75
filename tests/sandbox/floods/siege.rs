//! A sidecar under attack: who attacks it from where, who else it serves meanwhile, and what that costs it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;
use tulle_runtime::names::{containers, files};
use tulle_tests::manifests::Manifests;
use tulle_tests::{App, Arena, Mesh, Metrics, app, eventually};

use crate::behaved::Behaved;
use crate::foreign::script;

/// What every attacker begins with.
const FRAMES: &str = include_str!("frames.py");
/// The port that everything listens on.
pub(super) const PORT: u16 = 8080;
/// Requests a second of the client that behaves itself, in each protocol.
const RATE: u32 = 25;
/// Between two looks at a sidecar's memory.
const LOOK: Duration = Duration::from_millis(20);
/// How long an attack may take at most.
const ATTACK: Duration = Duration::from_secs(40);
/// How long it takes until memory is back: connections to others that nobody uses any more are kept for half a minute.
const RECOVERY: Duration = Duration::from_secs(60);
/// What may stay behind in memory: what the allocator keeps, and what the client that behaves itself still uses.
const RESIDUE: u64 = 12 << 20;

/// Where an attack comes from, and so which listener has to stand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// From a pod outside the mesh, in plaintext.
    Stranger,
    /// From whoever holds the certificate of a workload of the mesh.
    Peer,
    /// From the app of a pod, towards its own sidecar.
    App,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Stranger, Self::Peer, Self::App];

    /// The pod whose sidecar has to stand it.
    pub(super) fn victim(self) -> &'static str {
        match self {
            Self::Stranger | Self::Peer => "web",
            Self::App => "client",
        }
    }

    /// The word for its listener.
    pub(super) fn listener(self) -> &'static str {
        match self {
            Self::Stranger | Self::Peer => "inbound",
            Self::App => "outbound",
        }
    }
}

/// A service, a client of it, and somebody outside the mesh.
#[derive(Debug)]
pub(super) struct Siege<'a> {
    pub(super) arena: Arena<'a>,
    svid: String,
}

/// What a sidecar has used so far.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu: Duration,
    memory: u64,
}

/// What an attack came to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What the attacker saw.
    pub(super) told: Value,
    /// CPU time that the sidecar took meanwhile, for everybody.
    pub(super) cpu: Duration,
    /// The most memory of its own that it had meanwhile, beyond what it had before.
    pub(super) growth: u64,
}

impl<'a> Siege<'a> {
    /// With a service that answers HTTP/2.
    pub(super) async fn new(mesh: &'a Mesh, name: &str) -> anyhow::Result<Self> {
        Self::of(mesh, name, app("web").serve("--http", PORT, "http2")).await
    }

    /// With a service `web` on [`PORT`] of one's own.
    pub(super) async fn of(mesh: &'a Mesh, name: &str, web: App) -> anyhow::Result<Self> {
        Self::with(mesh, name, web + app("client") + stranger()).await
    }

    /// With pods of one's own, `web`, `client` and `stranger` among them.
    pub(super) async fn with(
        mesh: &'a Mesh,
        name: &str,
        manifests: Manifests,
    ) -> anyhow::Result<Self> {
        let arena = mesh.apply(name, manifests).await?;
        let svid = svid(&arena, "client").await?;
        Ok(Self { arena, svid })
    }

    /// Where an attacker on that side connects to.
    fn target(&self, side: Side) -> anyhow::Result<Value> {
        let web = self.arena.pod("web")?.ips.v4.to_string();
        Ok(match side {
            Side::Stranger => json!({ "host": web, "port": PORT }),
            Side::Peer => json!({ "host": web, "port": PORT, "svid": self.svid }),
            Side::App => json!({ "host": "web", "port": PORT }),
        })
    }

    /// Runs attacks one after the other while somebody else is served, who loses nothing; afterwards everything is as
    /// before. An attack is Python; what it calls `to` is the target, and what it passes to `tell` is the outcome.
    pub(super) async fn stand<A: AsRef<str>>(
        &self,
        side: Side,
        attacks: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Vec<Outcome>> {
        let to = self.target(side)?;
        self.watch(side.victim(), async |watched| {
            let mut outcomes = Vec::new();
            for attack in attacks {
                let attack = self.run(side, &to, attack.as_ref());
                outcomes.push(watched.during(attack).await?);
            }
            Ok(outcomes)
        })
        .await
        .with_context(|| format!("{side:?}"))
    }

    /// Runs a program of an attacker, with nobody watching.
    pub(super) async fn ask(&self, side: Side, question: &str) -> anyhow::Result<Value> {
        self.run(side, &self.target(side)?, question).await
    }

    /// Runs a program of an attacker against a target.
    pub(super) async fn run(&self, side: Side, to: &Value, attack: &str) -> anyhow::Result<Value> {
        let from = match side {
            Side::Stranger | Side::Peer => "stranger",
            Side::App => "client",
        };
        let code = program(attack);
        let argv = script("python3", &code, &[&to.to_string()]);
        let ran = self.arena.exec(from, argv).await?;
        let said = ran.stdout.lines().last().map(serde_json::from_str);
        match said {
            Some(Ok(told)) => Ok(told),
            _ => bail!("the attacker failed: {ran}"),
        }
    }

    /// Watches a sidecar while something goes on, and somebody else besides.
    pub(super) async fn watch<T>(
        &self,
        victim: &str,
        attack: impl AsyncFnOnce(&Watched) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let watched = Watched(self.sidecar(victim)?);
        // What is there from the first request on counts before.
        let behaved = Behaved::begin(&self.arena, RATE).await?;
        let before = watched.used()?;
        let attacked = attack(&watched).await;
        let lost = behaved.end(1).await;
        let attacked = attacked?;
        lost?;
        ensure!(
            self.sidecar(victim)? == watched.0,
            "the sidecar was restarted"
        );
        self.recovers(victim, &watched, before).await?;
        Ok(attacked)
    }

    /// Memory goes back to what it was, and requests are served.
    async fn recovers(&self, victim: &str, watched: &Watched, before: Used) -> anyhow::Result<()> {
        eventually(RECOVERY, async || {
            let now = watched.used()?.memory;
            ensure!(
                now <= before.memory + RESIDUE,
                "the sidecar of {victim} had {} KiB of its own before and has {} KiB after",
                before.memory >> 10,
                now >> 10
            );
            Ok(())
        })
        .await?;
        let url = format!("http://web:{PORT}/");
        let after = self
            .arena
            .load("client", &url, 100, 0.3, &["--http2"])
            .await?;
        ensure!(after.failed == 0 && after.ok > 0, "after: {}", after.line());
        Ok(())
    }

    fn sidecar(&self, pod: &str) -> anyhow::Result<u32> {
        let pod = self.arena.pod(pod)?;
        let proxy = pod.container(containers::PROXY);
        proxy.and_then(|it| it.pid).context("there is no sidecar")
    }

    /// The certificate and the key of the client's sidecar.
    pub(super) fn svid(&self) -> &str {
        &self.svid
    }

    /// No connection of a pod's sidecar has ended in a panic.
    pub(super) async fn no_panic(&self, pod: &str) -> anyhow::Result<()> {
        let metrics = self.arena.metrics(pod).await?;
        let panics = metrics.sum("tulle_downstream_connection_panics_total", &[]);
        ensure!(panics == 0.0, "{pod}: {panics} panics");
        let log = self.arena.logs(pod, Some(containers::PROXY))?;
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }

    /// A limit was reached on that side: it was counted, and the sidecar said by whom.
    pub(super) async fn limited(&self, side: Side, limit: &str) -> anyhow::Result<()> {
        self.counted(side, &[limit]).await?;
        self.named(side, limit).await
    }

    /// One of these limits was reached on that side, and counted.
    pub(super) async fn counted(&self, side: Side, limits: &[&str]) -> anyhow::Result<()> {
        eventually(Duration::from_secs(5), async || {
            for limit in limits {
                if self.reached(side, limit).await? > 0.0 {
                    return Ok(());
                }
            }
            bail!("{side:?}: {limits:?} was not counted")
        })
        .await
    }

    /// How often a limit was reached by what came by a listener of a pod.
    async fn reached(&self, side: Side, limit: &str) -> anyhow::Result<f64> {
        let metrics: Metrics = self.arena.metrics(side.victim()).await?;
        let labels = [("limit", limit), ("listener", side.listener())];
        Ok(metrics.sum("tulle_limits_reached_total", &labels))
    }

    /// The sidecar said who reached a limit.
    async fn named(&self, side: Side, limit: &str) -> anyhow::Result<()> {
        let who = match side {
            Side::Stranger => self.arena.pod("stranger")?.ips.v4.to_string(),
            Side::Peer => format!("/ns/{}/sa/client", self.arena.namespace()),
            Side::App => self.arena.pod("client")?.ips.v4.to_string(),
        };
        eventually(Duration::from_secs(5), async || {
            let log = self.arena.logs(side.victim(), Some(containers::PROXY))?;
            let mut lines = log
                .lines()
                .filter(|line| line.contains("a limit was reached"));
            let said = lines.any(|line| line.contains(limit) && line.contains(&who));
            ensure!(said, "no line about {limit} of {who} in {log}");
            Ok(())
        })
        .await
    }
}

/// A pod without a sidecar.
pub(super) fn stranger() -> App {
    app("stranger").annotate("tulle.dev/inject", "disabled")
}

/// A whole program that stands on the frames.
pub(super) fn program_of(rest: &str) -> String {
    format!("{FRAMES}\n{rest}\n")
}

/// A whole program of an attacker, which `to` is given to.
pub(super) fn program(attack: &str) -> String {
    let begin = "to = json.loads(sys.argv[1])\ntell = lambda it: print(json.dumps(it))";
    program_of(&format!("{begin}\n{attack}"))
}

/// The certificate and the key of a pod's sidecar, as somebody who broke into it would find them.
pub(super) async fn svid(arena: &Arena<'_>, pod: &str) -> anyhow::Result<String> {
    let key = arena.pod(pod)?.key;
    let file = format!("{}/svid.pem", files::STATE_DIR);
    let sandbox = &arena.mesh().sandbox;
    let read = sandbox
        .exec(&key, Some(containers::PROXY), ["cat", &file])
        .await?;
    ensure!(
        read.status == 0,
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
    Ok(String::from_utf8(read.stdout)?)
}

/// A sidecar, by its process.
#[derive(Debug)]
pub(super) struct Watched(u32);

impl Watched {
    /// Runs an attack, and measures the sidecar meanwhile.
    pub(super) async fn during(
        &self,
        attack: impl Future<Output = anyhow::Result<Value>>,
    ) -> anyhow::Result<Outcome> {
        let before = self.used()?;
        let (mut peak, mut attack) = (before.memory, std::pin::pin!(timeout(ATTACK, attack)));
        let told = loop {
            tokio::select! {
                told = attack.as_mut() => break told.context("the attack did not end")??,
                () = tokio::time::sleep(LOOK) => peak = peak.max(self.used()?.memory),
            }
        };
        let after = self.used()?;
        Ok(Outcome {
            told,
            cpu: after.cpu.saturating_sub(before.cpu),
            growth: peak.max(after.memory).saturating_sub(before.memory),
        })
    }

    fn used(&self) -> anyhow::Result<Used> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok());
        // utime and stime, counted from what follows the name; a tick is 10 ms on Linux as programs see it.
        let ticks = ticks(12).zip(ticks(13)).context("no CPU time")?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let own = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let own = own.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(Used {
            cpu: Duration::from_millis(10 * (ticks.0 + ticks.1)),
            memory: own.context("no memory")? << 10,
        })
    }
}
