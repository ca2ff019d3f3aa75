//! SMTP, in which the server speaks first, between programs that are not ours.

use anyhow::{Context as _, ensure};
use tulle_tests::manifests::FILES;
use tulle_tests::{App, Mesh, app, gate};

use crate::foreign::script;
use crate::proof::{encrypted_connections, wrote};

tulle_tests::cases! {
    mail_of_curl_and_smtplib_reaches_aiosmtpd_whole ["aiosmtpd", "curl"];
    a_greeting_waits_for_nothing_where_tcp_is_declared_and_for_the_budget_elsewhere ["aiosmtpd"];
}

/// One port declares TCP, the other declares nothing.
const PORTS: [(&str, u16); 2] = [("tcp-smtp", 2525), ("mail", 2526)];

/// Prints each mail's port, length and digest.
const SERVER: &str = r"
import hashlib, signal
from aiosmtpd.controller import Controller
class Digest:
    def __init__(self, port): self.port = port
    async def handle_DATA(self, server, session, envelope):
        content = envelope.content
        print(self.port, len(content), hashlib.sha256(content).hexdigest(), flush=True)
        return '250 taken'
for port in (2525, 2526):
    Controller(Digest(port), hostname='0.0.0.0', port=port, server_hostname='mail').start()
signal.pause()
";

/// Sends a mail over the port, and prints what the server prints of it.
const SEND: &str = r"
import hashlib, smtplib, sys
port = int(sys.argv[1])
content = b'Subject: long\r\n\r\n' + b''.join(b'line %08d of a mail\r\n' % n for n in range(100000))
with smtplib.SMTP('mail', port, local_hostname='client', timeout=15) as client:
    refused = client.sendmail('a@client', ['b@mail'], content)
assert not refused, refused
print(port, len(content), hashlib.sha256(content).hexdigest())
";

/// Prints the fastest of five greetings, in seconds. Each session ends as the protocol says, to its last byte.
const GREET: &str = r"
import socket, sys, time
fastest = 1000
for attempt in range(5):
    started = time.monotonic()
    with socket.create_connection(('mail', int(sys.argv[1])), 15) as s:
        s.settimeout(15)
        reader = s.makefile('rb')
        line = reader.readline()
        fastest = min(fastest, time.monotonic() - started)
        assert line.startswith(b'220 mail '), line
        s.sendall(b'QUIT\r\n')
        rest = reader.read()
        assert rest == b'221 Bye\r\n', rest
print(fastest)
";

fn mail() -> App {
    let python = gate::python().display().to_string();
    let file = format!("{FILES}/serve.py");
    let server = app("mail")
        .command([python, "-B".to_owned(), file])
        .file("serve.py", SERVER);
    PORTS
        .into_iter()
        .fold(server, |server, (name, port)| server.port(name, port, port))
}

async fn mail_of_curl_and_smtplib_reaches_aiosmtpd_whole(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh.apply("smtp-mail", mail() + app("client")).await?;
    let python = gate::python().display().to_string();
    let word = "a-word-that-only-this-mail-says";
    let capture = mesh.sandbox.capture()?;
    for (_, port) in PORTS {
        let port = port.to_string();
        let sent = arena
            .exec("client", script(&python, SEND, &[&port]))
            .await?
            .ok()?;
        wrote(&arena, "mail", sent.trim()).await?;
        let line = format!(
            "printf 'Subject: short\\r\\n\\r\\n{word}\\r\\n' | curl -sS --max-time 15 \
             smtp://mail:{port}/client --mail-from a@client --mail-rcpt b@mail --upload-file -"
        );
        arena.exec("client", ["sh", "-c", &line]).await?.ok()?;
        let length = format!("Subject: short\r\n\r\n{word}\r\n").len();
        wrote(&arena, "mail", &format!("{port} {length} ")).await?;
    }
    capture.settle().await;
    ensure!(capture.frames() > 0, "the capture saw nothing at all");
    ensure!(
        !capture.contains(word.as_bytes()),
        "the mail crossed the bridge in plaintext"
    );
    encrypted_connections(&arena, "mail", 4).await
}

async fn a_greeting_waits_for_nothing_where_tcp_is_declared_and_for_the_budget_elsewhere(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let arena = mesh.apply("smtp-greeting", mail() + app("client")).await?;
    let python = gate::python().display().to_string();
    let mut fastest = Vec::new();
    for (_, port) in PORTS {
        let argv = script(&python, GREET, &[&port.to_string()]);
        let out = arena.exec("client", argv).await?.ok()?;
        fastest.push(out.trim().parse::<f64>().context("GREET prints seconds")?);
    }
    // The budget is 100 ms.
    ensure!(
        fastest[0] < 0.1,
        "declared: {} s, as if it waited for the client",
        fastest[0]
    );
    ensure!(
        (0.1..0.5).contains(&fastest[1]),
        "undeclared: {} s",
        fastest[1]
    );
    encrypted_connections(&arena, "mail", 10).await
}
