//! Opaque TCP through two sidecars.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::foreign::script;
use crate::proof::encrypted_connections;

tulle_tests::cases! {
    a_client_that_closes_its_side_still_gets_its_answer;
    a_server_speaks_first_on_an_undeclared_port;
    a_route_of_connections_splits_them_by_weight;
    half_close_passes_both_ways_between_foreign_programs ["python3"];
    redis_cli_talks_to_redis_server ["redis-cli", "redis-server"];
}

async fn a_client_that_closes_its_side_still_gets_its_answer(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("tcp-half-close", app("echo").tcp(9000) + app("client"))
        .await?;
    let answer = arena
        .app_call("client", &["tcp://echo:9000", "--data", "to and fro"])
        .await?;
    ensure!(answer["received"] == "to and fro", "{answer}");
    encrypted_connections(&arena, "echo", 1).await
}

async fn a_server_speaks_first_on_an_undeclared_port(mesh: &Mesh) -> anyhow::Result<()> {
    let greeter = app("greeter").serve("--tcp-server-first", 2525, "hello");
    let arena = mesh
        .apply("tcp-server-first", greeter + app("client"))
        .await?;
    let banner = "import socket\n\
        s = socket.create_connection(('greeter', 2525), 10)\n\
        s.settimeout(10)\n\
        print(s.makefile().readline())\n";
    let out = arena
        .exec("client", script("python3", banner, &[]))
        .await?
        .ok()?;
    ensure!(out.starts_with("tulle-app greeter"), "{out}");
    encrypted_connections(&arena, "greeter", 1).await
}

/// Who greets a client of `front`.
async fn greeter(arena: &Arena<'_>) -> anyhow::Result<String> {
    let banner = "import socket\n\
        s = socket.create_connection(('front', 2525), 10)\n\
        s.settimeout(10)\n\
        try: print(s.makefile().readline())\n\
        except ConnectionError: print()\n";
    let out = arena.exec("client", script("python3", banner, &[])).await?;
    let out = out.ok()?;
    let name = out.strip_prefix("tulle-app ").unwrap_or(&out);
    Ok(name
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

async fn a_route_of_connections_splits_them_by_weight(mesh: &Mesh) -> anyhow::Result<()> {
    const SOON: Duration = Duration::from_secs(20);
    let route = r#"
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: { name: front }
spec:
  parentRefs: [{ group: "", kind: Service, name: front }]
  rules:
  - backendRefs:
    - { name: back, port: 2525, weight: 1 }
    - { name: front, port: 2525, weight: 0 }
"#;
    let serve = |name: &str| app(name).serve("--tcp-server-first", 2525, "hello");
    let manifests = serve("front") + serve("back") + app("client");
    let manifests = format!("{}{route}", manifests.as_ref());
    let arena = mesh.apply("tcp-route", manifests).await?;
    let seen = async |name: &str| {
        eventually(SOON, async || {
            let greeter = greeter(&arena).await?;
            ensure!(greeter == name, "{greeter}");
            Ok(())
        })
        .await
    };
    seen("back").await?;
    for _ in 0..8 {
        let greeter = greeter(&arena).await?;
        ensure!(greeter == "back", "{greeter}");
    }
    arena.edit(|text| text.replace("weight: 0", "weight: 1"))?;
    seen("front").await?;
    seen("back").await?;
    // None of them is taken in place of one that is not there.
    arena.edit(|text| text.replace("{ name: back, port: 2525", "{ name: gone, port: 2525"))?;
    seen("").await?;
    seen("front").await?;
    arena.edit(|text| text.replace("TCPRoute", "UDPRoute"))?;
    eventually(SOON, async || {
        for _ in 0..8 {
            let greeter = greeter(&arena).await?;
            ensure!(greeter == "front", "{greeter}");
        }
        Ok(())
    })
    .await
}

async fn half_close_passes_both_ways_between_foreign_programs(mesh: &Mesh) -> anyhow::Result<()> {
    // It answers only after it has seen the end of what the client says, and the client hears the end of the answer.
    let serve = r"
import socketserver
class Count(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'%d bytes' % len(self.rfile.read()))
socketserver.ThreadingTCPServer(('0.0.0.0', 9000), Count).serve_forever()
";
    let client = r"
import socket
s = socket.create_connection(('count', 9000), 10)
s.settimeout(10)
s.sendall(b'x' * 1000000)
s.shutdown(socket.SHUT_WR)
print(s.makefile().read())
";
    let server = app("count")
        .command(["python3", "-B", &format!("{FILES}/serve.py")])
        .file("serve.py", serve)
        .port("tcp", 9000, 9000);
    let arena = mesh.apply("tcp-python", server + app("client")).await?;
    let out = arena
        .exec("client", script("python3", client, &[]))
        .await?
        .ok()?;
    ensure!(out.trim() == "1000000 bytes", "{out}");
    encrypted_connections(&arena, "count", 1).await
}

async fn redis_cli_talks_to_redis_server(mesh: &Mesh) -> anyhow::Result<()> {
    let redis = app("redis")
        .command([
            "redis-server",
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
            "/run/secrets",
        ])
        .port("redis", 6379, 6379);
    let arena = mesh.apply("tcp-redis", redis + app("client")).await?;
    let redis = async |arguments: &[&str]| {
        let argv = ["redis-cli", "-h", "redis"]
            .iter()
            .chain(arguments)
            .copied();
        arena.exec("client", argv).await?.ok()
    };
    ensure!(redis(&["set", "word", "tulle"]).await?.trim() == "OK");
    ensure!(redis(&["get", "word"]).await?.trim() == "tulle");
    encrypted_connections(&arena, "redis", 2).await
}
