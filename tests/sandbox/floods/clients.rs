//! Clients that flood: rows 13 to 16.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{App, Mesh, app, eventually};

use super::siege::{Outcome, PORT, Side, Siege, program_of};

tulle_tests::cases! {
    row_13_rapid_reset_ends_the_connection ["python3"];
    row_13_giving_up_one_after_the_other_ends_the_connection ["python3"];
    row_14_provoked_resets_are_capped_and_cancel_what_they_began ["python3"];
    row_15_a_head_that_does_not_end_ends_the_connection ["python3"];
    row_15_less_of_a_head_is_held_than_four_times_what_one_may_be ["python3"];
    row_16_frames_without_a_byte_are_not_passed_on ["python3"];
    row_16_control_frames_end_the_connection_though_their_answers_are_not_read ["python3"];
    row_16_a_connection_ends_after_so_many_control_frames ["python3"];
}

/// `ENHANCE_YOUR_CALM`.
pub(super) const CALM: u64 = 11;
/// Requests that a client may give up, and resets that it may provoke.
const GIVEN_UP: u64 = 1_000;
/// CPU time that an attack may cost, the client that behaves itself included, of a build without optimisation.
pub(super) const CPU: Duration = Duration::from_secs(1);
/// Memory that an attack may occupy.
pub(super) const MEMORY: u64 = 24 << 20;

/// An app that counts what is begun and what is cancelled.
pub(super) fn backend() -> App {
    app("web")
        .command(["python3", "-B", &format!("{FILES}/backend.py")])
        .file("backend.py", program_of(include_str!("backend.py")))
        .port("http2", PORT, PORT)
}

/// Requests that reached the app and were not answered, and those of them that it was told to give up.
pub(super) async fn counts(siege: &Siege<'_>) -> anyhow::Result<(u64, u64)> {
    let ask = "
peer, body = connect(to), []
peer.on = lambda kind, flags, stream, payload: body.append(payload) if kind == DATA else None
peer.listen().send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head(method=b'POST')))
peer.until(lambda it: it.ended)
tell(json.loads(b''.join(body)))
";
    let told = siege.ask(Side::App, ask).await?;
    let count = |name: &str| told[name].as_u64().unwrap_or(u64::MAX);
    Ok((count("hung"), count("cancelled")))
}

pub(super) fn cheap(outcome: &Outcome) -> anyhow::Result<()> {
    ensure!(outcome.cpu < CPU, "it cost too much time: {outcome:?}");
    ensure!(
        outcome.growth < MEMORY,
        "it cost too much memory: {outcome:?}"
    );
    Ok(())
}

pub(super) fn ended_calmly(outcome: &Outcome, said: &str) -> anyhow::Result<()> {
    let goaway = &outcome.told["goaway"];
    ensure!(
        goaway["code"] == CALM && goaway["debug"] == said,
        "{outcome:?}"
    );
    ensure!(
        outcome.told["closed"].is_string(),
        "it stayed open: {outcome:?}"
    );
    Ok(())
}

async fn row_13_rapid_reset_ends_the_connection(mesh: &Mesh) -> anyhow::Result<()> {
    let attack = "
peer = connect(to).listen()
burst = [get(stream) + reset(stream) for stream in range(1, 200001, 2)]
for at in range(0, len(burst), 500):
    if not peer.send(b''.join(burst[at:at + 500])):
        break
peer.gone()
tell(peer.told())
";
    let siege = Siege::new(mesh, "row-13").await?;
    for side in Side::ALL {
        for outcome in siege.stand(side, [attack]).await? {
            ended_calmly(&outcome, "too_many_resets")?;
            cheap(&outcome)?;
        }
        siege.limited(side, "h2_pending_resets").await?;
    }
    Ok(())
}

/// Streams are begun, and then something is done about each of them, again and again until the connection is refused.
const ONE_AFTER_THE_OTHER: &str = "
peer, sent = connect(to).listen(), 0
for first in range(1, 8001, 20):
    streams = range(first, first + 20, 2)
    pieces = [get(it, b'/index.html') for it in streams], [PROVOKE for it in streams]
    for piece in pieces:
        pongs = peer.pongs
        if peer.send(b''.join(piece) + frame(PING, payload=bytes(8))):
            peer.until(lambda it: it.pongs > pongs or it.closed)
    if peer.goaway or peer.closed:
        break
    sent += len(streams)
peer.gone(5)
tell(peer.told(sent=sent))
";

/// Each stream is accepted before it is reset, so that none is pending.
async fn row_13_giving_up_one_after_the_other_ends_the_connection(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let attack = ONE_AFTER_THE_OTHER.replace("PROVOKE", "reset(it)");
    let siege = Siege::of(mesh, "row-13-slow", backend()).await?;
    for side in Side::ALL {
        let before = counts(&siege).await?.0;
        let outcome = siege.stand(side, [&attack]).await?.remove(0);
        // What many share goes away in peace, and takes nothing new.
        let (code, closed) = (&outcome.told["goaway"]["code"], &outcome.told["closed"]);
        let expected = if side == Side::Peer { 0 } else { CALM };
        ensure!(
            *code == expected && closed.is_string(),
            "{side:?} {outcome:?}"
        );
        let begun = counts(&siege).await?.0 - before;
        // A tenth more in each second that it takes. On a busy machine most are given up before they get as far as the app.
        ensure!((1..2 * GIVEN_UP).contains(&begun), "{begun} of {outcome:?}");
        all_cancelled(&siege).await?;
        siege.limited(side, "h2_given_up").await?;
    }
    Ok(())
}

pub(super) async fn all_cancelled(siege: &Siege<'_>) -> anyhow::Result<()> {
    eventually(Duration::from_secs(5), async || {
        let (hung, cancelled) = counts(siege).await?;
        ensure!(hung == cancelled, "{cancelled} of {hung} were cancelled");
        Ok(())
    })
    .await
}

async fn row_14_provoked_resets_are_capped_and_cancel_what_they_began(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    // What the proxy has to reset a stream for, or the whole connection.
    let provocations = [
        // A window that overflows, and one that grows by nothing.
        "grow(it, 0x7fffffff)",
        "grow(it, 0)",
        // Something after the end.
        "frame(DATA, END_STREAM, it, b'x')",
        "get(it, b'/index.html')",
        // A stream that depends on itself, and a frame of the wrong size.
        "frame(PRIORITY, 0, it, struct.pack('>IB', it, 1))",
        "frame(PRIORITY, 0, it, b'x')",
    ];
    let attacks =
        provocations.map(|provocation| ONE_AFTER_THE_OTHER.replace("PROVOKE", provocation));
    let siege = Siege::of(mesh, "row-14", backend()).await?;
    for side in Side::ALL {
        let before = counts(&siege).await?.0;
        let outcomes = siege.stand(side, &attacks).await?;
        for (outcome, provocation) in outcomes.iter().zip(provocations) {
            let told = &outcome.told;
            let code = told["goaway"]["code"].as_u64();
            let parted = side == Side::Peer && code == Some(0);
            let refused = code.is_some_and(|code| code != 0);
            ensure!(refused || parted, "{side:?}: {provocation}: {outcome:?}");
            ensure!(
                told["closed"].is_string(),
                "{side:?}: {provocation}: {outcome:?}"
            );
            let sent = told["sent"].as_u64();
            ensure!(
                sent < Some(2 * GIVEN_UP),
                "{side:?}: {provocation}: {outcome:?}"
            );
            cheap(outcome)?;
        }
        let begun = counts(&siege).await?.0 - before;
        ensure!(begun < 4 * GIVEN_UP, "{side:?}: {begun} reached the app");
        all_cancelled(&siege).await?;
        siege.limited(side, "h2_local_resets").await?;
    }
    Ok(())
}

async fn row_15_a_head_that_does_not_end_ends_the_connection(mesh: &Mesh) -> anyhow::Result<()> {
    let pieces = [
        ("too_many_continuations", "frame(CONTINUATION, 0, 1)"),
        (
            "too_many_continuations",
            "frame(CONTINUATION, 0, 1, literal(b'a', b'b'))",
        ),
        // Each is as large as a frame can be.
        (
            "too_many_continuations",
            "frame(CONTINUATION, 0, 1, literal(b'x', b'y' * 16000))",
        ),
    ];
    let attacks = pieces.map(|(_, piece)| {
        format!(
            "
peer, sent = connect(to).listen(), 0
# Nothing else may come within a head, such as the word on the settings.
peer.until(lambda it: it.acks)
peer.send(frame(HEADERS, END_STREAM, 1, head()))
piece = {piece}
while sent < 64 << 20 and peer.send(piece * 100) and not peer.closed:
    sent += 100 * len(piece)
peer.gone()
tell(peer.told(sent=sent))
"
        )
    });
    let siege = Siege::new(mesh, "row-15").await?;
    for side in Side::ALL {
        let outcomes = siege.stand(side, &attacks).await?;
        for (outcome, (said, _)) in outcomes.iter().zip(pieces) {
            ended_calmly(outcome, said)?;
            cheap(outcome)?;
            ensure!(outcome.told["heads"] == 0, "it was answered: {outcome:?}");
        }
        siege.limited(side, "h2_continuations").await?;
    }
    Ok(())
}

/// Bytes that a head may be.
const HEADER_LIST: u64 = 16 * 1024;

/// Pieces of a head that are sent at most, of which the last is not taken.
const SENT: u64 = 5;

/// Each piece is looked at before the next one comes, so that what was taken is known. A frame can be as large as the whole
/// limit, and what is beyond that is thrown away: so this is about what is held of heads that have not ended yet.
async fn row_15_less_of_a_head_is_held_than_four_times_what_one_may_be(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pieces = [
        "b''",
        "literal(b'a', b'b')",
        "literal(b'x', b'y' * 1000)",
        "literal(b'x', b'y' * 8000)",
        "literal(b'x', b'y' * 16000)",
        // One field that never ends.
        "(b'\\x00\\x01x\\x7f\\x81\\xff\\xff\\x07' if begins else b'') + b'y' * 16000",
        // References to what is remembered, a byte each.
        "remembered(b'x', b'y' * 1000) if begins else indexed(62) * 8",
    ];
    let attacks = pieces.map(|piece| {
        format!(
            "
peer, taken, begins = connect(to).listen(), 0, True
peer.until(lambda it: it.acks)
peer.send(frame(HEADERS, END_STREAM, 1, head()))
while taken < 1 << 20 and not peer.until(lambda it: it.goaway or it.closed, 0.1):
    piece = {piece}
    peer.send(frame(CONTINUATION, 0, 1, piece))
    taken, begins = taken + len(piece), False
peer.gone()
tell(peer.told(taken=taken))
"
        )
    });
    let siege = Siege::new(mesh, "row-15-bytes").await?;
    for side in Side::ALL {
        for (outcome, piece) in siege.stand(side, &attacks).await?.iter().zip(pieces) {
            let taken = outcome.told["taken"].as_u64();
            let ended = outcome.told["goaway"]["code"].as_u64() > Some(0);
            ensure!(
                ended && taken.is_some_and(|taken| taken <= SENT * HEADER_LIST),
                "{side:?}: {piece}: {outcome:?}"
            );
            cheap(outcome)?;
        }
        let outcome = siege.stand(side, [UNENDED]).await?.remove(0);
        let open = outcome.told["open"].as_u64();
        ensure!(open == Some(PEERS), "{side:?}: {outcome:?}");
        ensure!(
            outcome.growth < PEERS * (4 * HEADER_LIST + CONNECTION),
            "{side:?}: {outcome:?}"
        );
    }
    Ok(())
}

/// Connections that each leave a head open, and what each takes by itself: TLS, and a buffer of 16 KiB each way.
const PEERS: u64 = 50;
const CONNECTION: u64 = 48 * 1024;
/// As much of a head on each as does not end its connection.
const UNENDED: &str = "
peers = [connect(to).listen() for _ in range(50)]
for peer in peers:
    peer.until(lambda it: it.acks)
    peer.send(frame(HEADERS, END_STREAM, 1, head(more=literal(b'x', b'y' * 16000))))
    peer.send(frame(CONTINUATION, 0, 1, literal(b'x', b'y' * 16000)) * 3)
time.sleep(1)
tell(dict(open=sum(not peer.goaway and not peer.closed for peer in peers)))
";

async fn row_16_control_frames_end_the_connection_though_their_answers_are_not_read(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let floods = [
        ("b''", "settings(window=65535)"),
        ("b''", "frame(SETTINGS)"),
        ("b''", "frame(PING, payload=bytes(8))"),
        ("b''", "frame(PING, ACK, payload=bytes(8))"),
        ("b''", "frame(PRIORITY, 0, 7, struct.pack('>IB', 0, 1))"),
        ("b''", "grow(0, 1)"),
        ("get(1, end=False)", "grow(1, 1)"),
        ("get(1)", "reset(1)"),
        ("b''", "frame(0xbe, 0, 1, b'nobody knows')"),
        ("get(1, end=False)", "frame(DATA, 0, 1)"),
        // Padded, with nothing else in it.
        (
            "get(1, end=False)",
            "frame(DATA, 8, 1, bytes([200] + 200 * [0]))",
        ),
    ];
    let attacks = floods.map(|(first, piece)| {
        format!(
            "
peer = connect(to, polite=False, receive=4096)
peer.send({first})
sent = peer.push({piece} * (200000 // len({piece})))
peer.sock.settimeout(10)
peer.read()
tell(peer.told(sent=sent // len({piece})))
"
        )
    });
    let siege = Siege::new(mesh, "row-16").await?;
    for side in Side::ALL {
        let outcomes = siege.stand(side, &attacks).await?;
        for (outcome, (_, piece)) in outcomes.iter().zip(floods) {
            let code = &outcome.told["goaway"]["code"];
            ensure!(*code == CALM, "{side:?}: {piece}: {outcome:?}");
            cheap(outcome)?;
        }
        siege.limited(side, "h2_control_frames").await?;
        siege.limited(side, "h2_data_frames").await?;
    }
    Ok(())
}

/// So many control frames of any kind are let pass beyond what requests need.
const CONTROL_FRAMES: u64 = 1_000;

/// A thousand frames are nothing to end a connection for, and what goes on ends it, whatever they are: so no more answers than
/// that can ever wait for somebody who does not read them.
async fn row_16_a_connection_ends_after_so_many_control_frames(mesh: &Mesh) -> anyhow::Result<()> {
    const EACH: u64 = 100;
    let kinds = [
        "settings(window=65535)",
        "frame(SETTINGS)",
        "frame(PING, payload=bytes(8))",
        "frame(PING, ACK, payload=bytes(8))",
        "frame(PRIORITY, 0, 0x777, struct.pack('>IB', 0, 1))",
        "grow(0, 1)",
        "reset(1)",
        "frame(0xbe, 0, 1, b'nobody knows')",
    ];
    // A request after each hundred is answered when they have been looked at.
    let attacks = kinds.map(|piece| {
        format!(
            "
peer, sent, begun = connect(to).listen(), 0, time.time()
peer.send(get(1))
peer.until(lambda it: 1 in it.ended)
for stream in range(3, 1003, 2):
    peer.send({piece} * {EACH} + get(stream))
    if not peer.until(lambda it: stream in it.ended or it.closed) or stream not in peer.ended:
        break
    sent += {EACH}
peer.gone()
tell(peer.told(sent=sent, took=time.time() - begun))
"
        )
    });
    let siege = Siege::new(mesh, "row-16-number").await?;
    for side in Side::ALL {
        let outcomes = siege.stand(side, &attacks).await?;
        for (outcome, piece) in outcomes.iter().zip(kinds) {
            let code = &outcome.told["goaway"]["code"];
            ensure!(*code == CALM, "{side:?}: {piece}: {outcome:?}");
            let sent = outcome.told["sent"].as_u64().unwrap_or_default();
            // A tenth more in each second, and ten for each request.
            let took = outcome.told["took"].as_f64().unwrap_or_default();
            let most = CONTROL_FRAMES + 2 * EACH + (took * 100.0) as u64;
            ensure!(
                (CONTROL_FRAMES..most).contains(&sent),
                "{side:?}: {piece}: {sent} frames were taken: {outcome:?}"
            );
            cheap(outcome)?;
        }
        siege.limited(side, "h2_control_frames").await?;
    }
    Ok(())
}

/// A connection between sidecars is everybody's: what each client may send of them must not add up there.
async fn row_16_frames_without_a_byte_are_not_passed_on(mesh: &Mesh) -> anyhow::Result<()> {
    let attack = "
peers = [connect(to).listen() for _ in range(4)]
for peer in peers:
    peer.send(get(1, end=False) + frame(DATA, 0, 1) * 90 + frame(DATA, END_STREAM, 1, b'x'))
for peer in peers:
    peer.until(lambda it: it.ended or it.closed)
tell(dict(answered=sum(bool(peer.ended) and peer.heads[1].startswith('88') for peer in peers)))
";
    let siege = Siege::new(mesh, "row-16-empty").await?;
    for outcome in siege.stand(Side::App, [attack, attack]).await? {
        ensure!(outcome.told["answered"] == 4, "{outcome:?}");
    }
    for side in [Side::App, Side::Peer] {
        let metrics = siege.arena.metrics(side.victim()).await?;
        let reached = metrics.sum("tulle_limits_reached_total", &[]);
        ensure!(reached == 0.0, "{side:?}: {}", metrics.text());
    }
    Ok(())
}
