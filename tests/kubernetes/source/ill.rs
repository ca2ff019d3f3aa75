//! A real API server that is ill: it hangs, it has no time for one of its clients, it cannot convert what it has stored.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tulle_cluster::Cluster;
use tulle_tests::{Kubernetes, eventually};

use super::control::Control;
use super::{SOON, WEB, anything, define, route};

/// How long it may take until an outage is told, and until it is over: for as long as a minute an API server asks to be left alone.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who may do everything, and is a client among others for the API server.
const ACCOUNT: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: follower, namespace: default }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: follower }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin }
subjects: [{ kind: ServiceAccount, name: follower, namespace: default }]
"#;

/// Gives it one seat, so that each of its requests is answered with 429 while another of them is in work.
const ONE_SEAT: &str = r#"
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: { name: one-seat }
spec:
  type: Limited
  limited: { nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: { type: Reject } }
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: { name: one-seat }
spec:
  matchingPrecedence: 2
  priorityLevelConfiguration: { name: one-seat }
  rules:
  - subjects: [{ kind: ServiceAccount, serviceAccount: { name: follower, namespace: default } }]
    resourceRules:
    - { verbs: ["*"], apiGroups: ["*"], resources: ["*"], clusterScope: true, namespaces: ["*"] }
    nonResourceRules: [{ verbs: ["*"], nonResourceURLs: ["*"] }]
"#;

/// Who makes a ConfigMap waits as long as anybody may.
const SLOW: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: { name: slow }
webhooks:
- name: slow.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  timeoutSeconds: 30
  clientConfig: { url: "URL" }
  namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: kept } }
  rules: [{ apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE] }]
"#;

/// What is known of these has to stay, without a moment in which it is not known. Of pods Kubernetes says something else itself, when it
/// has not heard of their node for so long.
const KINDS: [&str; 2] = ["Service", "HTTPRoute"];

pub(super) async fn row_55_an_api_server_that_hangs_or_answers_429_takes_nothing_away(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, credentials(&cluster)?)?;
    let control = Control::start_as(&cluster, Some(&kubeconfig)).await?;
    cluster.ask(["create", "namespace", "kept"], "")?;
    let apply = ["--namespace=kept", "apply", "--server-side", "-f", "-"];
    cluster.ask(apply, WEB)?;
    let definition = anything("HTTPRoute", "httproutes", &["v1beta1", "v1"]);
    define(&cluster, &definition)?;
    let create = ["create", "-f", "-"];
    // Stored in another version than is read, so that who reads it needs a conversion.
    let stored = route("HTTPRoute", "v1beta1", "stored", "[{}]");
    eventually(SOON, async || cluster.ask(create, &stored)).await?;
    control.sees_ready("kept/web", Some(2)).await?;
    control.sees("routes", 1).await?;
    let before = changes(&control)?;

    cluster.hang_api_server()?;
    told(&control, "services", "said nothing").await?;
    cluster.resume_api_server()?;
    healed(&control).await?;
    control.sees_ready("kept/web", Some(2)).await?;

    {
        let _busy = Busy::make(&cluster, &kubeconfig)?;
        told(&control, "services", "429").await?;
    }
    healed(&control).await?;
    control.sees_ready("kept/web", Some(2)).await?;

    let routes = "httproutes.gateway.networking.k8s.io";
    let convert = |conversion: Value| {
        let patch = json!({ "spec": { "conversion": conversion } }).to_string();
        let patch = [
            "patch",
            "customresourcedefinition",
            routes,
            "--type=merge",
            "-p",
            &patch,
        ];
        cluster.ask(patch, "").map(drop)
    };
    // Nobody is there to convert it; an API server answers 429 to that, too, because it cannot fill its cache.
    let client = json!({ "url": "https://127.0.0.1:1/" });
    let webhook = json!({ "clientConfig": client, "conversionReviewVersions": ["v1"] });
    convert(json!({ "strategy": "Webhook", "webhook": webhook }))?;
    told(&control, routes, "conversion webhook").await?;
    convert(json!({ "strategy": "None", "webhook": null }))?;
    healed(&control).await?;

    let after = changes(&control)?;
    ensure!(before == after, "{before:?} became {after:?}");
    let scale = [
        "--namespace=kept",
        "scale",
        "deployment/web",
        "--replicas=1",
    ];
    cluster.ask(scale, "")?;
    control.sees_ready("kept/web", Some(1)).await
}

/// The account's only seat is taken, again and again, by a request that waits for a webhook. Free again when dropped.
struct Busy<'a> {
    cluster: &'a Cluster,
    over: Arc<AtomicBool>,
    asks: Option<JoinHandle<()>>,
    _silent: TcpListener,
}

impl<'a> Busy<'a> {
    fn make(cluster: &'a Cluster, kubeconfig: &Path) -> anyhow::Result<Self> {
        // It takes connections, and nobody reads from them.
        let silent = Control::listen(cluster)?;
        let url = format!("https://{}/", silent.local_addr()?);
        cluster.ask(
            ["apply", "--server-side", "-f", "-"],
            &SLOW.replace("URL", &url),
        )?;
        cluster.ask(["apply", "--server-side", "-f", "-"], ONE_SEAT)?;
        let mut ask = cluster.kubectl();
        ask.env("KUBECONFIG", kubeconfig);
        ask.args([
            "create",
            "configmap",
            "slow",
            "--namespace=kept",
            "--dry-run=server",
        ]);
        ask.stdout(Stdio::null()).stderr(Stdio::null());
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let asks = thread::spawn(move || {
            // What becomes of it does not matter, only that it takes its time.
            while !until.load(Ordering::Relaxed) && ask.status().is_ok() {}
        });
        Ok(Self {
            cluster,
            over,
            asks: Some(asks),
            _silent: silent,
        })
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for object in ["flowschema/one-seat", "validatingwebhookconfiguration/slow"] {
            if let Err(error) = self.cluster.ask(["delete", object], "") {
                eprintln!("{object} stays: {error:#}");
            }
        }
        if let Some(asks) = self.asks.take() {
            let _ = asks.join();
        }
    }
}

/// The cluster's kubeconfig, with the account's token.
fn credentials(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.ask(["apply", "--server-side", "-f", "-"], ACCOUNT)?;
    let token = cluster.ask(["create", "token", "follower", "--duration=1h"], "")?;
    let view = ["config", "view", "--raw", "--minify", "--output=json"];
    let mut config: Value = serde_json::from_str(&cluster.ask(view, "")?)?;
    config["users"][0]["user"] = json!({ "token": token.trim() });
    Ok(config.to_string())
}

/// How many times what is known has changed, by kind.
fn changes(control: &Control) -> anyhow::Result<[Value; KINDS.len()]> {
    let mut generations = control.debug("world")?["generations"].take();
    Ok(KINDS.map(|kind| generations[kind].take()))
}

/// Waits until a resource is said to be out of reach for that reason, while the control plane goes on.
async fn told(control: &Control, resource: &str, reason: &str) -> anyhow::Result<()> {
    eventually(PATIENCE, async || {
        let problems = control.debug("source")?["problems"].take();
        let all = problems.as_array().into_iter().flatten();
        let mut of = all.filter(|it| it["resource"] == resource);
        ensure!(of.any(|it| it.to_string().contains(reason)), "{problems}");
        Ok(())
    })
    .await?;
    ensure!(control.is_ready()?, "it serves what it knows");
    let ready = control.ready_pods("kept/web")?;
    ensure!(ready == Some(2), "{ready:?} ready pods are known");
    Ok(())
}

/// Waits until everything can be followed again.
async fn healed(control: &Control) -> anyhow::Result<()> {
    let since = Instant::now();
    eventually(PATIENCE, async || {
        let problems = control.debug("source")?;
        ensure!(problems["problems"] == json!([]), "{problems}");
        Ok(())
    })
    .await?;
    eprintln!("followed again after {:?}", since.elapsed());
    Ok(())
}
