//! Requests that are gone before anybody knows where to send them: while their service is looked up, or while somebody
//! connects to it. Row 28.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tulle_tests::manifests::Manifests;
use tulle_tests::{Mesh, app, eventually};

use super::clients::{backend, cheap};
use super::siege::{PORT, Side, Siege, stranger};
use crate::outage::Void;

tulle_tests::cases! {
    row_28_requests_that_are_gone_before_their_service_is_known_do_no_harm ["alone", "python3"];
    row_28_requests_that_are_gone_before_anybody_is_connected_do_no_harm ["nft", "python3"];
}

/// A service that nobody has called, which is the one that is meant.
const OTHER: &str = "other";

fn pods() -> Manifests {
    let mut other = backend().yaml();
    for (name, called) in [
        ("\"web\"", "\"other\""),
        ("\"web-files\"", "\"other-files\""),
    ] {
        other = other.replace(name, called);
    }
    backend() + app("client") + stranger() + other.as_str()
}

/// Requests that are given up at once, in every way, over connections that stay and over ones that go with them. Those
/// that stay are asked for something in the end, after whatever the attack waits for.
const ATTACK: &str = "
ways = [
    lambda it: get(it, b'/index.html') + reset(it),
    lambda it: get(it, b'/index.html', end=False) + reset(it),
    lambda it: get(it, b'/index.html', end=False) + frame(DATA, 0, it, b'x') + reset(it),
    lambda it: get(it, b'/index.html', end=False) + reset(it) + frame(DATA, 0, it, b'x'),
    lambda it: get(it, b'/index.html', end=False) + reset(it) + frame(DATA, END_STREAM, it, b'x'),
    lambda it: get(it, b'/index.html', end=False) + reset(it)
        + frame(HEADERS, END_STREAM | END_HEADERS, it, literal(b'x', b'y')),
]
stay = []
for way in ways:
    for pause in (0, 0.02):
        for leaves in (False, True):
            peer = connect(to).listen()
            peer.send(get(1, b'/index.html', end=False))
            time.sleep(pause)
            peer.send(way(3) + reset(1))
            if leaves:
                peer.sock.close()
            else:
                stay.append(peer)
time.sleep(WAITS)
for peer in stay:
    peer.send(get(9))
for peer in stay:
    peer.until(lambda it: 9 in it.ended or it.closed, 10)
ends = [9 in peer.ended or bool(peer.closed) for peer in stay]
tell(dict(ends=ends))
";

async fn target(siege: &Siege<'_>) -> anyhow::Result<Value> {
    let found = siege
        .arena
        .exec("client", ["getent", "ahostsv4", OTHER])
        .await?;
    let found = found.ok()?;
    let host = found.split_whitespace().next().context("no address")?;
    Ok(json!({ "host": host, "port": PORT }))
}

/// Whoever got a request knows that it was given up; the service is there for the next one, and nothing has broken.
async fn harmless(siege: &Siege<'_>, to: &Value) -> anyhow::Result<()> {
    let ask = "
peer, body = connect(to), []
peer.on = lambda kind, flags, stream, payload: body.append(payload) if kind == DATA else None
peer.listen().send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head(method=b'POST')))
peer.until(lambda it: it.ended or it.closed)
tell(json.loads(b''.join(body)))
";
    eventually(Duration::from_secs(10), async || {
        let told = siege.run(Side::App, to, ask).await?;
        ensure!(told["hung"] == told["cancelled"], "{told}");
        Ok(())
    })
    .await?;
    for pod in ["client", "web", OTHER] {
        siege.no_panic(pod).await?;
    }
    Ok(())
}

/// Stops the control plane, until dropped.
struct Halted(Pid);

impl Halted {
    fn begin(mesh: &Mesh) -> anyhow::Result<Self> {
        let control = mesh.control.pid().context("no control plane runs")?;
        let control = Pid::from_raw(control.cast_signed());
        kill(control, Signal::SIGSTOP)?;
        Ok(Self(control))
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

async fn row_28_requests_that_are_gone_before_their_service_is_known_do_no_harm(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let siege = Siege::with(mesh, "row-28-unknown", pods()).await?;
    let to = target(&siege).await?;
    // Nobody answers for as long as a lookup may take, and then somebody does.
    let attack = ATTACK.replace("WAITS", "3");
    let outcome = siege
        .watch("client", async |watched| {
            let halted = Halted::begin(mesh)?;
            let outcome = watched.during(siege.run(Side::App, &to, &attack)).await;
            drop(halted);
            outcome
        })
        .await?;
    let ends = outcome.told["ends"].as_array().map_or(0, Vec::len);
    ensure!(ends == 12 && all_true(&outcome.told["ends"]), "{outcome:?}");
    cheap(&outcome)?;
    harmless(&siege, &to).await
}

async fn row_28_requests_that_are_gone_before_anybody_is_connected_do_no_harm(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let siege = Siege::with(mesh, "row-28-connecting", pods()).await?;
    let to = target(&siege).await?;
    let other = siege.arena.pod(OTHER)?.ips.v4.to_string();
    let client = siege.arena.pod("client")?.ips.v4.to_string();
    let attack = ATTACK.replace("WAITS", "1.5");
    let outcome = siege
        .watch("client", async |watched| {
            // Packets of one to the other go nowhere, and nobody says so.
            let void = Void::from_to(&client, &other, "row_28_void")?;
            let outcome = watched.during(siege.run(Side::App, &to, &attack)).await;
            drop(void);
            outcome
        })
        .await?;
    ensure!(all_true(&outcome.told["ends"]), "{outcome:?}");
    cheap(&outcome)?;
    harmless(&siege, &to).await
}

fn all_true(ends: &Value) -> bool {
    let ends = ends.as_array();
    ends.is_some_and(|ends| !ends.is_empty() && ends.iter().all(|it| it == true))
}
