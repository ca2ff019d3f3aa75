//! Streams that nothing is taken of, and streams that are used after their end: rows 20 and 28.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{App, Mesh, app, scaled};

use super::clients::{all_cancelled, backend, cheap};
use super::siege::{Side, Siege, stranger};

tulle_tests::cases! {
    row_20_answers_that_nobody_takes_occupy_no_more_than_their_windows ["python3"];
    row_20_ten_thousand_of_them_stay_within_the_memory_that_there_is ["python3"];
    row_28_a_stream_that_is_used_after_its_reset_does_no_harm ["python3"];
}

/// CPU time that a thousand streams of a connection may cost, the client that behaves itself included, of a build without
/// optimisation.
const CPU: Duration = Duration::from_secs(3);

/// A thousand streams, each with as much as may be under way of it and as much as may wait to be sent, and half as much
/// again for what that takes. What is asked for is a gigabyte. More may be under way to an app's own sidecar, because it
/// comes from further away.
fn streams(side: Side) -> u64 {
    let window = match side {
        Side::Stranger | Side::Peer => 64,
        Side::App => 256,
    };
    1_000 * (window + 32) * 1024 * 3 / 2
}

async fn row_20_answers_that_nobody_takes_occupy_no_more_than_their_windows(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let ask = |begin: &str, then: &str| {
        format!(
            "
{begin}
for first in range(1, 2001, 200):
    peer.send(b''.join(get(stream, b'/big') for stream in range(first, first + 200, 2)))
    time.sleep(0.05)
{then}
told = peer.told()
peer.sock.close()
tell(told)
"
        )
    };
    let attacks = [
        // A closed window, one that is opened byte by byte, and one that is open on a connection that is not read.
        ask("peer = connect(to, window=0).listen()", "time.sleep(0.5)"),
        ask(
            "peer = connect(to, window=1).listen()",
            "
for _ in range(20):
    peer.send(b''.join(grow(stream, 1) for stream in range(1, 41, 2)))
    time.sleep(0.05)",
        ),
        ask(
            "peer = connect(to, window=0x7fffffff, receive=4096)\npeer.send(grow(0, 0x70000000))",
            "time.sleep(0.5)",
        ),
    ];
    // What is freed is given back soon; what is not would add up.
    let again = attacks.iter().chain(&attacks).chain(&attacks);
    let siege = Siege::of(mesh, "row-20", backend()).await?;
    for side in Side::ALL {
        for outcome in siege.stand(side, again.clone()).await? {
            ensure!(outcome.cpu < CPU, "{side:?}: {outcome:?}");
            ensure!(outcome.growth < streams(side), "{side:?}: {outcome:?}");
            ensure!(outcome.told["goaway"].is_null(), "{side:?}: {outcome:?}");
        }
    }
    Ok(())
}

/// Memory that each sidecar may use.
const MEMORY: u64 = 128 << 20;

/// From connections that have as many streams as each may have. They are cut when their clients have taken nothing for too
/// long, or before that if memory is short; nobody else loses a request.
async fn row_20_ten_thousand_of_them_stay_within_the_memory_that_there_is(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let connections = scaled(2, 10);
    let attack = format!(
        "
peers = [connect(to, window=0).listen() for _ in range({connections})]
for first in range(1, 2001, 200):
    for peer in peers:
        peer.send(b''.join(get(stream, b'/big') for stream in range(first, first + 200, 2)))
begun = time.time()
cut = lambda it: it.closed or len(it.resets) >= 1000
ends = [bool(peer.until(cut, max(0, 30 + begun - time.time()))) for peer in peers]
tell(dict(ends=ends, resets=[len(peer.resets) for peer in peers], closed=[peer.closed for peer in peers]))
"
    );
    let limited = |app: App| {
        app.annotate("limits.tulle.dev/memory-limit", &MEMORY.to_string())
            .annotate("limits.tulle.dev/flush-timeout", "2s")
    };
    let pods = limited(backend()) + limited(app("client")) + stranger();
    let siege = Siege::with(mesh, "row-20-many", pods).await?;
    for side in Side::ALL {
        let outcome = siege.stand(side, [&attack]).await?.remove(0);
        let ends = outcome.told["ends"].as_array();
        ensure!(
            ends.is_some_and(|ends| ends.len() == connections && ends.iter().all(|it| it == true)),
            "{side:?}: {outcome:?}"
        );
        let number = u32::try_from(connections)?;
        ensure!(outcome.cpu < CPU * number, "{side:?}: {outcome:?}");
        ensure!(outcome.growth < MEMORY, "{side:?}: {outcome:?}");
        // More may wait for an app than there is memory, whatever its clients take.
        let cut: &[_] = match side {
            Side::Stranger | Side::Peer => &["h2_flush"],
            Side::App => &["h2_flush", "memory"],
        };
        siege.counted(side, cut).await?;
    }
    Ok(())
}

async fn row_28_a_stream_that_is_used_after_its_reset_does_no_harm(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let opened = "get(1, b'/index.html', end=False)";
    let uses = [
        "reset(1) + frame(DATA, 0, 1, b'more')",
        "reset(1) + frame(DATA, END_STREAM, 1, b'more')",
        "reset(1) + frame(HEADERS, END_STREAM | END_HEADERS, 1, literal(b'x', b'y'))",
        "reset(1) + grow(1, 100)",
        "reset(1) + reset(1)",
        "reset(1) + get(1)",
        "frame(DATA, END_STREAM, 1, b'x') + reset(1) + frame(DATA, 0, 1, b'more')",
        "frame(DATA, 0, 1, bytes(5000)) + reset(1) + grow(1, 0x7fffffff) + grow(1, 0x7fffffff)",
    ];
    // At once, and when the app has the request already; the connection lives on or is refused, or its client is gone.
    let attacks = uses.iter().flat_map(|then| {
        ["", "peer.send(frame(PING, payload=bytes(8)))\npeer.until(lambda it: it.pongs or it.closed)\ntime.sleep(0.05)"]
            .map(|pause| {
                format!(
                    "
ends = []
for leaves in [False] * 5 + [True] * 5:
    peer = connect(to).listen()
    peer.send({opened})
    {}
    peer.send({then})
    if leaves:
        peer.sock.close()
        continue
    peer.send(get(9))
    peer.until(lambda it: 9 in it.heads or it.closed)
    ends.append(9 in peer.heads or bool(peer.goaway) and peer.goaway['code'] > 0)
    peer.sock.close()
tell(dict(ends=ends))
",
                    pause.replace('\n', "\n    ")
                )
            })
    });
    let attacks: Vec<_> = attacks.collect();
    let siege = Siege::of(mesh, "row-28", backend()).await?;
    for side in Side::ALL {
        for (outcome, attack) in siege.stand(side, &attacks).await?.iter().zip(&attacks) {
            let ends = outcome.told["ends"].as_array();
            let good = ends.is_some_and(|ends| ends.len() == 5 && ends.iter().all(|it| it == true));
            ensure!(good, "{side:?}: {attack}: {outcome:?}");
            cheap(outcome)?;
        }
        all_cancelled(&siege).await?;
        siege.no_panic("web").await?;
        siege.no_panic("client").await?;
    }
    Ok(())
}
