//! The injector's webhook, called by a real API server: what becomes of pods, and what their authors read.
//!
//! The injector is this program again, on the network of the control plane, beside a CA that is written by hand.

#[path = "../../injector/tests/injector/ca.rs"]
mod ca;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tulle_runtime::tasks::Tasks;
use tulle_tests::{Kubernetes, eventually};

use ca::Ca;

tulle_tests::cases! { in Kubernetes:
    the_api_server_injects_pods_and_tells_their_authors_what_is_wrong;
}

/// In the process that is the injector: the folder for its token and bundle.
const FOLDER: &str = "TULLE_TEST_INJECTOR_FOLDER";
const TOKEN: &str = "token";
/// The control plane's own address, where the API server finds the webhook.
const ADDRESS: &str = "10.90.0.1";
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Is `tulle injector` until it is killed.
pub(crate) fn injector(folder: &Path) -> ExitCode {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (ca, tasks) = (Ca::new(TOKEN), Tasks::new());
    let address = runtime.block_on(ca.serve(&tasks));
    let [token, bundle] = ["token", "root.pem"].map(|name| folder.join(name));
    std::fs::write(&token, TOKEN).expect("a file");
    std::fs::write(&bundle, ca.bundle().to_pem()).expect("a file");
    let words = [
        "tulle".to_owned(),
        "injector".to_owned(),
        format!("--webhook-address={ADDRESS}:15017"),
        format!("--admin-address={ADDRESS}:15014"),
        format!("--control-address={address}"),
        format!("--token-file={}", token.display()),
        format!("--bundle-file={}", bundle.display()),
        "--reconcile-interval=1s".to_owned(),
        "--image=tulle.test/pause:1".to_owned(),
        "--image-pull-policy=Never".to_owned(),
    ];
    tulle_cli::run(words.map(OsString::from))
}

/// An injector that serves, and the API server's configuration of it.
struct Injector<'a> {
    kubernetes: &'a Kubernetes,
    child: Child,
    folder: TempDir,
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        // Without its webhook no pod must be refused for it.
        let delete = ["delete", "mutatingwebhookconfiguration", "--all"];
        drop(self.kubernetes.cluster.ask(delete, ""));
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl<'a> Injector<'a> {
    async fn start(kubernetes: &'a Kubernetes) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let cluster = &kubernetes.cluster;
        let mut command = cluster.control().on_network(std::env::current_exe()?);
        command
            .env(FOLDER, folder.path())
            .env("KUBECONFIG", cluster.kubeconfig())
            .stdin(Stdio::null());
        let injector = Self {
            kubernetes,
            child: command.spawn()?,
            folder,
        };
        let bundle = injector.folder.path().join("root.pem");
        let bundle = eventually(DEADLINE, async || Ok(std::fs::read(&bundle)?)).await?;
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "items": objects(&base64(&bundle)) });
        let apply = ["apply", "--server-side", "-f", "-"];
        cluster.ask(apply, &list.to_string())?;
        Ok(injector)
    }

    /// Runs `kubectl` with a manifest: whether it was taken, and what it said beside that.
    fn apply(&self, namespace: &str, manifest: &Value) -> anyhow::Result<(bool, String)> {
        let mut command = self.kubernetes.cluster.kubectl();
        let arguments = ["--namespace", namespace, "create", "-f", "-"];
        command.args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().context("it has an input")?;
        serde_json::to_writer(stdin, manifest)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), said))
    }

    /// A namespace with labels, in which pods can be made.
    async fn namespace(&self, name: &str, labels: &Value) -> anyhow::Result<()> {
        let cluster = &self.kubernetes.cluster;
        let meta = json!({ "name": name, "labels": labels });
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": meta });
        cluster.ask(["create", "-f", "-"], &namespace.to_string())?;
        let account = ["--namespace", name, "get", "serviceaccount", "default"];
        eventually(DEADLINE, async || cluster.ask(account, "")).await?;
        Ok(())
    }

    fn get(&self, namespace: &str, what: &[&str]) -> anyhow::Result<Value> {
        let own = ["--namespace", namespace, "get", "-o", "json"];
        let arguments = own.into_iter().chain(what.iter().copied());
        Ok(serde_json::from_str(
            &self.kubernetes.cluster.ask(arguments, "")?,
        )?)
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let of_three = |three: &[u8]| {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = move |at: usize| match at <= three.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]),
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(of_three).collect()
}

/// The webhook at a Service of the control plane's address; and one with a path where nothing is.
fn objects(bundle: &str) -> Value {
    let meta = json!({ "name": "tulle-injector", "namespace": "tulle-system" });
    let webhook = |name: &str, path: &str, label: &Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": name },
            "webhooks": [{
                "name": format!("{name}.tulle.dev"),
                "clientConfig": {
                    "service": { "name": "tulle-injector", "namespace": "tulle-system", "path": path },
                    "caBundle": bundle,
                },
                "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
                "namespaceSelector": { "matchLabels": label },
                "failurePolicy": "Fail",
                "sideEffects": "NoneOnDryRun",
                "admissionReviewVersions": ["v1"],
            }],
        })
    };
    let mut slice = meta.clone();
    slice["labels"] = json!({ "kubernetes.io/service-name": "tulle-injector" });
    json!([
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "tulle-system" } },
        { "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": { "ports": [{ "port": 443, "targetPort": 15017 }] } },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice, "addressType": "IPv4",
            "endpoints": [{ "addresses": [ADDRESS] }], "ports": [{ "port": 15017 }],
        },
        webhook("tulle-injector", "/inject", &json!({ "tulle.dev/inject": "enabled" })),
        webhook("astray", "/nowhere", &json!({ "test": "astray" })),
    ])
}

fn pod(name: &str, meta: &Value) -> Value {
    let mut meta = meta.clone();
    meta["name"] = json!(name);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": { "nodeName": "node0", "containers": [{ "name": "app", "image": "tulle.test/pause:1" }] },
    })
}

async fn the_api_server_injects_pods_and_tells_their_authors_what_is_wrong(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let injector = Injector::start(kubernetes).await?;
    let asks = json!({ "tulle.dev/inject": "enabled" });
    injector.namespace("hooked", &asks).await?;
    let plain = pod("plain", &json!({}));
    // The injector may have no certificate for a moment.
    eventually(DEADLINE, async || {
        let (taken, said) = injector.apply("hooked", &plain)?;
        ensure!(taken, "{said}");
        Ok(())
    })
    .await?;
    let made = injector.get("hooked", &["pod", "plain"])?;
    let initial = made["spec"]["initContainers"].as_array();
    let names: Vec<_> = initial
        .into_iter()
        .flatten()
        .map(|it| &it["name"])
        .collect();
    ensure!(names == ["tulle-capture", "tulle-proxy"], "{made}");
    ensure!(
        made["metadata"]["labels"]["tulle.dev/rev"] == "default",
        "{made}"
    );

    // A namespace may be younger than what its watch has told.
    for number in 0..5 {
        let name = format!("young{number}");
        injector.namespace(&name, &asks).await?;
        let (taken, said) = injector.apply(&name, &plain)?;
        ensure!(taken, "{said}");
        injector
            .kubernetes
            .cluster
            .ask(["delete", "namespace", &name, "--wait=false"], "")?;
    }

    let rows = [
        (
            "kept out",
            json!({ "annotations": { "tulle.dev/native-sidecar": "perhaps" } }),
            false,
            "pod hooked/p0: annotation tulle.dev/native-sidecar has the value \"perhaps\": it is not one of its two values; \
             write `true` or `false`",
        ),
        (
            "warned",
            json!({ "annotations": { "tulle.dev/exclude-ports": "1" } }),
            true,
            "Warning: annotation tulle.dev/exclude-ports is not known and has no effect: check its spelling",
        ),
    ];
    for (number, (name, meta, expected, words)) in rows.into_iter().enumerate() {
        let (taken, said) = injector.apply("hooked", &pod(&format!("p{number}"), &meta))?;
        ensure!(taken == expected && said.contains(words), "{name}: {said}");
    }

    injector
        .namespace("astray", &json!({ "test": "astray" }))
        .await?;
    let (taken, said) = injector.apply("astray", &plain)?;
    let words = "nothing is here: have the webhook's configuration name the path /inject";
    ensure!(!taken && said.contains(words), "{said}");

    let strict =
        json!({ "tulle.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "baseline" });
    injector.namespace("strict", &strict).await?;
    let (taken, said) = injector.apply("strict", &plain)?;
    let words = "Warning: namespace strict enforces the Pod Security Standard baseline, which forbids capture's NET_ADMIN";
    ensure!(!taken && said.contains(words), "{said}");

    uninjected(&injector).await?;
    for namespace in ["hooked", "astray", "strict", "late"] {
        kubernetes
            .cluster
            .ask(["delete", "namespace", namespace, "--wait=false"], "")?;
    }
    Ok(())
}

/// A pod from before the label is told of at its owner.
async fn uninjected(injector: &Injector<'_>) -> anyhow::Result<()> {
    injector.namespace("late", &json!({})).await?;
    let (taken, said) = injector.apply("late", &pod("early", &json!({})))?;
    ensure!(taken, "{said}");
    let label = ["label", "namespace", "late", "tulle.dev/inject=enabled"];
    injector.kubernetes.cluster.ask(label, "")?;
    let told = eventually(DEADLINE, async || {
        let events = injector.get("late", &["events", "--field-selector=reason=NotInjected"])?;
        let event = events["items"].get(0).cloned();
        event.context("nobody tells of it")
    });
    let event = told.await?;
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with(
            "pod early runs without a sidecar of the mesh; made now it would be injected: "
        ),
        "{event}"
    );
    ensure!(
        event["involvedObject"]["name"] == "early" && event["type"] == "Warning",
        "{event}"
    );
    Ok(())
}
