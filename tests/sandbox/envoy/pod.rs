//! A pod with an unmodified Envoy as its sidecar: capture, `tulle agent`, Envoy, app; and what its admin endpoint says.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tulle_runtime::names::{PROXY_UID, containers, files, labels, ports, variables};
use tulle_tests::manifests::App;
use tulle_tests::{Arena, Metrics, eventually, gate};

/// Name of Envoy's container.
pub(crate) const ENVOY: &str = "envoy";
const BOOTSTRAP: &str = "/var/run/secrets/tulle-state/envoy.json";
/// Where Envoy's program is mounted.
const PROGRAM: &str = "/run/secrets/envoy";
const DEADLINE: Duration = Duration::from_secs(10);

/// Variants of the protocol, as `tulle agent` names them.
pub(crate) const DELTA: &str = "delta";
pub(crate) const FULL: &str = "sotw";

/// The manifests of an app whose pods have Envoy instead of our own sidecar.
pub(crate) fn with_envoy(app: App, variant: &str) -> anyhow::Result<String> {
    let app = app.label(labels::PROXIED, "true").agent(&[
        "--bootstrap=envoy",
        &format!("--bootstrap-file={BOOTSTRAP}"),
        &format!("--xds-variant={variant}"),
    ]);
    let mut text = String::new();
    let documents = app.yaml();
    for document in documents.split("---\n").filter(|it| !it.trim().is_empty()) {
        let mut document: Value = serde_json::from_str(document)?;
        if document["kind"] == "Deployment" {
            add_envoy(&mut document["spec"]["template"]["spec"])?;
        }
        text.push_str(&format!("---\n{document}\n"));
    }
    Ok(text)
}

fn add_envoy(pod: &mut Value) -> anyhow::Result<()> {
    let containers = pod["initContainers"].as_array_mut().context("no agent")?;
    for agent in containers.iter_mut() {
        agent["securityContext"] = sidecar();
    }
    containers.insert(0, capture());
    containers.push(envoy());
    let volumes = pod["volumes"].as_array_mut().context("no volumes")?;
    volumes.push(json!({ "name": "program", "hostPath": { "path": program()? } }));
    Ok(())
}

/// The same whose Envoys have a layer of runtime settings from the control plane, too, and wait a second for it.
pub(crate) fn with_runtime_layer(manifests: &str) -> String {
    const ALONE: &str = "\"--disable-hot-restart\"";
    let source = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "1s" });
    let layer =
        json!({ "name": "theirs", "rtds_layer": { "name": "theirs", "rtds_config": source } });
    let more = json!({ "layered_runtime": { "layers": [layer] } }).to_string();
    manifests.replace(
        ALONE,
        &format!("{ALONE},\"--config-yaml\",{}", Value::String(more)),
    )
}

/// As the injector makes it.
fn capture() -> Value {
    json!({
        "name": "capture",
        "image": containers::PROXY_IMAGE,
        "args": ["capture", format!("--exclude-inbound-ports={},{}", ports::METRICS, ports::READINESS)],
        "env": [field(variables::POD_IP, "status.podIP")],
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
        },
    })
}

/// The directory of the program. Where it lies the user of the sidecar may not come.
fn program() -> anyhow::Result<PathBuf> {
    let program = gate::envoy().context("there is no Envoy")?;
    let directory = program.parent().context("Envoy has no directory")?;
    Ok(directory.to_owned())
}

fn envoy() -> Value {
    let ready = format!("http://127.0.0.1:{}/ready", ports::ADMIN);
    json!({
        "name": ENVOY,
        "image": "foreign",
        "command": [
            format!("{PROGRAM}/envoy"), "-c", BOOTSTRAP, "--concurrency", "1", "--disable-hot-restart", "-l", "warning",
        ],
        "restartPolicy": "Always",
        // Its admin endpoint is on loopback, where only the pod itself can ask it.
        "startupProbe": {
            "exec": { "command": ["curl", "-sf", ready] },
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "securityContext": sidecar(),
        "volumeMounts": [
            { "name": containers::STATE_VOLUME, "mountPath": files::STATE_DIR },
            { "name": "program", "mountPath": PROGRAM, "readOnly": true },
        ],
    })
}

/// The user whose connections capture leaves alone.
fn sidecar() -> Value {
    json!({ "runAsUser": PROXY_UID, "runAsGroup": PROXY_UID })
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

/// What an Envoy measures.
pub(crate) async fn stats(arena: &Arena<'_>, pod: &str) -> anyhow::Result<Metrics> {
    match arena.admin(pod, "/stats/prometheus").await? {
        Value::String(text) => Ok(Metrics::new(text)),
        other => bail!("/stats of {pod} answered {other}"),
    }
}

/// Lines of an Envoy's access log, newest last.
pub(crate) fn access_log(arena: &Arena<'_>, pod: &str) -> anyhow::Result<Vec<Value>> {
    let log = arena.logs(pod, Some(ENVOY))?;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(lines.collect())
}

fn without(dump: &str, pod: &str, word: &str) -> anyhow::Result<()> {
    match dump.find(word) {
        Some(at) => bail!(
            "{word} in the configuration of {pod}: {:.2000}",
            &dump[at..]
        ),
        None => Ok(()),
    }
}

/// What an Envoy was told by the control plane is all in effect: acknowledged as the control plane sees it, and nothing
/// of it rejected or left warming as Envoy sees it.
pub(crate) async fn all_accepted(arena: &Arena<'_>, pod: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let name = arena.pod(pod)?.key.name;
        let proxies = arena.mesh().control_admin("/debug/proxies").await?;
        let wanted = format!("{}/{name}", arena.namespace());
        let own = proxies
            .as_array()
            .into_iter()
            .flatten()
            .find(|proxy| proxy["pod"] == wanted.as_str())
            .with_context(|| format!("{wanted} is not connected: {proxies}"))?;
        ensure!(own["kind"] == "envoy", "{own}");
        for kind in ["CDS", "EDS", "LDS", "RDS", "SDS"] {
            let state = &own["types"][kind];
            ensure!(
                state["acked_nonce"].is_string() && state["acked_nonce"] == state["sent_nonce"],
                "{kind} is not acknowledged: {state}"
            );
            ensure!(
                state["pending"] == 0
                    && state["rejected"] == json!([])
                    && state["last_error"].is_null(),
                "{kind}: {state}"
            );
        }
        // Services of others come while this looks, and are warming for a moment.
        let dump = arena.admin(pod, "/config_dump").await?.to_string();
        without(&dump, pod, "dynamic_warming")
    })
    .await?;
    let dump = arena.admin(pod, "/config_dump").await?.to_string();
    without(&dump, pod, "error_state")?;
    let stats = stats(arena, pod).await?;
    for manager in ["listener_manager_lds", "cluster_manager_cds"] {
        let successes = stats.sum(&format!("envoy_{manager}_update_success"), &[]);
        ensure!(
            successes >= 1.0,
            "{pod} never took an update: {}",
            stats.text()
        );
    }
    let counters = stats.text().lines().filter(|line| !line.starts_with('#'));
    let mut rejections = counters.filter(|line| {
        let counts = line.contains("update_rejected") || line.contains("init_fetch_timeout");
        // Nobody serves runtime settings.
        counts && !line.starts_with("envoy_runtime_") && !line.ends_with(" 0")
    });
    let rejection = rejections.next();
    ensure!(
        rejection.is_none(),
        "{pod} did not take an update: {rejection:?}"
    );
    Ok(())
}
