//! A port of a pod, brought to this machine as people do it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::Context as _;

use super::Namespace;
use crate::arena::Ran;

/// `kubectl port-forward`. It ends when dropped.
#[derive(Debug)]
pub struct Forward<'a> {
    namespace: &'a Namespace<'a>,
    child: Child,
    port: u16,
    /// It would end when it cannot say more.
    _output: BufReader<ChildStdout>,
}

impl<'a> Forward<'a> {
    pub(super) fn new(namespace: &'a Namespace<'a>, pod: &str, port: u16) -> anyhow::Result<Self> {
        let mut command = namespace.cluster.kubectl();
        command
            .args(["--namespace", &namespace.name, "port-forward", pod])
            .arg(format!(":{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("it has an output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        // `Forwarding from 127.0.0.1:40000 -> 8080`
        let local = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("127.0.0.1:"));
        let port = local.and_then(|port| port.parse().ok());
        let Some(port) = port else {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("kubectl port-forward: {line}");
        };
        Ok(Self {
            namespace,
            child,
            port,
            _output: output,
        })
    }

    /// What is served there at a path.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut command = self.namespace.cluster.control().on_network("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "10"]);
        command.arg(format!("http://127.0.0.1:{}{path}", self.port));
        Ran::from(command.output()?).ok()
    }
}

impl Drop for Forward<'_> {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
