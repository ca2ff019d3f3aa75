//! Limits on HTTP/2 as a pod sets them: what is within them passes, and what is beyond them does not.

use anyhow::{Context as _, ensure};
use tulle_tests::Mesh;

use super::clients::{CALM, backend};
use super::siege::{Side, Siege};

tulle_tests::cases! {
    limits_on_http2_are_where_the_pod_sets_them ["python3"];
}

const SET: [(&str, &str); 8] = [
    ("max-connections", "20"),
    ("h2-max-streams", "10"),
    ("h2-max-header-list", "4Ki"),
    ("h2-pending-resets", "8"),
    ("h2-local-resets", "10"),
    ("h2-given-up", "10"),
    ("h2-control-frames", "50"),
    ("flush-timeout", "1s"),
];

/// What is sent within a limit and then beyond it, and what the connection ends with.
struct Step {
    limit: &'static str,
    within: &'static str,
    beyond: &'static str,
    says: Option<&'static str>,
}

const STEPS: [Step; 5] = [
    Step {
        limit: "h2_header_list",
        within: "peer.send(get(1, more=literal(b'x', b'y' * 3000)))",
        beyond: "peer.send(get(3, more=remembered(b'x', b'y' * 4000) + indexed(62) * 5))",
        says: Some("header_list_way_too_large"),
    },
    Step {
        limit: "h2_pending_resets",
        within: "peer.send(b''.join(get(it) + reset(it) for it in range(1, 9, 2)))",
        beyond: "peer.send(b''.join(get(it) + reset(it) for it in range(11, 211, 2)))",
        says: Some("too_many_resets"),
    },
    Step {
        limit: "h2_local_resets",
        within: "peer.send(b''.join(get(it, b'/index.html') + grow(it, 0x7fffffff) for it in range(1, 13, 2)))",
        beyond: "peer.send(b''.join(get(it, b'/index.html') + grow(it, 0x7fffffff) for it in range(13, 53, 2)))",
        says: Some("too_many_internal_resets"),
    },
    Step {
        limit: "h2_given_up",
        within: "give_up(1)",
        beyond: "[give_up(first) for first in range(9, 97, 8)]",
        says: None,
    },
    Step {
        limit: "h2_control_frames",
        within: "peer.send(frame(PING, payload=bytes(8)) * 40)",
        beyond: "peer.send(frame(PING, payload=bytes(8)) * 400)",
        says: None,
    },
];

/// Four requests that the app has, and that are given up then.
const GIVE_UP: &str = "
def give_up(first):
    streams = range(first, first + 8, 2)
    for pieces in [get(it, b'/index.html') for it in streams], [reset(it) for it in streams]:
        pongs = peer.pongs
        peer.send(b''.join(pieces) + frame(PING, payload=bytes(8)))
        peer.until(lambda it: it.pongs > pongs or it.closed, 5)
";

async fn limits_on_http2_are_where_the_pod_sets_them(mesh: &Mesh) -> anyhow::Result<()> {
    let web = SET.iter().fold(backend(), |web, (name, value)| {
        web.annotate(&format!("limits.tulle.dev/{name}"), value)
    });
    let siege = Siege::of(mesh, "configured", web).await?;
    let side = Side::Stranger;
    for step in STEPS {
        let Step {
            limit,
            within,
            beyond,
            says,
        } = step;
        // 301 is answered as long as the connection lives.
        let program = format!(
            "
peer = connect(to).listen()
{GIVE_UP}
{within}
peer.send(get(301))
lived = peer.until(lambda it: 301 in it.ended, 5)
peer = connect(to).listen()
{within}
{beyond}
peer.gone(10)
tell(peer.told(lived=lived))
"
        );
        let told = siege.ask(side, &program).await.context(limit)?;
        ensure!(told["lived"] == true, "{limit}: within it: {told}");
        let goaway = &told["goaway"];
        let said = says.is_none_or(|says| goaway["debug"] == says);
        ensure!(goaway["code"] == CALM && said, "{limit}: beyond it: {told}");
        siege.counted(side, &[limit]).await?;
    }

    let eleven = "
peer = connect(to).listen()
peer.send(b''.join(get(it, b'/index.html') for it in range(1, 23, 2)))
peer.until(lambda it: it.resets or it.closed, 5)
tell(peer.told(refused=sorted(peer.resets.items())))
";
    let told = siege.ask(side, eleven).await?;
    let refused = serde_json::json!([[21, 7]]);
    ensure!(told["refused"] == refused, "the eleventh stream: {told}");
    siege.counted(side, &["h2_streams"]).await?;

    let untaken = "
peer = connect(to, window=0).listen()
peer.send(get(1, b'/big'))
tell(dict(cut=bool(peer.until(lambda it: it.resets, 8))))
";
    let told = siege.ask(side, untaken).await?;
    ensure!(told["cut"] == true, "an answer that nobody takes: {told}");
    siege.counted(side, &["h2_flush"]).await?;

    let many = "
open = [socket.create_connection((to['host'], to['port']), 5) for _ in range(40)]
time.sleep(0.5)
tell(dict(open=len(open)))
";
    siege.ask(side, many).await?;
    siege.counted(side, &["connections"]).await
}
