//! Certificates that change all the time: leaves and roots, while everybody calls everybody. Rows 32 and 33.
//!
//! The control plane is started again with certificates that live for seconds and roots of its own, so these tests run
//! alone; afterwards it is what it was.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::pki_types::ServerName;
use tulle_identity::{Identity, SpiffeId, TrustBundle};
use tulle_runtime::env::Env;
use tulle_runtime::names::{alpn, labels};
use tulle_tests::{Arena, Load, Mesh, app, eventually, progress, scaled};

use crate::certificate::svid_of;
use crate::mole::{Mole, PORT, burrow};
use crate::place::Place;
use crate::process::Process;

tulle_tests::cases! {
    row_32_roots_and_leaves_rotate_under_load_and_nothing_is_lost ["alone"];
}

/// What a control plane of these tests gets beside its usual arguments, where that file is: a pair a line, arguments and
/// variables of its environment.
const ARGUMENTS: &str = "/run/tulle-test-control";
const STATE: &str = "/run/tulle-test-ca";
/// Set for the control plane itself, which must not be prepared again.
const PREPARED: &str = "TULLE_TEST_CONTROL";
/// A leaf is renewed at half of its life, a root signs two seconds after it is announced, and its predecessor goes when its
/// last leaf has.
const HASTE: [(&str, &str); 3] = [
    ("--state-dir", STATE),
    ("--leaf-ttl", "8s"),
    ("--root-propagation", "2s"),
];
const DEADLINE: Duration = Duration::from_secs(40);

/// Prepares this process and becomes the control plane; `None`: it is an ordinary one.
pub(crate) fn control(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let more = std::fs::read_to_string(ARGUMENTS).ok()?;
    let prepared = Env::process().text(PREPARED).is_some();
    (!prepared).then(|| become_control(arguments, &more))
}

fn become_control(arguments: &[String], more: &str) -> anyhow::Result<()> {
    let (mut argv, mut variables) = (arguments.to_vec(), Vec::new());
    for line in more.lines() {
        let (name, value) = line.split_once(' ').context("an argument and its value")?;
        if !name.starts_with("--") {
            variables.push((name, value));
            continue;
        }
        match argv.iter().position(|argument| argument == name) {
            Some(at) => value.clone_into(&mut argv[at + 1]),
            None => argv.extend([name.to_owned(), value.to_owned()]),
        }
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tulle").args(argv).env(PREPARED, "yes");
    command.envs(variables);
    Err(command.exec()).context("the control plane cannot be started")
}

/// Starts the control plane again, with more arguments or variables, or as it was.
pub(crate) async fn restart(mesh: &Mesh, with: &[(&str, &str)]) -> anyhow::Result<()> {
    if with.is_empty() {
        std::fs::remove_file(ARGUMENTS)?;
    } else {
        let lines = with.iter().map(|(name, value)| format!("{name} {value}\n"));
        std::fs::write(ARGUMENTS, lines.collect::<String>())?;
    }
    mesh.control.kill().await;
    mesh.control.resume().await;
    eventually(DEADLINE, async || mesh.control_admin("/ready").await).await?;
    Ok(())
}

async fn row_32_roots_and_leaves_rotate_under_load_and_nothing_is_lost(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(STATE)?;
    restart(mesh, &HASTE).await?;
    let rotated = Box::pin(rotate(mesh)).await;
    restart(mesh, &[]).await?;
    rotated
}

async fn rotate(mesh: &Mesh) -> anyhow::Result<()> {
    let (pod, service) = burrow("burrow");
    let manifests = app("web").http(8080).tcp(9000)
        + app("client")
        + app("stranger").label(labels::INJECT, "disabled")
        + pod
        + service.as_str();
    let arena = mesh.apply("rotation", manifests).await?;
    let sidecars = [Process::of(&arena, "client")?, Process::of(&arena, "web")?];
    let mut old = Old::new(&arena).await?;
    let mole = Mole::start(&arena, "burrow", identity("burrow")?)?;
    let loads = loads(&arena)?;
    let rounds = scaled(2, 40);
    for round in 0..rounds {
        let turned = turn(mesh, &arena, &mole).await;
        turned.with_context(|| format!("round {round}"))?;
        progress("row 32, rounds", round + 1, rounds);
        if round == 0 {
            old.is_over(&arena).await?;
        }
    }
    for (what, load) in loads {
        let summary = load.stop().await?;
        ensure!(
            summary.failed == 0 && summary.ok == summary.sent && summary.ok > 100,
            "{what}: {}",
            summary.line()
        );
    }
    sidecars[0].lives(&arena, "client")?;
    sidecars[1].lives(&arena, "web")
}

/// HTTP on the connections that are there, and opaque connections that are each a handshake of their own.
fn loads(arena: &Arena<'_>) -> anyhow::Result<Vec<(&'static str, Load)>> {
    let rate = |scale: usize| u32::try_from(scale).unwrap_or(u32::MAX);
    let [http, tcp] = [rate(scaled(40, 400)), rate(scaled(20, 200))];
    let patience = ["--timeout", "30s"];
    let start = |url: &str, rate: u32, option: &[&str]| {
        let options: Vec<_> = patience.iter().chain(option).copied().collect();
        arena.start_load("client", url, rate, 3_600.0, &options)
    };
    Ok(vec![
        ("HTTP/1", start("http://web:8080/", http, &[])?),
        ("HTTP/2", start("http://web:8080/", http, &["--http2"])?),
        ("opaque TCP", start("tcp://web:9000", tcp, &["--no-reuse"])?),
    ])
}

/// One root replaces another, and leaves of both replace each other meanwhile.
async fn turn(mesh: &Mesh, arena: &Arena<'_>, mole: &Mole) -> anyhow::Result<()> {
    let before = arena.admin("web", "/certs").await?;
    mesh.control_post("/ca/rotate-root").await?;
    let (shown, strays) = (RefCell::new(BTreeSet::new()), RefCell::new(Vec::new()));
    eventually(DEADLINE, async || {
        // The mole is a peer like any other: its certificates are renewed, and it hears of roots.
        let svid = svid_of(&ca(), &id("burrow"))?.0;
        mole.becomes(Identity::new(svid, bundle(mesh).await?));
        let old = shown.borrow().clone();
        let (stray, newest) = stray(arena, mole, &old).await?;
        strays.borrow_mut().extend(stray);
        shown.borrow_mut().extend(newest);
        let now = arena.admin("web", "/certs").await?;
        let roots = now["roots"].as_array().context("no roots")?;
        let old = &before["roots"][0]["serial"];
        let gone = roots.len() == 1 && roots[0]["serial"] != *old;
        ensure!(gone && now["serial"] != before["serial"], "{now}");
        Ok(())
    })
    .await?;
    let strays = strays.into_inner();
    ensure!(strays.is_empty(), "{strays:?}");
    Ok(())
}

/// Has the client call the mole: it must not come with a certificate that its sidecar had replaced before the request. What
/// is wrong, if something is, and the certificates that were seen by now, those in `old` among them.
async fn stray(
    arena: &Arena<'_>,
    mole: &Mole,
    old: &BTreeSet<String>,
) -> anyhow::Result<(Option<String>, BTreeSet<String>)> {
    let certificate = arena.admin("client", "/certs").await?;
    let now = certificate["serial"].as_str().context("no serial")?;
    let url = format!("http://burrow:{PORT}/");
    let answer = arena.app_call("client", &[&url]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    let call = mole.calls().pop().context("nobody called")?;
    let is_old = call.serial != now && old.contains(&call.serial);
    let wrong = is_old.then(|| format!("{call:?} when {now} was the newest"));
    let mut shown = old.clone();
    shown.extend([now.to_owned(), call.serial]);
    Ok((wrong, shown))
}

/// Somebody who has a certificate of the first root and gets no other: connections that stand, and how new ones fare.
struct Old {
    identity: Identity,
    place: Place,
    standing: Vec<TlsStream<TcpStream>>,
}

/// Protocols and ports of `web`, and what is said there.
const WAYS: [(&[u8], u16, &str); 2] = [
    (alpn::HTTP1, 8080, "GET / HTTP/1.1\r\nhost: web\r\n\r\n"),
    (alpn::TCP, 9000, "echo\n"),
];

impl Old {
    async fn new(arena: &Arena<'_>) -> anyhow::Result<Self> {
        let mut old = Self {
            identity: identity("client")?,
            place: Place::of(arena, "stranger")?,
            standing: Vec::new(),
        };
        for way in WAYS {
            let connector = old.connector(way)?;
            // The second could resume what the first has begun.
            for _ in 0..2 {
                let mut tls = old.connect(arena, way, &connector).await?;
                ensure!(answers(&mut tls, way).await, "it is not served");
                let kind = tls.get_ref().1.handshake_kind();
                ensure!(kind == Some(HandshakeKind::Full), "{kind:?}");
                old.standing.push(tls);
            }
        }
        Ok(old)
    }

    fn connector(&self, (alpn, _, _): (&[u8], u16, &str)) -> anyhow::Result<TlsConnector> {
        let web = SpiffeId::parse(&id("web"))?;
        Ok(TlsConnector::from(
            self.identity.load().client(&[web], alpn),
        ))
    }

    async fn connect(
        &self,
        arena: &Arena<'_>,
        (_, port, _): (&[u8], u16, &str),
        connector: &TlsConnector,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let web = SocketAddr::new(arena.pod("web")?.ips.v4.into(), port);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let tcp = self.place.connect(web).await?;
        Ok(connector.connect(name, tcp).await?)
    }

    /// Its root is trusted no more: what stands has ended, and what comes is refused.
    async fn is_over(&mut self, arena: &Arena<'_>) -> anyhow::Result<()> {
        for mut tls in self.standing.drain(..) {
            let ended = timeout(DEADLINE, tls.read_to_end(&mut Vec::new())).await;
            ensure!(ended.is_ok(), "a connection of the old root still stands");
        }
        self.identity.trust(bundle(arena.mesh()).await?);
        for way in WAYS {
            let connector = self.connector(way)?;
            // In TLS 1.3 the refusal comes after what the client takes for the handshake's end.
            if let Ok(mut tls) = self.connect(arena, way, &connector).await {
                ensure!(!answers(&mut tls, way).await, "an old peer is served");
            }
        }
        let metrics = arena.metrics("web").await?;
        for reason in ["distrusted_root", "tls"] {
            let labels = [("direction", "inbound"), ("reason", reason)];
            let refused = metrics.sum("tulle_downstream_connections_refused_total", &labels);
            ensure!(refused >= 2.0, "{refused} refused for {reason}");
        }
        Ok(())
    }
}

/// Whether something comes back.
async fn answers(tls: &mut TlsStream<TcpStream>, (_, _, says): (&[u8], u16, &str)) -> bool {
    let asked = async {
        tls.write_all(says.as_bytes()).await?;
        tls.flush().await?;
        tls.read(&mut [0; 64]).await
    };
    matches!(timeout(DEADLINE, asked).await, Ok(Ok(length)) if length > 0)
}

fn ca() -> std::path::PathBuf {
    Path::new(STATE).join("ca.json")
}

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/rotation/sa/{account}")
}

fn identity(account: &str) -> anyhow::Result<Identity> {
    let (svid, bundle) = svid_of(&ca(), &id(account))?;
    Ok(Identity::new(svid, bundle))
}

/// The roots of this moment.
async fn bundle(mesh: &Mesh) -> anyhow::Result<TrustBundle> {
    let status = mesh.control_admin("/ca").await?;
    let bundle = status["trust_bundle"].as_str().context("no bundle")?;
    Ok(TrustBundle::from_pem(bundle.as_bytes())?)
}
