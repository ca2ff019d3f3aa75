//! Heads that are small on the wire and large when they are decoded, and where the limit is: rows 17 and 21.

use anyhow::ensure;
use tulle_tests::Mesh;

use super::clients::{MEMORY, cheap, ended_calmly};
use super::siege::{Side, Siege};

tulle_tests::cases! {
    row_17_heads_count_as_they_are_decoded ["python3"];
    row_17_many_heads_within_the_limit_occupy_little ["python3"];
    row_21_the_limit_of_a_head_counts_names_and_values_and_32_for_each ["python3"];
}

/// One field that is remembered, and references to it.
const BOMB: &str = "remembered(b'x', b'y' * 4000) + indexed(62) * TIMES";
/// The same of a piece of a cookie: `cookie` is 32 in the table, and the piece counts 41.
const CRUMBS: &str = "b'\\x60' + text(b'a=b') + indexed(62) * TIMES";

fn fields(of: &str, times: u32) -> String {
    of.replace("TIMES", &times.to_string())
}

/// Sends a head with fields, as the request's or as its trailers, and another request after it.
fn request(fields: &str, trailers: bool) -> String {
    let sent = if trailers {
        format!("get(1, end=False) + frame(HEADERS, END_HEADERS | END_STREAM, 1, {fields})")
    } else {
        format!("get(1, more={fields})")
    };
    format!(
        "
peer = connect(to).listen()
peer.send({sent})
peer.until(lambda it: 1 in it.heads or it.resets or it.closed)
peer.send(get(3))
peer.until(lambda it: 3 in it.heads or it.closed)
peer.until(lambda it: it.closed, 0.3 if 3 in peer.heads else 20)
tell(peer.told(first=peer.heads.get(1), second=peer.heads.get(3)))
"
    )
}

async fn row_17_heads_count_as_they_are_decoded(mesh: &Mesh) -> anyhow::Result<()> {
    let served = [(BOMB, 2), (CRUMBS, 350)];
    let refused = [(BOMB, 4), (BOMB, 14), (CRUMBS, 420), (CRUMBS, 1_500)];
    let ended = [
        (BOMB, 40),
        (BOMB, 12_000),
        (CRUMBS, 2_000),
        (CRUMBS, 16_000),
    ];
    let programs = |of: &[(&str, u32)]| -> Vec<String> {
        let fields = of.iter().map(|(of, times)| fields(of, *times));
        fields.map(|it| request(&it, false)).collect()
    };
    let siege = Siege::new(mesh, "row-17").await?;
    let is_ok = |head: &serde_json::Value| head.as_str().is_some_and(|it| it.starts_with("88"));
    for side in Side::ALL {
        for outcome in siege.stand(side, programs(&served)).await? {
            ensure!(is_ok(&outcome.told["first"]), "{side:?}: {outcome:?}");
            ensure!(is_ok(&outcome.told["second"]), "{side:?}: {outcome:?}");
        }
        for outcome in siege.stand(side, programs(&refused)).await? {
            // 431, which the table does not have, and the connection goes on.
            let first = &outcome.told["first"];
            ensure!(first.is_string() && !is_ok(first), "{side:?}: {outcome:?}");
            ensure!(is_ok(&outcome.told["second"]), "{side:?}: {outcome:?}");
            cheap(&outcome)?;
        }
        let trailers = request(&fields(BOMB, 12_000), true);
        let ended = programs(&ended).into_iter().chain([trailers]);
        for outcome in siege.stand(side, ended).await? {
            ended_calmly(&outcome, "header_list_way_too_large")?;
            cheap(&outcome)?;
        }
        siege.limited(side, "h2_header_list").await?;
    }
    Ok(())
}

async fn row_17_many_heads_within_the_limit_occupy_little(mesh: &Mesh) -> anyhow::Result<()> {
    let fields = fields(BOMB, 2);
    let attack = format!(
        "
peer = connect(to).listen()
peer.send(grow(0, 0x7fff0000))
for first in range(1, 601, 200):
    for stream in range(first, first + 200, 2):
        peer.send(get(stream, more={fields}))
    peer.until(lambda it: len(it.ended) >= (first + 199) // 2 or it.closed)
tell(peer.told())
"
    );
    let siege = Siege::new(mesh, "row-17-many").await?;
    for side in Side::ALL {
        for outcome in siege.stand(side, [&attack]).await? {
            ensure!(outcome.told["ended"] == 300, "{side:?}: {outcome:?}");
            ensure!(outcome.growth < MEMORY, "{side:?}: {outcome:?}");
        }
    }
    Ok(())
}

/// A head of `get` alone: four fields with names and values, and 32 for each.
const OF_GET: usize = 7 + 3 + 7 + 4 + 10 + 3 + 5 + 1 + 4 * 32;
/// The limit.
const LIST: usize = 16 * 1024;

async fn row_21_the_limit_of_a_head_counts_names_and_values_and_32_for_each(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let tiny = (LIST - OF_GET) / (1 + 1 + 32);
    let one = LIST - OF_GET - 32 - 1;
    // What is within the limit, with room for what is added on the way to an app that has the same; and a little more.
    let (room, more) = (1_000, 16);
    let fields = |fields: String| request(&fields, false);
    let path = |length: usize| {
        let begin = format!("get(1, b'/' * {length})");
        fields(String::new()).replace("get(1, more=)", &begin)
    };
    let asked = [
        (
            fields(format!("literal(b'a', b'b') * {}", tiny - room / 34)),
            true,
        ),
        (fields(format!("literal(b'a', b'b') * {}", tiny + 1)), false),
        (
            fields(format!("literal(b'x', b'y' * {})", one - room)),
            true,
        ),
        (
            fields(format!("literal(b'x', b'y' * {})", one + more)),
            false,
        ),
        (
            fields(format!("literal(b'x' * {}, b'y')", one - room)),
            true,
        ),
        (
            fields(format!("literal(b'x' * {}, b'y')", one + more)),
            false,
        ),
        (path(one + 33 - room), true),
        (path(one + 33 + more), false),
    ];
    let siege = Siege::new(mesh, "row-21").await?;
    let is_ok = |head: &serde_json::Value| head.as_str().is_some_and(|it| it.starts_with("88"));
    for side in Side::ALL {
        let outcomes = siege.stand(side, asked.iter().map(|(it, _)| it)).await?;
        for (outcome, (attack, passes)) in outcomes.iter().zip(&asked) {
            cheap(outcome)?;
            let first = &outcome.told["first"];
            ensure!(
                first.is_string() && is_ok(first) == *passes,
                "{side:?}: {attack}: {outcome:?}"
            );
            ensure!(is_ok(&outcome.told["second"]), "{side:?}: {outcome:?}");
        }
        siege.limited(side, "h2_header_list").await?;
    }
    Ok(())
}
