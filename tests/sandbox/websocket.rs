//! WebSocket, which is an HTTP/1.1 upgrade, between a client and a server that are not ours.

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Mesh, app, gate};

use crate::foreign::script;
use crate::proof::{encrypted_requests, wrote};

tulle_tests::cases! {
    websockets_talk_both_ways_and_part_as_agreed ["websockets"];
}

/// It greets, echoes what comes, and on `bye` closes with a code of its own. Pings of its own must be answered too.
pub(crate) const SERVER: &str = r"
import threading
from websockets.sync.server import serve
def talk(socket):
    port = socket.local_address[1]
    socket.send('welcome to ' + socket.request.path)
    assert socket.ping(b'from the server').wait(10), 'no pong'
    socket.send('pong came')
    for message in socket:
        if message == 'bye':
            socket.close(4001, 'as you wish')
            return
        socket.send(message)
    print(f'{port}: the client closed {socket.close_code} {socket.close_reason}', flush=True)
def listen(port):
    serve(talk, '0.0.0.0', port, max_size=None, subprotocols=['tulle.test'], compression=None).serve_forever()
for port in (8001, 8002):
    threading.Thread(target=listen, args=(port,)).start()
";

pub(crate) const CLIENT: &str = r"
import hashlib, random, sys
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
def open(path):
    return connect(f'ws://chat:{sys.argv[1]}{path}', max_size=None, subprotocols=['tulle.test'], compression=None,
        proxy=None)
with open('/one?a=b') as socket:
    print(socket.subprotocol, socket.recv(10), socket.recv(10), sep=', ')
    assert socket.ping(b'from the client').wait(10), 'no pong'
    socket.send('text \u00fc')
    print(socket.recv(10))
    large = random.Random(1).randbytes(5_000_000)
    socket.send(large)
    assert socket.recv(10) == large
    socket.send([b'in ', b'frames'])
    print(socket.recv(10))
    socket.close(1000, 'enough')
    print('closed', socket.close_code, socket.close_reason)
with open('/two') as socket:
    print(socket.recv(10), socket.recv(10), sep=', ')
    socket.send('bye')
    try:
        print('not closed:', socket.recv(10))
    except ConnectionClosed as closed:
        print('closed', closed.rcvd.code, closed.rcvd.reason)
";

pub(crate) const EXPECTED: &str = "tulle.test, welcome to /one?a=b, pong came
text \u{fc}
b'in frames'
closed 1000 enough
welcome to /two, pong came
closed 4001 as you wish
";

async fn websockets_talk_both_ways_and_part_as_agreed(mesh: &Mesh) -> anyhow::Result<()> {
    let python = gate::python().display().to_string();
    let argv = [python.clone(), "-B".into(), format!("{FILES}/serve.py")];
    let server = app("chat")
        .command(argv)
        .file("serve.py", SERVER)
        .port("ws", 8001, 8001)
        // Declares nothing.
        .port("chat", 8002, 8002);
    let arena = mesh
        .apply("websocket-python", server + app("client"))
        .await?;
    for port in ["8001", "8002"] {
        let argv = script(&python, CLIENT, &[port]);
        let out = arena.exec("client", argv).await?.ok()?;
        ensure!(out == EXPECTED, "port {port}: {out}");
        let closed = format!("{port}: the client closed 1000 enough\n");
        wrote(&arena, "chat", &closed).await?;
    }
    encrypted_requests(&arena, "chat", 4).await
}
