//! Servers that flood: apps that a sidecar hands requests to, and what it calls on behalf of its app. Rows 15 to 18.

use anyhow::ensure;
use serde_json::{Value, json};
use tulle_tests::manifests::{FILES, Manifests};
use tulle_tests::{App, Mesh, app, eventually};

use super::clients::{CALM, cheap};
use super::siege::{Outcome, PORT, Side, Siege, program_of, stranger};

tulle_tests::cases! {
    row_15_an_answers_head_that_does_not_end_ends_the_connection ["python3"];
    row_16_control_frames_of_a_server_end_the_connection ["python3"];
    row_17_an_answers_head_counts_as_it_is_decoded ["python3"];
    row_18_settings_of_a_hostile_server_do_no_harm ["python3"];
    row_28_an_answer_after_the_end_of_its_stream_does_no_harm ["python3"];
}

/// Port of an app beside an honest one in the same pod.
const BESIDE: u16 = 8081;

/// Who answers, and so whose sidecar has to stand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// An app, towards its own sidecar.
    App,
    /// Something outside the mesh.
    Outsider,
    /// Whoever holds the certificate of a workload of the mesh.
    Peer,
}

impl Server {
    const ALL: [Self; 3] = [Self::App, Self::Outsider, Self::Peer];

    fn pod(self) -> &'static str {
        match self {
            Self::App => "web",
            Self::Outsider => "rogue",
            Self::Peer => "mole",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::App => BESIDE,
            Self::Outsider | Self::Peer => PORT,
        }
    }

    /// The side whose sidecar is its client.
    fn side(self) -> Side {
        match self {
            Self::App => Side::Peer,
            Self::Outsider | Self::Peer => Side::App,
        }
    }
}

fn hostile(name: &str, port: u16) -> App {
    app(name)
        .command([
            "python3",
            "-B",
            &format!("{FILES}/hostile.py"),
            &port.to_string(),
        ])
        .file("hostile.py", program_of(include_str!("hostile.py")))
        .port("http2", port, port)
}

/// An honest app with a hostile one beside it, and hostile servers without a sidecar, one of which says that it has one.
fn pods() -> Manifests {
    let honest = include_str!("backend.py");
    let both = format!(
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-B', '{FILES}/hostile.py', '{BESIDE}'])\n{}",
        program_of(honest)
    );
    let web = app("web")
        .command(["python3", "-B", &format!("{FILES}/both.py")])
        .file("both.py", both)
        .file("hostile.py", program_of(include_str!("hostile.py")))
        .port("http2", PORT, PORT)
        .port("http2-beside", BESIDE, BESIDE);
    let outside = |name| hostile(name, PORT).annotate("tulle.dev/inject", "disabled");
    let mole = outside("mole").yaml();
    let mole = mole.replace(
        r#""app":"mole""#,
        r#""app":"mole","tulle.dev/proxied":"true""#,
    );
    let mole = mole.replace(
        r#""serviceAccountName":"mole""#,
        r#""serviceAccountName":"client""#,
    );
    web + app("client") + stranger() + outside("rogue") + mole.as_str()
}

/// What a client of the mesh gets who calls: how often it is answered, and how often not.
const CALL: &str = "
answered = 0
for _ in range(TIMES):
    peer = connect(to).listen()
    peer.send(BODY)
    peer.until(lambda it: it.ended or it.resets or it.closed, 5)
    answered += bool(peer.ended) and not peer.resets and peer.heads[1].startswith('88')
    peer.sock.close()
tell(dict(answered=answered))
";

/// A behaviour, how often it is called, and with what.
struct Act {
    behave: &'static str,
    body: &'static str,
    times: usize,
}

const fn act(behave: &'static str) -> Act {
    Act {
        behave,
        body: "get(1)",
        times: 1,
    }
}

/// Orders a server, or asks it.
async fn order(siege: &Siege<'_>, server: Server, order: &Value) -> anyhow::Result<Value> {
    let host = siege.arena.pod(server.pod())?.ips.v4.to_string();
    let to = json!({ "host": host, "port": 9999, "order": order });
    let code = "
s = socket.create_connection((to['host'], to['port']), 10)
s.sendall(json.dumps(to['order']).encode() + b'\\n')
print(s.makefile().read())
";
    siege.run(Side::Stranger, &to, code).await
}

/// Has a server do something, calls it, and watches its client's sidecar. What the client got, and what the server saw
/// of each connection.
async fn play(
    siege: &Siege<'_>,
    server: Server,
    acts: &[Act],
) -> anyhow::Result<Vec<(Outcome, Vec<Value>)>> {
    let victim = server.side().victim();
    siege
        .watch(victim, async |watched| {
            let mut played = Vec::new();
            for act in acts {
                let svid = (server == Server::Peer).then_some(siege.svid());
                let behave = json!({ "behave": act.behave, "svid": svid });
                order(siege, server, &behave).await?;
                let to = json!({ "host": server.pod(), "port": server.port() });
                let call = CALL
                    .replace("TIMES", &act.times.to_string())
                    .replace("BODY", act.body);
                let outcome = watched.during(siege.run(Side::App, &to, &call)).await?;
                let seen = eventually(std::time::Duration::from_secs(8), async || {
                    let seen = order(siege, server, &json!({})).await?;
                    let seen = seen.as_array().cloned().unwrap_or_default();
                    ensure!(!seen.is_empty(), "{server:?} was not called: {outcome:?}");
                    Ok(seen)
                })
                .await?;
                played.push((outcome, seen));
            }
            Ok(played)
        })
        .await
}

/// A connection was ended by the sidecar with that code.
fn refused(seen: &[Value], code: u64) -> bool {
    seen.iter()
        .any(|it| it["goaway"]["code"] == code && it["closed"].is_string())
}

async fn refuses(mesh: &Mesh, name: &str, limits: &[&str], acts: &[Act]) -> anyhow::Result<()> {
    let siege = Siege::with(mesh, name, pods()).await?;
    for server in Server::ALL {
        let played = play(&siege, server, acts).await?;
        for ((outcome, seen), act) in played.iter().zip(acts) {
            ensure!(
                refused(seen, CALM),
                "{server:?}: {}: {outcome:?} {seen:?}",
                act.behave
            );
            cheap(outcome)?;
        }
        for limit in limits {
            siege.counted(server.side(), &[limit]).await?;
        }
    }
    Ok(())
}

async fn row_15_an_answers_head_that_does_not_end_ends_the_connection(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let acts = [
        act("
peer.send(settings())
peer.listen().until(lambda it: it.heads)
peer.send(frame(HEADERS, 0, peer.opened[0], b'\\x88'))
while not peer.closed and peer.send(frame(CONTINUATION, 0, peer.opened[0]) * 100):
    pass
peer.gone()
"),
        act("
peer.send(settings())
peer.listen().until(lambda it: it.heads)
peer.send(frame(HEADERS, 0, peer.opened[0], b'\\x88'))
while not peer.closed and peer.send(frame(CONTINUATION, 0, peer.opened[0], literal(b'x', b'y' * 16000))):
    pass
peer.gone()
"),
    ];
    refuses(mesh, "row-15-server", &["h2_continuations"], &acts).await
}

async fn row_16_control_frames_of_a_server_end_the_connection(mesh: &Mesh) -> anyhow::Result<()> {
    let flood = |piece: &str| {
        let behave = format!(
            "
peer.send(settings())
peer.listen().until(lambda it: it.heads)
piece = {piece}
for _ in range(100):
    if peer.closed or not peer.send(piece * 200):
        break
peer.gone()
"
        );
        act(Box::leak(behave.into_boxed_str()))
    };
    let acts = [
        flood("frame(PING, payload=bytes(8))"),
        flood("settings(window=65535)"),
        flood("frame(PRIORITY, 0, 1, struct.pack('>IB', 0, 1))"),
        flood("grow(0, 1)"),
        flood("grow(peer.opened[0], 1)"),
        flood("frame(0xbe, 0, 1, b'nobody knows')"),
        flood("frame(GOAWAY, payload=struct.pack('>II', 0x7fffffff, 0))"),
    ];
    refuses(mesh, "row-16-server", &["h2_control_frames"], &acts).await
}

async fn row_17_an_answers_head_counts_as_it_is_decoded(mesh: &Mesh) -> anyhow::Result<()> {
    let acts = [act("
peer.send(settings())
peer.listen().until(lambda it: it.heads)
bomb = b'\\x88' + remembered(b'x', b'y' * 4000) + indexed(62) * 12000
peer.send(frame(HEADERS, END_HEADERS | END_STREAM, peer.opened[0], bomb))
peer.gone()
")];
    refuses(mesh, "row-17-server", &["h2_header_list"], &acts).await
}

/// Answers, but not before it has said something about its settings.
macro_rules! settings {
    ($first:literal, $then:literal) => {
        concat!(
            "
peer.send(",
            $first,
            ")
done = set()
def on(kind, flags, stream, payload):
    if kind in (DATA, HEADERS) and flags & END_STREAM and stream not in done:
        done.add(stream)
        ",
            $then,
            "
        peer.send(answer(stream))
peer.on = on
peer.read()
"
        )
    };
}

async fn row_18_settings_of_a_hostile_server_do_no_harm(mesh: &Mesh) -> anyhow::Result<()> {
    // What it says about itself is odd, but it answers in the end, and so does the sidecar.
    let answered = [
        act(settings!("settings(table=0xffffffff)", "pass")),
        act(settings!(
            "settings(table=0)",
            "peer.send(settings(table=0xffffffff) + settings(table=0))"
        )),
        act(settings!(
            "settings()",
            "peer.send(frame(GOAWAY, payload=struct.pack('>II', stream, 0)) + settings(streams=0))"
        )),
        act(settings!(
            "settings(streams=1)",
            "peer.send(settings(streams=0) + settings(streams=1))"
        )),
        act(settings!("settings(frame=0xffffff, headers=1)", "pass")),
        Act {
            // Its window is shut, taken back, and opened again in the middle of a body.
            behave: "
peer.send(settings(window=65535))
def on(kind, flags, stream, payload):
    if kind == HEADERS:
        peer.send(settings(window=0) + settings(window=10) + settings(window=0))
        peer.send(grow(stream, 200000) + grow(0, 200000))
    if kind == DATA and flags & END_STREAM:
        peer.more['body'] = peer.data
        peer.send(answer(stream))
peer.on = on
peer.read()
",
            body: "get(1, end=False) + b''.join(frame(DATA, 0, 1, bytes(10000)) for _ in range(6)) + frame(DATA, END_STREAM, 1)",
            times: 1,
        },
    ];
    // What breaks the rules costs the connection, and what was on it.
    let broken = [
        act("peer.send(settings(window=0x80000000))\npeer.read()"),
        act("peer.send(settings(frame=100))\npeer.read()"),
        act("peer.send(settings() + grow(0, 0x7fffffff))\npeer.read()"),
        Act {
            behave: "
peer.send(settings())
peer.listen().until(lambda it: it.heads)
peer.send(settings(window=0x7fffffff) + grow(peer.opened[0], 0x7fffffff))
peer.gone()
",
            body: "get(1, end=False)",
            times: 1,
        },
        act("peer.send(frame(SETTINGS, 0, 0, bytes(5)))\npeer.read()"),
        act("
peer.send(settings())
peer.listen().until(lambda it: it.heads)
peer.send(frame(PUSH, END_HEADERS, peer.opened[0], struct.pack('>I', 2) + head()))
peer.gone()
"),
    ];
    let siege = Siege::with(mesh, "row-18", pods()).await?;
    for server in Server::ALL {
        let played = play(&siege, server, &answered).await?;
        for ((outcome, seen), act) in played.iter().zip(&answered) {
            ensure!(
                outcome.told["answered"] == act.times,
                "{server:?}: {}: {outcome:?} {seen:?}",
                act.behave
            );
            cheap(outcome)?;
        }
        let whole = played
            .last()
            .is_some_and(|(_, seen)| seen.iter().any(|it| it["body"] == 60_000));
        ensure!(whole, "{server:?}: the body did not arrive: {played:?}");
        let played = play(&siege, server, &broken).await?;
        for ((outcome, seen), act) in played.iter().zip(&broken) {
            let ended = seen.iter().all(|it| it["closed"].is_string());
            let told = seen.iter().any(|it| {
                it["goaway"]["code"].as_u64() > Some(0) || it["resets"].as_u64() > Some(0)
            });
            ensure!(
                told || ended,
                "{server:?}: {}: {outcome:?} {seen:?}",
                act.behave
            );
            ensure!(
                outcome.told["answered"] == 0,
                "{server:?}: {}: {outcome:?}",
                act.behave
            );
            cheap(outcome)?;
        }
    }
    Ok(())
}

async fn row_28_an_answer_after_the_end_of_its_stream_does_no_harm(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let after = |what: &str| {
        let behave = format!(
            "
peer.send(settings())
def on(kind, flags, stream, payload):
    if kind == HEADERS:
        peer.send({what})
peer.on = on
peer.read()
"
        );
        Act {
            behave: Box::leak(behave.into_boxed_str()),
            body: "get(1)",
            times: 5,
        }
    };
    let acts = [
        after("reset(stream) + answer(stream)"),
        after("answer(stream) + frame(DATA, 0, stream, b'more')"),
        after(
            "answer(stream) + frame(HEADERS, END_STREAM | END_HEADERS, stream, literal(b'x', b'y'))",
        ),
        after("answer(stream) + reset(stream) + frame(DATA, 0, stream, b'more') + grow(stream, 1)"),
        after(
            "frame(HEADERS, END_HEADERS, stream, b'\\x88') + reset(stream) + frame(DATA, END_STREAM, stream, b'x')",
        ),
        after("frame(DATA, 0, 0x7ffffff1, b'to nobody')"),
    ];
    let siege = Siege::with(mesh, "row-28-server", pods()).await?;
    for server in Server::ALL {
        for (outcome, _) in play(&siege, server, &acts).await? {
            cheap(&outcome)?;
        }
        siege.no_panic("web").await?;
        siege.no_panic("client").await?;
        // And it is called again when it has come to its senses.
        let honest = [act(settings!("settings()", "pass"))];
        for (outcome, seen) in play(&siege, server, &honest).await? {
            ensure!(
                outcome.told["answered"] == 1,
                "{server:?}: {outcome:?} {seen:?}"
            );
        }
    }
    Ok(())
}
