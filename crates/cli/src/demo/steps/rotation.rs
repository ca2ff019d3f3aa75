//! A new root, and certificates under it, while requests are answered.
//!
//! What counts is what sidecars present in a handshake, held against the old root alone and against the new one alone.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tulle_identity::verify::{Expected, Usage, verify_chain};
use tulle_identity::{TrustBundle, TrustDomain};
use tulle_runtime::names::ports;

use super::RATE;
use super::identity::{certificates, meshed};
use crate::app;
use crate::demo::report::Evidence;
use crate::demo::stage::Stage;

/// How long certificates are waited for: longer than half of their life, when they are renewed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The roots before and after.
struct Roots {
    domain: TrustDomain,
    old: TrustBundle,
    new: TrustBundle,
}

/// How many sidecars present a certificate of which root.
#[derive(Debug, Default, Clone, Copy)]
struct Presented {
    old: usize,
    new: usize,
    /// Of neither, or of both: it should not happen.
    other: usize,
}

impl Presented {
    fn all(self) -> usize {
        self.old + self.new + self.other
    }
}

pub(super) async fn rotation(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    // Ended when enough certificates were replaced, long before its time.
    let load = stage.load("http://web/", RATE, 2.0 * PATIENCE.as_secs_f64(), &[])?;
    let roots = replace().await?;
    evidence.tell("old root", subject(&roots.old)?);
    evidence.tell("new root", subject(&roots.new)?);
    overlap(stage, evidence, &roots).await?;
    switched(stage, evidence, &roots).await?;
    let summary = load.stop().await?;
    evidence.hold("GET all the while", summary.line(), summary.failed == 0);
    Ok(())
}

/// Asks the control plane for a new root.
async fn replace() -> anyhow::Result<Roots> {
    let old = bundle(&ask("GET", "/ca").await?)?;
    ensure!(old.roots().len() == 1, "another rotation is under way");
    let both = bundle(&ask("POST", "/ca/rotate-root").await?)?;
    let mut added = both.roots().to_vec();
    added.retain(|root| !old.roots().contains(root));
    ensure!(
        added.len() == 1 && both.roots().len() == 2,
        "the control plane trusts {} roots, {} of them new",
        both.roots().len(),
        added.len()
    );
    Ok(Roots {
        domain: TrustDomain::new("cluster.local")?,
        old,
        new: TrustBundle::new(added)?,
    })
}

/// Before the new root signs anything, every sidecar trusts both.
async fn overlap(stage: &Stage, evidence: &mut Evidence, roots: &Roots) -> anyhow::Result<()> {
    let wanted = [serial(&roots.old)?, serial(&roots.new)?];
    let trusts_both = |trusted: &[super::identity::Root]| {
        wanted
            .iter()
            .all(|serial| trusted.iter().any(|root| root.serial == *serial))
    };
    let (mut trusting, mut all) = (0, 0);
    for _ in 0..40 {
        let certificates = certificates(stage).await?;
        all = certificates.len();
        trusting = certificates
            .iter()
            .filter(|certificate| trusts_both(&certificate.roots))
            .count();
        if trusting == all {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    evidence.hold(
        "sidecars that trust both roots",
        format!("{trusting} of {all}"),
        trusting == all,
    );
    let presented = presented(stage, roots).await?;
    // The control plane waits a fixed time before the new root signs, and this machine may be slow: so only told.
    evidence.tell(
        "certificates of the old root by then",
        format!("{} of {}", presented.old, presented.all()),
    );
    Ok(())
}

/// The new root signs: sidecars change over one by one.
async fn switched(stage: &Stage, evidence: &mut Evidence, roots: &Roots) -> anyhow::Result<()> {
    let started = tokio::time::Instant::now();
    let (mut now, mut mixed) = (Presented::default(), None);
    while started.elapsed() < PATIENCE {
        now = presented(stage, roots).await?;
        if now.old > 0 && now.new > 0 {
            mixed = Some(now);
        }
        if now.new * 2 > now.all() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let mixture = mixed.unwrap_or_default();
    evidence.hold(
        "certificates of both roots at once",
        format!("{} of the old, {} of the new", mixture.old, mixture.new),
        mixed.is_some(),
    );
    evidence.hold(
        "certificates that the new root alone verifies",
        format!("{} of {}", now.new, now.all()),
        now.new * 2 > now.all() && now.other == 0,
    );
    Ok(())
}

/// Shakes hands with every sidecar.
async fn presented(stage: &Stage, roots: &Roots) -> anyhow::Result<Presented> {
    let mut presented = Presented::default();
    for pod in meshed(stage) {
        let url = format!("tls://{}:8080", pod.ips.v4);
        let chain = tokio::time::timeout(HANDSHAKE, app::presented(&url))
            .await
            .with_context(|| format!("{} does not shake hands", pod.key))??;
        let by = [&roots.old, &roots.new].map(|root| verifies(&chain, root, &roots.domain));
        match by {
            [true, false] => presented.old += 1,
            [false, true] => presented.new += 1,
            _ => presented.other += 1,
        }
    }
    Ok(presented)
}

fn verifies(chain: &[CertificateDer<'_>], root: &TrustBundle, domain: &TrustDomain) -> bool {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return false;
    };
    let domains = std::slice::from_ref(domain);
    let expected = Expected::Domains(domains);
    verify_chain(
        leaf,
        intermediates,
        root,
        Usage::Server,
        expected,
        UnixTime::now(),
    )
    .is_ok()
}

fn subject(root: &TrustBundle) -> anyhow::Result<String> {
    let info = root.describe().into_iter().next();
    Ok(info.context("a root has a subject")?.subject)
}

fn serial(root: &TrustBundle) -> anyhow::Result<String> {
    let info = root.describe().into_iter().next();
    Ok(info.context("a root has a serial number")?.serial)
}

fn bundle(status: &Value) -> anyhow::Result<TrustBundle> {
    let pem = status.get("trust_bundle").and_then(Value::as_str);
    let pem = pem.with_context(|| format!("the control plane answered {status}"))?;
    Ok(TrustBundle::from_pem(pem.as_bytes())?)
}

/// Asks the control plane, on the node's loopback.
async fn ask(method: &str, path: &str) -> anyhow::Result<Value> {
    let url = format!("http://127.0.0.1:{}{path}", ports::CONTROL_ADMIN);
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = tokio::process::Command::new(program)
        .args(["app", "call", "--json", "--method", method, &url])
        .env_remove("TULLE_SANDBOX_STAGE")
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{path}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut answer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(answer["body"].take())
}
