//! Programs that are not ours, as they run in pods.

use tulle_tests::manifests::FILES;
use tulle_tests::{App, app, gate};

/// nginx with the inside of one `server` block. It listens where that says.
pub(crate) fn nginx(name: &str, server: &str) -> App {
    nginx_of(name, &[server])
}

/// nginx with the insides of several `server` blocks.
pub(crate) fn nginx_of(name: &str, servers: &[&str]) -> App {
    // Everything that it writes is in the container's own memory.
    let own = "/run/secrets";
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {own}/{kind};\n"))
        .collect();
    let servers: String = servers
        .iter()
        .map(|server| format!("  server {{\n{server}\n  }}\n"))
        .collect();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {own}/nginx.pid;\nerror_log stderr warn;\n\
         events {{}}\nhttp {{\n{temporary}  access_log off;\n  default_type text/plain;\n{servers}}}\n"
    );
    let argv = ["nginx", "-e", "stderr", "-p", own, "-c"].map(str::to_owned);
    app(name)
        .command(argv.into_iter().chain([format!("{FILES}/nginx.conf")]))
        .file("nginx.conf", config)
}

/// An Envoy with a bootstrap of its own, in YAML or JSON, that listens where that says.
pub(crate) fn envoy_of(bootstrap: String) -> App {
    let program = gate::envoy().unwrap_or_default().display().to_string();
    let own = format!("{FILES}/envoy.yaml");
    let argv = [
        &program,
        "-c",
        &own,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ];
    app("envoy").command(argv).file("envoy.yaml", bootstrap)
}

/// A Python script; the arguments follow it.
pub(crate) fn script(interpreter: &str, script: &str, arguments: &[&str]) -> Vec<String> {
    let argv = [interpreter, "-B", "-c", script].into_iter();
    argv.chain(arguments.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// Sends bytes to a host and port as they are, and prints what comes back until the server closes.
pub(crate) const RAW: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.settimeout(10)
s.sendall(sys.argv[3].encode('latin1'))
while data := s.recv(65536):
    sys.stdout.write(data.decode('latin1'))
"#;
