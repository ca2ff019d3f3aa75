//! Who holds memory and does not move, where memory is short: rows 20 and 25 together.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{Mesh, app, eventually};

use super::clients::backend;
use super::siege::{PORT, Side, Siege, stranger};
use crate::behaved::{Behaved, failures};
use crate::overload::{MEMORY, confine};
use crate::process::{Cgroup, Process};

tulle_tests::cases! {
    row_20_25_answers_that_nobody_takes_cost_nobody_else_a_request_where_memory_is_short ["alone", "python3"];
    row_20_25_requests_that_no_app_takes_cost_nobody_else_a_request_where_memory_is_short ["alone", "python3"];
}

pub(crate) const ANSWERS: &str = "row-20-25-answers";
pub(crate) const REQUESTS: &str = "row-20-25-requests";
pub(crate) const CGROUP: &str = "tulle-test-short";
const DEADLINE: Duration = Duration::from_secs(40);
/// What may be used of the memory, in percent: those who hold it go before anybody has to be refused.
const MOST: u64 = 95;

/// Three connections, each with a thousand requests of which no answer fits into its window.
const TAKE_NOTHING: &str = "
peers = [connect(to, window=0).listen() for _ in range(3)]
for first in range(1, 2001, 200):
    for peer in peers:
        peer.send(b''.join(get(stream, b'/big') for stream in range(first, first + 200, 2)))
    time.sleep(0.05)
time.sleep(5)
tell(dict(over=[len(peer.resets) for peer in peers]))
";

/// Four connections, each with a hundred requests of which the app answers none and takes next to nothing.
const UPLOAD: &str = "
peers = [connect(to).listen() for _ in range(4)]
# The windows are those of the settings only once these are acknowledged: more before is an error that ends it all.
for peer in peers:
    assert peer.until(lambda it: it.acks)

def upload(peer):
    for stream in range(1, 201, 2):
        peer.send(frame(HEADERS, END_HEADERS, stream, head(b'/index.html', b'POST')))
        for _ in range(15):
            if not peer.send(frame(DATA, 0, stream, bytes(16384))):
                return

threads = [threading.Thread(target=upload, args=(peer,), daemon=True) for peer in peers]
for thread in threads:
    thread.start()
# A busy machine takes its time until memory is short.
begun = time.time()
while time.time() < begun + 15 and not any(peer.ended or peer.resets for peer in peers):
    time.sleep(0.05)
for thread in threads:
    thread.join(6)
time.sleep(1)
tell(dict(over=[len(peer.ended) + len(peer.resets) for peer in peers], said=[peer.told() for peer in peers]))
";

async fn row_20_25_answers_that_nobody_takes_cost_nobody_else_a_request_where_memory_is_short(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    attacked(mesh, ANSWERS, TAKE_NOTHING).await
}

async fn row_20_25_requests_that_no_app_takes_cost_nobody_else_a_request_where_memory_is_short(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    attacked(mesh, REQUESTS, UPLOAD).await
}

/// Stands an attack with little memory: who was there before loses nothing, nor does who comes in the middle of it.
async fn attacked(mesh: &Mesh, namespace: &str, attack: &str) -> anyhow::Result<()> {
    let cgroup = Cgroup::create(CGROUP, MEMORY)?;
    let manifests = backend() + app("client") + app("late") + stranger();
    let (siege, moved) = tokio::join!(
        Siege::with(mesh, namespace, manifests),
        confine(mesh, namespace, &cgroup)
    );
    moved?;
    let siege = siege?;
    let sidecar = Process::of(&siege.arena, "web")?;
    let behaved = Behaved::begin(&siege.arena, 25).await?;
    let url = format!("http://web:{PORT}/");
    let late = async {
        // It has no connection yet, and comes in the middle of it.
        eventually(DEADLINE, async || {
            siege.counted(Side::Stranger, &["memory"]).await
        })
        .await?;
        let patient = ["--http2", "--timeout", "10m"];
        siege.arena.load("late", &url, 25, 3.0, &patient).await
    };
    let (told, late) = tokio::join!(siege.ask(Side::Stranger, attack), late);
    let told = told?;
    let over = told["over"].as_array().into_iter().flatten();
    let over: u64 = over.filter_map(serde_json::Value::as_u64).sum();
    ensure!(over > 0, "an attack that is none: {told}");
    let late = late?;
    ensure!(
        late.failed == 0 && late.ok == late.sent && late.ok > 30,
        "who came late lost requests: {}\n{}{}",
        late.line(),
        failures(&siege.arena, "late"),
        failures(&siege.arena, "web")
    );
    ensure!(cgroup.kills()? == 0, "the kernel has killed it");
    let peak = cgroup.peak()? * 100 / MEMORY;
    ensure!(peak < MOST, "{peak} % of the memory were used");
    behaved.end(50).await?;
    sidecar.lives(&siege.arena, "web")
}
