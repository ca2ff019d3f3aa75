//! Who is who, and that nobody else can listen or talk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tulle_runtime::names::containers;
use tulle_sandbox::ObjectKey;

use super::RATE;
use crate::demo::report::Evidence;
use crate::demo::stage::Stage;

/// A word that no protocol of ours contains.
const SECRET: &str = "the-crown-jewels-are-in-the-attic";

pub(super) async fn identities(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let certificates = certificates(stage).await?;
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    for certificate in certificates.values() {
        *ids.entry(text(certificate, "id")).or_default() += 1;
    }
    for (id, count) in ids {
        evidence.hold(
            id,
            format!("{count} sidecars"),
            id.starts_with("spiffe://cluster.local/ns/shop/sa/"),
        );
    }
    let serials: BTreeSet<_> = certificates
        .values()
        .map(|certificate| text(certificate, "serial"))
        .collect();
    evidence.hold(
        "distinct certificates",
        serials.len(),
        serials.len() == certificates.len(),
    );
    Ok(())
}

pub(super) async fn mutual_tls(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let encrypted = captured(stage).await?;
    evidence.hold(
        "plaintext on the bridge, mTLS on",
        seen(encrypted),
        encrypted == 0,
    );
    stranger(stage, evidence).await?;

    stage.edit("00-namespaces.yaml", |text| {
        text.replace("mode: STRICT", "mode: DISABLE")
    })?;
    let mut clear = 0;
    for _ in 0..20 {
        clear = captured(stage).await?;
        if clear > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    evidence.hold("the same capture, mTLS off", seen(clear), clear > 0);
    stage.edit("00-namespaces.yaml", |text| {
        text.replace("mode: DISABLE", "mode: STRICT")
    })?;
    for _ in 0..20 {
        if captured(stage).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("mTLS did not come back after it was switched on again")
}

/// A client outside the mesh calls a pod: in plaintext, and with TLS but no certificate.
async fn stranger(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let stranger = ObjectKey::new("outside", "stranger");
    let target = format!("{}:8080", stage.pod("web")?.ips.v4);
    let (status, answer) = stage
        .call(&stranger, &[&format!("http://{target}/")])
        .await?;
    evidence.hold(
        "a stranger in plaintext",
        outcome(status, &answer),
        status != 0,
    );
    let (status, answer) = stage.call(&stranger, &[&format!("tls://{target}")]).await?;
    evidence.hold(
        "a stranger without a certificate",
        outcome(status, &answer),
        status != 0,
    );
    Ok(())
}

fn outcome(status: i32, answer: &Value) -> String {
    if status == 0 {
        return "was let in".to_owned();
    }
    let reason = answer
        .get("reason")
        .and_then(Value::as_str)
        .or(answer.as_str());
    let first = reason
        .and_then(|reason| reason.lines().next())
        .unwrap_or("refused");
    format!("refused: {first}")
}

fn seen(count: usize) -> String {
    if count == 0 {
        "none found".to_owned()
    } else {
        format!("found {count} times")
    }
}

/// How often the secret shows on the bridge while it is sent to each web pod in turn.
async fn captured(stage: &Stage) -> anyhow::Result<usize> {
    let capture = stage.sandbox.capture()?;
    let shopper = ObjectKey::new("shop", "shopper");
    let header = format!("x-secret:{SECRET}");
    for _ in 0..3 {
        let (status, answer) = stage
            .call(
                &shopper,
                &["http://web/", "--header", &header, "--data", SECRET],
            )
            .await?;
        anyhow::ensure!(status == 0, "the shopper got {answer}");
    }
    capture.settle().await;
    anyhow::ensure!(capture.frames() > 0, "the capture saw nothing at all");
    Ok(capture.count(SECRET.as_bytes()))
}

pub(super) async fn rotation(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    // Ended when enough certificates were replaced, long before its time.
    let load = stage.load("http://web/", RATE, 30.0, &[])?;
    let before = certificates(stage).await?;
    let (status, answer) = rotate_root().await?;
    evidence.hold("new root", answer, status == 0);
    let mut roots = 0;
    for _ in 0..40 {
        roots = trusted_roots(stage).await?;
        if roots > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    evidence.hold("roots trusted during the overlap", roots, roots > 1);
    let mut rotated = 0;
    let mut total = 0;
    for _ in 0..100 {
        let after = certificates(stage).await?;
        let serial = |certificates: &BTreeMap<String, Value>, pod: &str| {
            certificates
                .get(pod)
                .map(|certificate| text(certificate, "serial").to_owned())
        };
        let kept: Vec<_> = after
            .keys()
            .filter(|pod| before.contains_key(*pod))
            .collect();
        total = kept.len();
        rotated = kept
            .iter()
            .filter(|pod| serial(&after, pod) != serial(&before, pod))
            .count();
        if rotated * 2 > total {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    evidence.hold(
        "sidecars with a new certificate",
        format!("{rotated} of {total}"),
        rotated * 2 > total,
    );
    let summary = load.stop().await?;
    evidence.hold("GET all the while", summary.line(), summary.failed == 0);
    Ok(())
}

/// Asks the control plane, on the node's loopback, for a new root.
async fn rotate_root() -> anyhow::Result<(i32, String)> {
    let url = format!(
        "http://127.0.0.1:{}/ca/rotate-root",
        tulle_runtime::names::ports::CONTROL_ADMIN
    );
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = tokio::process::Command::new(program)
        .args(["app", "call", "--json", "--method", "POST", &url])
        .env_remove("TULLE_SANDBOX_STAGE")
        .output()
        .await?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let stage = answer
        .pointer("/body/stage")
        .and_then(Value::as_object)
        .and_then(|stage| stage.keys().next());
    let said = stage.map_or_else(
        || String::from_utf8_lossy(&output.stderr).into_owned(),
        String::clone,
    );
    Ok((output.status.code().unwrap_or(1), said))
}

async fn trusted_roots(stage: &Stage) -> anyhow::Result<usize> {
    let shopper = ObjectKey::new("shop", "shopper");
    let certificates: Value = stage.admin(&shopper, "/certs").await?;
    Ok(certificates
        .get("roots")
        .and_then(Value::as_array)
        .map_or(0, Vec::len))
}

/// What each sidecar says of its certificate, by pod.
async fn certificates(stage: &Stage) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for pod in stage.sandbox.pods() {
        if pod.container(containers::PROXY).is_some() && !pod.terminating && pod.ready {
            found.insert(pod.key.to_string(), stage.admin(&pod.key, "/certs").await?);
        }
    }
    Ok(found)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
