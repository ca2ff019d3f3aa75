//! The stage: the sandbox with the demo application and a control plane, and the tools of the steps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tulle_runtime::names::{self, ports};
use tulle_runtime::signals;
use tulle_sandbox::{HostProcess, Node, ObjectKey, Options, PodView, Sandbox};

use super::report::Report;
use crate::mesh::{self, Load, verdict};
use crate::narrate::{Format, narrate};
use crate::output;
use crate::sandbox::which;

/// How long the application may take to come up.
const BUILD_UP: Duration = Duration::from_secs(30);
/// Life of a certificate: short, so that rotation happens while the audience watches.
const LEAF_TTL: &str = "40s";

/// Lines of a log that are shown when something does not come up.
const LOG_TAIL: usize = 15;
/// Where the manifests are while nobody else is to edit them: memory of the node that goes with it.
const ROOT: &str = "/run/tulle/demo";

/// The manifests of the demo application, by file name.
const MANIFESTS: [(&str, &str); 7] = [
    (
        "00-namespaces.yaml",
        include_str!("../../../../deploy/demo/00-namespaces.yaml"),
    ),
    (
        "10-web.yaml",
        include_str!("../../../../deploy/demo/10-web.yaml"),
    ),
    (
        "20-reviews.yaml",
        include_str!("../../../../deploy/demo/20-reviews.yaml"),
    ),
    (
        "25-reviews-route.yaml",
        include_str!("../../../../deploy/demo/25-reviews-route.yaml"),
    ),
    (
        "30-ledger.yaml",
        include_str!("../../../../deploy/demo/30-ledger.yaml"),
    ),
    (
        "40-greeter.yaml",
        include_str!("../../../../deploy/demo/40-greeter.yaml"),
    ),
    (
        "50-clients.yaml",
        include_str!("../../../../deploy/demo/50-clients.yaml"),
    ),
];

/// The running application.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sandbox: Sandbox,
    pub(super) control: HostProcess,
    directory: Directory,
}

impl Stage {
    /// Brings everything up.
    pub(super) async fn build(node: Node, keep: bool, report: &Report) -> anyhow::Result<Self> {
        let directory = manifests(keep)?;
        if node.ids().mark_sockets() {
            report.say(
                "Rootless with a single user id: sidecars mark their sockets, and the capture rules exempt the mark.\n\
                 An app could set the mark too; in a cluster sidecars are told apart by their user id instead.",
            )?;
        }
        let injector = mesh::injector();
        let sandbox = Sandbox::start(node, Options { injector }, &directory.0).await?;
        let control = mesh::start_control(&sandbox, Some(LEAF_TTL))?;
        report.say(
            "Control plane started; the application comes up, each pod with its sidecar ...",
        )?;
        if let Err(error) = sandbox.wait_ready(BUILD_UP).await {
            output::note(&last_words(&sandbox, &control));
            return Err(error.into());
        }
        let sidecars = sandbox
            .pods()
            .iter()
            .filter(|pod| pod.container(names::containers::PROXY).is_some())
            .count();
        report.say(format!(
            "{} pods are ready, {sidecars} of them with a sidecar.",
            sandbox.pods().len()
        ))?;
        Ok(Self {
            sandbox,
            control,
            directory,
        })
    }

    /// The pods of an app in `shop`, by the begin of their names.
    pub(super) fn pods(&self, app: &str) -> Vec<PodView> {
        let of_app = |pod: &PodView| pod.key.namespace == "shop" && pod.key.name.starts_with(app);
        self.sandbox
            .pods()
            .into_iter()
            .filter(|pod| of_app(pod) && !pod.terminating)
            .collect()
    }

    /// One of them.
    pub(super) fn pod(&self, app: &str) -> anyhow::Result<PodView> {
        self.pods(app)
            .into_iter()
            .next()
            .with_context(|| format!("there is no pod of {app}"))
    }

    /// Waits until an app has that many ready pods.
    pub(super) async fn wait_for(&self, app: &str, ready: usize) -> anyhow::Result<()> {
        let counted = |pods: &[PodView]| {
            let of_app = pods
                .iter()
                .filter(|pod| pod.key.namespace == "shop" && pod.key.name.starts_with(app));
            of_app.filter(|pod| pod.ready && !pod.terminating).count() >= ready
        };
        Ok(self
            .sandbox
            .wait_until(Duration::from_secs(15), counted)
            .await?)
    }

    /// Runs `tulle app call` in a pod; its output, whether or not the call succeeded.
    pub(super) async fn call(
        &self,
        pod: &ObjectKey,
        arguments: &[&str],
    ) -> anyhow::Result<(i32, Value)> {
        let argv = ["tulle", "app", "call", "--json"]
            .iter()
            .chain(arguments)
            .copied();
        let output = self.sandbox.exec(pod, None, argv).await?;
        let text = if output.stdout.is_empty() {
            &output.stderr
        } else {
            &output.stdout
        };
        let value = serde_json::from_slice(text)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(text).trim().to_owned()));
        Ok((output.status, value))
    }

    /// Reads a path of a sidecar's admin endpoint.
    pub(super) async fn admin<T: DeserializeOwned>(
        &self,
        pod: &ObjectKey,
        path: &str,
    ) -> anyhow::Result<T> {
        let url = format!("http://127.0.0.1:{}{path}", ports::ADMIN);
        let (_, answer) = self.call(pod, &[&url]).await?;
        let body = answer
            .get("body")
            .cloned()
            .with_context(|| format!("{pod} {path} answered {answer}"))?;
        Ok(serde_json::from_value(body)?)
    }

    /// Starts load from the `shopper` pod.
    pub(super) fn load(
        &self,
        url: &str,
        rate: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Load> {
        let shopper = ObjectKey::new("shop", "shopper");
        Load::start(&self.sandbox, &shopper, url, rate, seconds, more)
    }

    /// Rewrites one of the manifests, as a person would with an editor.
    pub(super) fn edit(&self, file: &str, change: impl Fn(&str) -> String) -> anyhow::Result<()> {
        let path = self.directory.0.join(file);
        let text = std::fs::read_to_string(&path)?;
        let changed = change(&text);
        ensure!(
            changed != text,
            "the edit changes nothing in {}",
            path.display()
        );
        write(&path, &changed)
    }

    /// Prints commands to try, and answers them, until a signal or `tulle sandbox down`.
    pub(super) async fn keep(&self, format: Format) -> anyhow::Result<()> {
        let tulle = output::program();
        let which = which(&self.sandbox);
        let try_these = format!(
            "\nIt stays up until Ctrl-C. The manifests are in {}: edit them and watch.\n\
             Try, in another terminal:\n\n  \
             {tulle} sandbox status{which}\n  \
             {tulle} sandbox exec{which} shop/shopper -- tulle app call http://reviews/\n  \
             {tulle} sandbox exec{which} shop/shopper -- tulle app load --url http://web/ --rate 300 --duration 10s\n  \
             {tulle} sandbox exec{which} shop/shopper -- tulle app call http://127.0.0.1:{}/clusters\n  \
             {tulle} sandbox logs{which} shop/shopper -c {}\n",
            self.directory.0.display(),
            ports::ADMIN,
            names::containers::PROXY,
        );
        match format {
            Format::Text => output::styled(&try_these)?,
            Format::Json => output::note(&try_these),
        }
        let events = self.sandbox.events();
        tokio::select! {
            served = self.sandbox.serve() => Ok(served?),
            _ = signals::shutdown() => Ok(()),
            error = narrate(events, &self.control, format) => Err(error.into()),
            () = verdict::follow(&self.sandbox) => Ok(()),
        }
    }

    /// Takes everything down.
    pub(super) async fn leave(self, grace: Duration) {
        self.sandbox.shutdown(grace).await;
    }
}

/// The manifests on disk; they go with it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            output::warning(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

/// The ends of the logs that say why the application does not come up.
fn last_words(sandbox: &Sandbox, control: &HostProcess) -> String {
    let tail = |log: &[u8]| {
        let text = String::from_utf8_lossy(log).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    };
    let mut words = format!("--- control plane\n{}", tail(&control.logs()));
    let pods = sandbox.pods();
    let blocked = pods.iter().find_map(|pod| {
        let open = pod
            .containers
            .iter()
            .find(|container| !container.ready && container.state == "Running")?;
        Some((pod, &open.name))
    });
    if let Some((pod, container)) = blocked {
        let log = sandbox.logs(&pod.key, Some(container)).unwrap_or_default();
        words.push_str(&format!("\n--- {container} of {}\n{}", pod.key, tail(&log)));
    }
    words
}

/// A copy of the manifests that steps can edit, and people too if it is to be kept up.
fn manifests(keep: bool) -> anyhow::Result<Directory> {
    let directory = if keep {
        let template = std::env::temp_dir().join("tulle-demo-XXXXXX");
        nix::unistd::mkdtemp(&template)
            .with_context(|| format!("cannot make {}", template.display()))?
    } else {
        let directory = PathBuf::from(ROOT);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        directory
    };
    let directory = Directory(directory);
    for (name, text) in MANIFESTS {
        write(&directory.0.join(name), text)?;
    }
    Ok(directory)
}

/// Writes a file in one step, so that nobody reads half of it.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .context("a manifest has a name")?;
    let temporary = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&temporary, text)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}
