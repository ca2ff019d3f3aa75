//! Where results go when nobody can take them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use anyhow::ensure;

use crate::terminal::Terminal;

pub(crate) fn full_is_an_error_and_closed_is_none(terminal: &Terminal) -> anyhow::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    // Ends with the process.
    thread::spawn(move || {
        for mut stream in server.incoming().flatten() {
            // A client that is gone is the test's to notice.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nyes");
        }
    });
    let call = format!("app call http://{address}/");
    for arguments in [
        &*call,
        &format!("{call} --json"),
        "completion bash",
        "demo --step identities",
        "demo --step identities --output json",
    ] {
        let line = format!("{} {arguments}", terminal.program());
        let full = terminal.shell(&format!("{line} > /dev/full"))?;
        ensure!(
            full.status == 1
                && full.stderr.contains("cannot write the output")
                && full.stderr.contains("has room"),
            "{arguments}: {full}"
        );
        let closed = terminal.shell(&format!("{{ {line}; echo $? >&2; }} | true"))?;
        ensure!(closed.stderr.trim() == "0", "{arguments}: {closed}");
    }
    terminal.nothing_left()
}

pub(crate) fn styles_and_progress_are_for_terminals_alone(
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    // Ends with the process.
    thread::spawn(move || {
        for mut stream in server.incoming().flatten() {
            // A client that is gone is the test's to notice.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 500 Broken\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            );
        }
    });
    let config = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
         clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}], users: [{{name: a, user: {{}}}}]}}"
    );
    let folder = terminal.manifests(&config)?;
    let check = format!("KUBECONFIG={folder}/all.yaml {} check", terminal.program());
    let piped = terminal.shell(&check)?;
    ensure!(
        piped.status == 2
            && piped.stdout.is_empty()
            && piped
                .stderr
                .starts_with("error: cannot ask the API server for its version")
            && !piped.stderr.contains('\u{1b}'),
        "{piped}"
    );
    let seen = terminal.shell(&format!(
        "env -u NO_COLOR TERM=xterm script -qec '{check}' /dev/null"
    ))?;
    // One line, which is gone before the error is told, and the error in colour.
    let told = seen.stdout.split_once("asking the API server...\r\u{1b}[K");
    ensure!(
        seen.status == 2 && told.is_some_and(|(_, after)| after.starts_with("\u{1b}[")),
        "{seen}"
    );
    Ok(())
}

pub(crate) fn files_with_nothing_to_inject_are_said(terminal: &Terminal) -> anyhow::Result<()> {
    let directory = terminal.manifests("# nothing yet\n")?;
    let file = format!("{directory}/all.yaml");
    let empty = terminal.tulle(&["inject", "-f", &file], "")?;
    ensure!(
        empty.status == 0 && empty.stdout.is_empty() && empty.stderr.contains("has no documents"),
        "{empty}"
    );
    std::fs::remove_file(&file)?;
    let bare = terminal.tulle(&["inject", "-f", &directory], "")?;
    ensure!(
        bare.status == 0 && bare.stdout.is_empty() && bare.stderr.contains("has no manifests"),
        "{bare}"
    );
    terminal.manifests("kind: ConfigMap\nmetadata: { name: a }\n")?;
    let full = terminal.tulle(&["inject", "-f", &directory], "")?;
    ensure!(
        full.status == 0 && full.stdout.contains("ConfigMap") && full.stderr.is_empty(),
        "{full}"
    );
    Ok(())
}
