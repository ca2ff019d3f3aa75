//! Load generators in a namespace, and what they say. Each is a container of a pod with the label `load`; its log is followed
//! from its first line, because with the pod it goes.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tulle_tests::eventually;
use tulle_tests::kubernetes::Namespace;

/// How long generators may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds that count as steady, before anything is done to the mesh.
const STEADY: usize = 3;

/// All generators that a namespace has had.
#[derive(Default)]
pub(crate) struct Generators {
    /// By pod and container.
    followed: BTreeMap<(String, String), Follower>,
}

/// What was sent, by all generators of one name.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    /// How many generators have ended.
    pub(crate) ended: usize,
    /// Who answered.
    pub(crate) pods: BTreeSet<String>,
    /// The first failures of each generator, word for word.
    errors: Vec<Value>,
}

impl fmt::Display for Total {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, failed, ended) = (self.sent, self.failed, self.ended);
        write!(
            out,
            "{failed} of {sent} requests of {ended} generators failed"
        )?;
        self.errors
            .iter()
            .try_for_each(|error| write!(out, "; {error}"))
    }
}

impl Total {
    /// Fails unless something was sent and nothing of it failed.
    pub(crate) fn lost_nothing(&self) -> anyhow::Result<()> {
        ensure!(self.failed == 0 && self.sent > 0, "{self}");
        Ok(())
    }
}

impl Generators {
    /// Follows those that run by now.
    pub(crate) fn follow(&mut self, namespace: &Namespace<'_>) -> anyhow::Result<()> {
        for pod in namespace.get("pods")? {
            let Some(name) = pod["metadata"]["name"].as_str() else {
                continue;
            };
            if pod["metadata"]["labels"]["load"].is_null() {
                continue;
            }
            let containers = pod["status"]["containerStatuses"].as_array();
            for container in containers.into_iter().flatten() {
                if container["state"]["running"].is_null() {
                    continue;
                }
                let container = container["name"].as_str().context("it has a name")?;
                let key = (name.to_owned(), container.to_owned());
                if let Entry::Vacant(entry) = self.followed.entry(key) {
                    entry.insert(Follower::start(namespace, name, container)?);
                }
            }
        }
        Ok(())
    }

    /// Waits until so many generators have been at it for a while.
    pub(crate) async fn steady(
        &mut self,
        namespace: &Namespace<'_>,
        count: usize,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.follow(namespace)?;
            let lines = self.followed.values().map(|it| it.lines.lock().len());
            let steady = lines.filter(|lines| *lines >= STEADY).count();
            if steady >= count {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{steady} of {count} generators have begun"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends all of them, and adds up what those of that name have said.
    pub(crate) async fn end(
        self,
        namespace: &Namespace<'_>,
    ) -> anyhow::Result<BTreeMap<String, Total>> {
        let end = [
            "delete",
            "deployments,jobs,pods",
            "--selector=load",
            "--wait=false",
        ];
        namespace.ask(end, "")?;
        self.total().await
    }

    /// Waits until they have ended, and adds up what they have said.
    pub(crate) async fn total(self) -> anyhow::Result<BTreeMap<String, Total>> {
        let mut totals = BTreeMap::<String, Total>::new();
        for ((pod, container), follower) in self.followed {
            let summary = eventually(PATIENCE, async || follower.summary()).await;
            let summary = summary.with_context(|| format!("{container} of {pod}"))?;
            let number = |name: &str| {
                let number = summary[name].as_u64();
                number.with_context(|| format!("no {name} in {summary}"))
            };
            let total = totals.entry(container).or_default();
            total.sent += number("sent")?;
            total.failed += number("failed")?;
            total.ended += 1;
            total.errors.extend(
                summary["first_errors"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
            let pods = summary["pods"].as_object().into_iter().flatten();
            total.pods.extend(pods.map(|(pod, _)| pod.clone()));
        }
        ensure!(!totals.is_empty(), "there were no generators");
        Ok(totals)
    }

    /// When each line of the generators of a name was said, and what it was.
    pub(crate) fn said(&self, name: &str) -> Vec<(Instant, Value)> {
        let own = self
            .followed
            .iter()
            .filter(|((_, container), _)| container == name);
        own.flat_map(|(_, follower)| follower.lines.lock().clone())
            .collect()
    }
}

/// Who reads a log, to its end.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<(Instant, Value)>>>,
    reader: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(namespace: &Namespace<'_>, pod: &str, container: &str) -> anyhow::Result<Self> {
        let mut command = namespace.kubectl();
        command
            .args(["logs", "--follow", pod, "--container", container])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let output = child.stdout.take().context("it has an output")?;
        let lines = Arc::<Mutex<Vec<_>>>::default();
        let kept = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(said) = serde_json::from_str(&line) {
                    kept.lock().push((Instant::now(), said));
                }
            }
        });
        Ok(Self {
            child,
            lines,
            reader: Some(reader),
        })
    }

    /// What it said last; fails until that is a summary.
    fn summary(&self) -> anyhow::Result<Value> {
        let lines = self.lines.lock();
        let (_, last) = lines.last().context("it has said nothing")?;
        ensure!(last["event"] == "summary", "its last words are {last}");
        Ok(last.clone())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // One that has ended needs no killing; its reader ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
