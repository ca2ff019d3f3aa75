//! Streams that live long: they outlast every change of the config. Row 23.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tulle_tests::manifests::FILES;
use tulle_tests::{App, Arena, Mesh, app, eventually, gate};

use crate::foreign::script;

tulle_tests::cases! {
    row_23_streams_survive_every_change_of_the_config ["grpcio", "websockets"];
}

/// Echoes messages of a gRPC stream on one port, and of a WebSocket on another.
const SERVER: &str = r"
import concurrent.futures, grpc, threading
from websockets.sync.server import serve
def both(requests, context):
    for request in requests:
        yield request[::-1]
handlers = {'Both': grpc.stream_stream_rpc_method_handler(both)}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('test.Echo', handlers),))
server.add_insecure_port('0.0.0.0:9000')
server.start()
def talk(socket):
    for message in socket:
        socket.send(message[::-1])
serve(talk, '0.0.0.0', 8001, compression=None).serve_forever()
";

/// Talks to it over one stream until its own input ends, message by message, and says then how many came back.
const CLIENT: &str = r"
import queue, select, sys, time
def goes_on(seconds):
    return not select.select([sys.stdin], [], [], seconds)[0]
def talk(say):
    number = 0
    while goes_on(0.02) or number < 20:
        if number == 5:
            # Nothing is said for longer than anything else may be idle.
            time.sleep(3)
        word = b'message %d' % number
        assert say(word) == word[::-1]
        number += 1
    return number
if sys.argv[1] == 'grpc':
    import grpc
    channel = grpc.insecure_channel('echo:9000')
    requests = queue.Queue()
    answers = channel.stream_stream('/test.Echo/Both')(iter(requests.get, None))
    def say(word):
        requests.put(word)
        return next(answers)
    number = talk(say)
    requests.put(None)
    assert not list(answers)
else:
    from websockets.sync.client import connect
    with connect('ws://echo:8001/', compression=None, proxy=None) as socket:
        def say(word):
            socket.send(word)
            return socket.recv(20)
        number = talk(say)
print('whole', number)
";

/// Times after which a sidecar of these pods ends what has nothing on it, or stands still. A stream is none of that, however
/// silent.
const PATIENCE: [&str; 5] = [
    "idle-timeout",
    "first-request-timeout",
    "body-timeout",
    "unread-timeout",
    "flush-timeout",
];
const DEADLINE: Duration = Duration::from_secs(20);
/// Changes of the config while the streams are open.
const ROUNDS: usize = 8;

/// Routes of both ports, whose answers carry the round, and who may call.
fn config(round: usize) -> String {
    let mode = if round.is_multiple_of(2) {
        "PERMISSIVE"
    } else {
        "STRICT"
    };
    let route = |port: u16| {
        format!(
            r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: echo-{port} }}
spec:
  parentRefs: [{{ group: "", kind: Service, name: echo, port: {port} }}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{ set: [{{ name: x-round, value: round-{round}-of-{port} }}] }}
    backendRefs: [{{ name: echo, port: {port} }}]
"#
        )
    };
    format!(
        "{}{}\n---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{ name: default }}\n\
         spec: {{ mtls: {{ mode: {mode} }} }}\n",
        route(8001),
        route(9000)
    )
}

async fn row_23_streams_survive_every_change_of_the_config(mesh: &Mesh) -> anyhow::Result<()> {
    let python = gate::python().display().to_string();
    let argv = [python.clone(), "-B".into(), format!("{FILES}/serve.py")];
    let echo = app("echo")
        .command(argv)
        .file("serve.py", SERVER)
        .port("ws", 8001, 8001)
        .port("grpc", 9000, 9000);
    let impatient = |app: App| {
        PATIENCE.iter().fold(app, |app, name| {
            app.annotate(&format!("limits.tulle.dev/{name}"), "1s")
        })
    };
    let more = app("more").http(8080);
    let manifests = impatient(echo) + more + impatient(app("client"));
    let apps = manifests.as_ref().to_owned();
    let arena = mesh
        .apply("long-streams", format!("{apps}{}", config(0)))
        .await?;
    let start = |kind: &str| arena.spawn("client", script(&python, CLIENT, &[kind]));
    let streams = [("grpc", start("grpc")?), ("websocket", start("websocket")?)];
    begun(&arena, 2.0).await?;
    in_effect(&arena, 0).await?;
    for round in 1..=ROUNDS {
        arena.edit(|_| format!("{apps}{}", config(round)))?;
        // Endpoints come and go as well: those of the streams' own service, whose first one stays.
        arena
            .mesh()
            .sandbox
            .scale(&arena.key("echo"), 1 + round % 2)?;
        in_effect(&arena, round).await?;
    }
    for (kind, stream) in streams {
        let said = ended(stream).await;
        let said = said.with_context(|| format!("{kind}: {:?}", arena.access_log("client")))?;
        let number = said.trim().strip_prefix("whole ");
        let number: usize = number.with_context(|| format!("{kind}: {said}"))?.parse()?;
        ensure!(number > 2 * ROUNDS, "{kind}: {number} messages");
    }
    for pod in ["client", "echo"] {
        eventually(DEADLINE, async || {
            let log = arena.access_log(pod)?;
            let lines = log.iter().filter(|line| {
                let path = line["path"].as_str();
                path == Some("/") || path == Some("/test.Echo/Both")
            });
            let flags: Vec<_> = lines.map(|line| &line["response_flags"]).collect();
            ensure!(
                flags.len() == 2 && flags.iter().all(|it| *it == "-"),
                "{pod}: {log:?}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The client's sidecar works by the config of that round.
async fn in_effect(arena: &Arena<'_>, round: usize) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let dump = arena.admin("client", "/config_dump").await?.to_string();
        for port in [8001, 9000] {
            let mark = format!("round-{round}-of-{port}");
            ensure!(dump.contains(&mark), "{mark} is not there");
        }
        Ok(())
    })
    .await
}

/// So many streams are open at the server's sidecar.
async fn begun(arena: &Arena<'_>, number: f64) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let metrics = arena.metrics("echo").await?;
        let inbound = [("direction", "inbound")];
        let open = metrics.sum("tulle_downstream_connections_open", &inbound);
        ensure!(open >= number, "{open} connections are open");
        Ok(())
    })
    .await
}

/// Has a client end, and hears what it has to say.
async fn ended(mut stream: Child) -> anyhow::Result<String> {
    drop(stream.stdin.take());
    let (mut said, mut errors) = (String::new(), String::new());
    let mut stdout = stream.stdout.take().context("no output")?;
    let mut stderr = stream.stderr.take().context("no errors")?;
    let hearing = async {
        tokio::try_join!(
            stdout.read_to_string(&mut said),
            stderr.read_to_string(&mut errors)
        )
    };
    tokio::time::timeout(DEADLINE, hearing)
        .await
        .context("it does not end")??;
    ensure!(stream.wait().await?.success(), "{errors}");
    Ok(said)
}
