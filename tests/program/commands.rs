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
    let directory = said
        .split_once("The manifests are in ")
        .and_then(|(_, rest)| Some(rest.split_once(": edit")?.0))
        .context("it says where its manifests are")?;
    std::fs::write(format!("{directory}/99-more.yaml"), route("-1"))?;
    let said = demo.wait_for("99-more.yaml:")?;
    ensure!(said.contains("refused"), "{said}");
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

/// A route by which the client's Service sends everything to itself, with that weight.
fn route(weight: &str) -> String {
    format!(
        r#"{CLIENT}
---
apiVersion: v1
kind: Service
metadata: {{ name: client, namespace: shop }}
spec:
  ports: [{{ port: 80, targetPort: 8080 }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: client, namespace: shop }}
spec:
  parentRefs: [{{ kind: Service, group: "", name: client, port: 80 }}]
  rules:
  - backendRefs: [{{ name: client, port: 80, weight: {weight} }}]
"#
    )
}

pub(crate) fn edits_that_are_refused_and_mended_are_told(
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let directory = terminal.manifests(&route("1"))?;
    let mut people = terminal.start(&["sandbox", "up", "-f", &directory])?;
    let mut machines = terminal.start(&["sandbox", "up", "-f", &directory, "-o", "json"])?;
    people.wait_for("The pod is ready.")?;
    machines.wait_for("The pod is ready.")?;

    terminal.manifests(&route("-1"))?;
    let line = |said: &str, words: [&str; 2]| {
        let found = said
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        found
            .map(str::to_owned)
            .with_context(|| format!("it does not say {words:?}: {said}"))
    };
    let said = line(
        &people.wait_for("last good version")?,
        ["refused", "weight"],
    )?;
    ensure!(
        said.contains("all.yaml:") && said.contains("HTTPRoute shop/client"),
        "{said}"
    );
    let said = line(
        &machines.wait_for("last good version")?,
        ["refused", "weight"],
    )?;
    let event: Value = serde_json::from_str(&said)?;
    let problem = &event["problem"];
    ensure!(
        event["what"] == "refused"
            && problem["line"].as_u64() > Some(1)
            && problem["object"] == "HTTPRoute shop/client"
            && problem["field"]
                .as_str()
                .is_some_and(|it| it.contains("weight"))
            && problem["message"].is_string(),
        "{event}"
    );

    terminal.manifests(&route("2"))?;
    people.wait_for("mended: HTTPRoute shop/client")?;
    machines.wait_for("\"mended\"")?;
    terminal.manifests("kind: [")?;
    let said = people.wait_for("all.yaml:1")?;
    ensure!(said.contains("refused"), "{said}");
    for running in [people, machines] {
        running.interrupt()?;
        let ended = running.end()?;
        ensure!(ended == 0, "it ended with {ended}");
    }
    terminal.nothing_left()
}

pub(crate) fn of_two_sandboxes_one_is_chosen(terminal: &Terminal) -> anyhow::Result<()> {
    let directory = terminal.manifests(CLIENT)?;
    let mut first = terminal.start(&["sandbox", "up", "-f", &directory])?;
    let said = first.wait_for("-- tulle app call")?;
    ensure!(!said.contains("--sandbox"), "{said}");
    let mut second = terminal.start(&["sandbox", "up", "-f", &directory])?;
    let said = second.wait_for("-- tulle app call")?;
    let hint = said
        .lines()
        .find(|line| line.contains("sandbox status"))
        .context("it prints commands")?;
    terminal.shell(hint)?.ok()?;
    let id = second.id();
    ensure!(hint.ends_with(&format!("--sandbox {id}")), "{hint}");

    let either = terminal.tulle(&["sandbox", "status"], "")?;
    let listed = [&first, &second].map(|one| format!("{} (", one.id()));
    ensure!(
        either.status == 1
            && either.stderr.contains("--sandbox ID")
            && listed.iter().all(|one| either.stderr.contains(one))
            && either.stderr.contains("sandbox up -f"),
        "{either}"
    );
    let neither = terminal.tulle(&["sandbox", "down", "--sandbox", "1"], "")?;
    ensure!(
        neither.status == 1
            && neither.stderr.contains("there is no running sandbox 1;")
            && neither.stderr.contains("--sandbox ID"),
        "{neither}"
    );
    let down = ["sandbox", "down", "--sandbox", &id.to_string()];
    terminal.tulle(&down, "")?.ok()?;
    let ended = second.end()?;
    ensure!(ended == 0, "the one that was meant ended with {ended}");
    terminal.tulle(&["sandbox", "status"], "")?.ok()?;
    terminal.tulle(&["sandbox", "down"], "")?.ok()?;
    let ended = first.end()?;
    ensure!(ended == 0, "the other ended with {ended}");
    terminal.nothing_left()
}
