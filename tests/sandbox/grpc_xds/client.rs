//! A gRPC client in a pod with an agent, in one of two languages, that calls when it is told to.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;
use tulle_tests::{App, Arena, app, gate};

use crate::foreign::script;

/// Where the agent writes the bootstrap.
pub(super) const BOOTSTRAP: &str = "/var/run/secrets/tulle-state/grpc.json";
/// The method of `tulle app serve`.
const UNARY: &str = "/tulle.app.v1.Echo/Unary";
const PATIENCE: Duration = Duration::from_secs(60);

/// An app whose pods have an agent that relays on loopback.
pub(super) fn with_agent(app: App) -> App {
    app.agent(&[
        "--bootstrap",
        "grpc",
        "--bootstrap-file",
        BOOTSTRAP,
        "--xds-listen",
        "127.0.0.1:15010",
    ])
}

/// A pod for clients.
pub(super) fn client() -> App {
    with_agent(app("client"))
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Language {
    Python,
    JavaScript,
}

impl Language {
    fn argv(self, target: &str) -> Vec<String> {
        match self {
            Self::Python => script(
                &gate::python().display().to_string(),
                include_str!("client.py"),
                &[BOOTSTRAP, target],
            ),
            Self::JavaScript => {
                let modules = gate::node_modules().display().to_string();
                [
                    "node",
                    "-e",
                    include_str!("client.js"),
                    &modules,
                    BOOTSTRAP,
                    target,
                ]
                .map(str::to_owned)
                .to_vec()
            }
        }
    }
}

/// What became of some calls.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Outcome {
    /// Answers by pod.
    pub(super) pods: BTreeMap<String, u64>,
    /// Answers by version.
    pub(super) versions: BTreeMap<String, u64>,
    /// Answers by whom the server's sidecar saw.
    pub(super) peers: BTreeMap<String, u64>,
    /// Failures by status.
    pub(super) errors: BTreeMap<String, u64>,
    /// What the last failure said: shown when a test fails.
    pub(super) details: String,
}

/// The running client; it ends when dropped.
pub(super) struct Client {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Client {
    pub(super) fn start(
        arena: &Arena<'_>,
        pod: &str,
        language: Language,
        target: &str,
    ) -> anyhow::Result<Self> {
        let mut child = arena.spawn(pod, language.argv(target))?;
        let input = child.stdin.take().context("it has an input")?;
        let output = child.stdout.take().context("it has an output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    /// Makes calls, one after the other.
    pub(super) async fn calls(&mut self, calls: u64) -> anyhow::Result<Outcome> {
        self.ask(calls, UNARY, &[]).await
    }

    pub(super) async fn ask(
        &mut self,
        calls: u64,
        method: &str,
        metadata: &[(&str, &str)],
    ) -> anyhow::Result<Outcome> {
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        let ask = json!({ "calls": calls, "method": method, "metadata": metadata });
        self.input.write_all(format!("{ask}\n").as_bytes()).await?;
        match timeout(PATIENCE, self.output.next_line()).await {
            Ok(Ok(Some(line))) => Ok(serde_json::from_str(&line)?),
            other => Err(self.epitaph(&format!("{other:?}")).await),
        }
    }

    /// Makes calls, none of which may fail.
    pub(super) async fn good_calls(&mut self, calls: u64) -> anyhow::Result<Outcome> {
        let outcome = self.calls(calls).await?;
        ensure!(outcome.errors.is_empty(), "{outcome:?}");
        Ok(outcome)
    }

    async fn epitaph(&mut self, why: &str) -> anyhow::Error {
        let _ = self.child.start_kill();
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.as_mut() {
            let _ = timeout(Duration::from_secs(1), stderr.read_to_string(&mut said)).await;
        }
        anyhow::anyhow!("the client did not answer ({why}); it said: {said}")
    }
}
