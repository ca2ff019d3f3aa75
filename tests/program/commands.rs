//! `tulle sandbox` and `tulle demo --keep`, and the commands that reach them.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::terminal::Terminal;

const CLIENT: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: shop }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: ghcr.io/tulle-mesh/tulle
    args: [app, serve, --http, "8080"]
    readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
"#;

pub(crate) fn reach_a_running_sandbox_and_say_what_is_not_there(
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let nothing = terminal.tulle(&["sandbox", "status"], "")?;
    ensure!(nothing.status == 1, "{nothing}");
    ensure!(
        nothing.stderr.contains("there is no running sandbox")
            && nothing.stderr.contains("tulle sandbox up -f DIR"),
        "{nothing}"
    );

    let directory = terminal.manifests(CLIENT)?;
    let mut up = terminal.start(&["sandbox", "up", "-f", &directory])?;
    up.wait_for("The pod is ready.")?;

    let status = terminal.tulle(&["sandbox", "status", "-o", "json"], "")?;
    let pods: Value = serde_json::from_str(&status.clone().ok()?)?;
    ensure!(
        pods[0]["pod"] == "shop/client" && pods[0]["ready"] == "1/1" && pods[1].is_null(),
        "{status}"
    );
    let exec = ["sandbox", "exec", "shop/client", "--"];
    let echo = [&exec[..], &["sh", "-c", "cat; echo no >&2; exit 7"]].concat();
    let ran = terminal.tulle(&echo, "to and fro")?;
    ensure!(
        ran.status == 7 && ran.stdout == "to and fro" && ran.stderr == "no\n",
        "{ran}"
    );
    let call = [
        &exec[..],
        &["tulle", "app", "call", "http://127.0.0.1:8080/"],
    ]
    .concat();
    let answer = terminal.tulle(&call, "")?.ok()?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = terminal
        .tulle(&["sandbox", "logs", "shop/client"], "")?
        .ok()?;
    ensure!(log.contains("8080"), "{log}");
    for (arguments, said) in [
        (&["shop/nobody"][..], "there is no pod shop/nobody"),
        (
            &["shop/client", "-c", "nothing"],
            "there is no container nothing in pod shop/client, which has app",
        ),
    ] {
        let ran = terminal.tulle(&[&["sandbox", "logs"], arguments].concat(), "")?;
        ensure!(
            ran.status == 1 && ran.stderr.contains(said) && ran.stderr.contains("sandbox status"),
            "{ran}"
        );
    }

    terminal.tulle(&["sandbox", "down"], "")?.ok()?;
    let ended = up.end()?;
    ensure!(ended == 0, "it ended with {ended}");
    terminal.nothing_left()
}

pub(crate) fn a_kept_demo_answers_the_commands_that_it_prints(
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let mut demo = terminal.start(&["demo", "--keep", "--step", "identities"])?;
    let said = demo.wait_for("sandbox logs")?;
    ensure!(said.contains("The step held"), "{said}");
    let commands: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("  ") && line.contains(" sandbox "))
        .collect();
    ensure!(commands.len() == 5, "{said}");
    for line in commands {
        // Nobody waits ten seconds for what one shows as well.
        let ran = terminal.shell(&line.replace("--duration 10s", "--duration 1s"))?;
        ensure!(!ran.clone().ok()?.is_empty(), "{line}: {ran}");
    }
    demo.interrupt()?;
    let ended = demo.end()?;
    ensure!(ended == 0, "it ended with {ended}");
    terminal.nothing_left()
}

pub(crate) fn a_demo_that_is_ended_early_leaves_nothing_behind(
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let mut demo = terminal.start(&["demo", "--keep", "--step", "canary"])?;
    demo.wait_for("1. canary")?;
    demo.interrupt()?;
    let ended = demo.end().context("after Ctrl-C")?;
    ensure!(ended == 130, "it ended with {ended}");
    terminal.nothing_left()
}
