//! The connection between two sidecars, which everybody shares who calls from one pod to another: one client of it must
//! not have it ended for all. Rows 16 and 20.

use anyhow::ensure;
use tulle_tests::Mesh;

use super::clients::{all_cancelled, backend};
use super::siege::{Side, Siege};

tulle_tests::cases! {
    row_16_pieces_of_a_byte_that_nobody_takes_cost_others_nothing ["python3"];
    row_16_pieces_of_a_byte_that_come_one_by_one_cost_others_nothing ["python3"];
}

/// Somebody else's request, which is under way on the same connection all the time.
const HELD: &str = "
held = connect(to).listen()
held.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head(b'/index.html', b'POST')))
held.send(frame(PING, payload=bytes(8)))
held.until(lambda it: it.pongs)
time.sleep(0.2)
";
/// What became of it.
const TOLD: &str = "
held.until(lambda it: it.resets or it.closed or it.heads, 3)
tell(dict(lost=bool(held.resets or held.closed or held.heads), seen=held.told(), sent=sent))
";

/// The other request is still there, and whoever got one knows that it is over when it is.
async fn spares(siege: &Siege<'_>, attacks: &[String]) -> anyhow::Result<()> {
    for (outcome, attack) in siege.stand(Side::App, attacks).await?.iter().zip(attacks) {
        ensure!(
            outcome.told["lost"] == false,
            "another request was lost: {attack}: {outcome:?}"
        );
        ensure!(
            outcome.told["sent"].as_u64() > Some(10_000),
            "an attack that is none: {outcome:?}"
        );
    }
    all_cancelled(siege).await?;
    for pod in ["client", "web"] {
        siege.no_panic(pod).await?;
    }
    Ok(())
}

/// Requests whose bodies the app does not take, in pieces of a byte as fast as they go.
async fn row_16_pieces_of_a_byte_that_nobody_takes_cost_others_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let flood = |path: &str, streams: u32, each: u32| {
        format!(
            "{HELD}
peer, sent = connect(to).listen(), 0
streams = range(1, {streams} * 2, 2)
peer.send(b''.join(get(it, b'{path}', end=False) for it in streams))
piece = b''.join(frame(DATA, 0, it, b'x') for it in streams)
times = max(1, 2000 // len(streams))
while sent < {each} * len(streams) and not peer.closed and peer.send(piece * times):
    sent += times * len(streams)
time.sleep(0.5)
{TOLD}"
        )
    };
    let attacks = [
        flood("/index.html", 1, 400_000),
        flood("/index.html", 16, 30_000),
        flood("/index.html", 200, 2_500),
        // Answered before its body has come.
        flood("/", 200, 1_000),
        // From many connections, none of which has more than its share.
        format!(
            "{HELD}
peers, sent = [connect(to).listen() for _ in range(8)], 0
for peer in peers:
    peer.send(get(1, b'/index.html', end=False))
for _ in range(20):
    for peer in peers:
        if not peer.closed and peer.send(frame(DATA, 0, 1, b'x') * 2000):
            sent += 2000
time.sleep(0.5)
{TOLD}"
        ),
    ];
    let siege = Siege::of(mesh, "row-16-bytes", backend()).await?;
    spares(&siege, &attacks).await
}

/// The same with a pause after each, so that none waits for another.
async fn row_16_pieces_of_a_byte_that_come_one_by_one_cost_others_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let attack = format!(
        "{HELD}
peer, sent = connect(to).listen(), 0
streams = range(1, 256 * 2, 2)
peer.send(b''.join(get(it, b'/index.html', end=False) for it in streams))
begun = time.time()
while sent < 400000 and not peer.closed and time.time() - begun < 20:
    peer.send(b''.join(frame(DATA, 0, it, b'x') for it in streams))
    sent += len(streams)
    time.sleep(0.005)
{TOLD}"
    );
    let siege = Siege::of(mesh, "row-16-drip", backend()).await?;
    spares(&siege, &[attack]).await
}
