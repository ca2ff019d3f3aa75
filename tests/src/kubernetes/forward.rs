//! A port of a pod, brought to this machine as people do it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::Context as _;
use tulle_cluster::Cluster;

use crate::arena::Ran;

/// `kubectl port-forward`. It ends when dropped.
#[derive(Debug)]
pub struct Forward<'a> {
    cluster: &'a Cluster,
    child: Child,
    port: u16,
    /// It would end when it cannot say more.
    _output: BufReader<ChildStdout>,
}

impl<'a> Forward<'a> {
    /// To a port of a pod (`NAME`, `deployment/NAME` ...) of a namespace.
    pub fn new(
        cluster: &'a Cluster,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> anyhow::Result<Self> {
        let mut command = cluster.kubectl();
        command
            .args(["--namespace", namespace, "port-forward", pod])
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
            cluster,
            child,
            port,
            _output: output,
        })
    }

    /// What is served there at a path.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        self.ask("GET", path)
    }

    /// What is answered there to a request without a body.
    pub fn ask(&self, method: &str, path: &str) -> anyhow::Result<String> {
        let mut command = self.cluster.control().on_network("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "10"]);
        command.args(["--request", method]);
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
