//! The process: go-control-plane on the node, its certificate from the mesh's root, and what it tells line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tulle_sandbox::GATEWAY_V4;
use tulle_tests::{App, app, eventually, gate};

use super::DEADLINE;
use crate::certificate::svid;

/// A foreign control plane. It ends when dropped.
pub(super) struct Foreign {
    directory: tempfile::TempDir,
    address: String,
    running: Mutex<Running>,
}

struct Running {
    child: Child,
    events: Events,
    snapshots: usize,
}

type Events = Arc<Mutex<Vec<Value>>>;

impl Foreign {
    /// Who it proves to be.
    pub(super) const ID: &str = "spiffe://cluster.local/ns/infra/sa/config";

    /// Starts it with a snapshot of these resources.
    pub(super) fn start(resources: &[Value]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        certify(directory.path())?;
        let (mut running, address) =
            Running::start(directory.path(), &format!("{GATEWAY_V4}:0"), resources)?;
        running.snapshots = 1;
        Ok(Self {
            directory,
            address,
            running: Mutex::new(running),
        })
    }

    /// An app whose sidecar follows it.
    pub(super) fn client(&self, name: &str) -> App {
        app(name)
            .annotate("tulle.dev/xds-address", &self.address)
            .annotate("tulle.dev/xds-name", Self::ID)
    }

    /// Goes on with another snapshot.
    pub(super) fn serve(&self, resources: &[Value]) -> anyhow::Result<()> {
        let mut running = self.running.lock();
        running.snapshots += 1;
        let path = write(self.directory.path(), running.snapshots, resources)?;
        let input = running.child.stdin.as_mut().context("it has an input")?;
        Ok(writeln!(input, "{}", path.display())?)
    }

    /// Ends it without a word.
    pub(super) fn kill(&self) -> anyhow::Result<()> {
        let mut running = self.running.lock();
        running.child.kill()?;
        running.child.wait()?;
        Ok(())
    }

    /// Starts it anew at the same address; what it told before is forgotten.
    pub(super) fn restart(&self, resources: &[Value]) -> anyhow::Result<()> {
        self.kill()?;
        let mut running = self.running.lock();
        let snapshots = running.snapshots;
        (*running, _) = Running::start(self.directory.path(), &self.address, resources)?;
        running.snapshots = snapshots;
        Ok(())
    }

    /// The first event like this, as soon as there is one.
    pub(super) async fn event(
        &self,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        eventually(DEADLINE, async || {
            let events = self.events();
            let found = events.iter().find(|event| wanted(event)).cloned();
            found.with_context(|| format!("it did not tell of {what} but: {events:#?}"))
        })
        .await
    }

    /// The reason of a NACK that begins like this.
    pub(super) async fn refusal(&self, beginning: &str) -> anyhow::Result<String> {
        let begins = |event: &Value| {
            event["error"]
                .as_str()
                .is_some_and(|error| error.starts_with(beginning))
        };
        let event = self
            .event(&format!("a refusal {beginning:?}"), begins)
            .await?;
        Ok(event["error"].as_str().unwrap_or_default().to_owned())
    }

    /// The reasons of all NACKs.
    pub(super) fn refusals(&self) -> Vec<String> {
        let events = self.events();
        let errors = events.iter().filter_map(|event| event["error"].as_str());
        errors.map(str::to_owned).collect()
    }

    /// The newest response with a resource of this type and name was acknowledged.
    pub(super) async fn acknowledged(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let events = self.events();
            let response = events.iter().rfind(|event| is_sent(event, kind, name));
            let response = response.with_context(|| format!("{name} was not sent: {events:#?}"))?;
            let answers = |event: &&Value| {
                let same = |field: &str| event[field] == response[field];
                event["event"] == "request" && same("stream") && same("type") && same("nonce")
            };
            let answer = events.iter().find(answers).context("it was not answered")?;
            ensure!(answer["error"].is_null(), "{answer}");
            Ok(())
        })
        .await
    }

    /// Names of all resources that were sent.
    pub(super) fn sent(&self) -> Vec<String> {
        let events = self.events();
        let responses = events.iter().filter(|event| event["event"] == "response");
        let names = responses
            .filter_map(|event| event["resources"].as_array())
            .flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn events(&self) -> Vec<Value> {
        self.running.lock().events.lock().clone()
    }
}

fn is_sent(event: &Value, kind: &str, name: &str) -> bool {
    let names = event["resources"].as_array();
    event["event"] == "response"
        && event["type"]
            .as_str()
            .is_some_and(|found| found.ends_with(kind))
        && names.is_some_and(|names| names.iter().any(|found| found == name))
}

impl Running {
    fn start(
        directory: &Path,
        listen: &str,
        resources: &[Value],
    ) -> anyhow::Result<(Self, String)> {
        let snapshot = write(directory, 0, resources)?;
        let file = |name: &str| directory.join(name);
        let mut child = Command::new(gate::built("go-control-plane"))
            .args(["-listen", listen])
            .arg("-cert")
            .arg(file("chain.pem"))
            .arg("-key")
            .arg(file("key.pem"))
            .arg("-roots")
            .arg(file("roots.pem"))
            .arg("-snapshot")
            .arg(snapshot)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("it has an output")?);
        let mut first = String::new();
        output.read_line(&mut first)?;
        let first: Value = serde_json::from_str(&first).context("it did not start")?;
        let address = first["address"].as_str().context("it listens")?.to_owned();
        let events = Events::default();
        let told = events.clone();
        std::thread::Builder::new()
            .name("foreign".to_owned())
            .spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    told.lock().push(event);
                }
            })?;
        let running = Self {
            child,
            events,
            snapshots: 0,
        };
        Ok((running, address))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; what else could fail would not matter to anyone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(directory: &Path, number: usize, resources: &[Value]) -> anyhow::Result<PathBuf> {
    let path = directory.join(format!("snapshot-{number}.json"));
    let snapshot = json!({ "version": number.to_string(), "resources": resources });
    std::fs::write(&path, snapshot.to_string())?;
    Ok(path)
}

/// A certificate as any workload has one, and the mesh's roots.
fn certify(directory: &Path) -> anyhow::Result<()> {
    let (svid, roots) = svid(Foreign::ID)?;
    std::fs::write(directory.join("chain.pem"), svid.chain_pem())?;
    std::fs::write(directory.join("key.pem"), svid.key().to_pem().as_bytes())?;
    std::fs::write(directory.join("roots.pem"), roots.to_pem())?;
    Ok(())
}
