//! Who is who.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tulle_runtime::names::containers;
use tulle_sandbox::PodView;

use crate::demo::report::Evidence;
use crate::demo::stage::Stage;

/// What a sidecar says of its certificate.
#[derive(Debug, Deserialize)]
pub(super) struct Certificate {
    id: String,
    serial: String,
    /// The roots that it trusts.
    pub(super) roots: Vec<Root>,
}

/// What a sidecar says of a root.
#[derive(Debug, Deserialize)]
pub(super) struct Root {
    pub(super) serial: String,
}

pub(super) async fn identities(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let certificates = certificates(stage).await?;
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    for certificate in &certificates {
        *ids.entry(&certificate.id).or_default() += 1;
    }
    for (id, count) in ids {
        evidence.hold(
            id,
            format!(
                "{count} {}",
                if count == 1 { "sidecar" } else { "sidecars" }
            ),
            id.starts_with("spiffe://cluster.local/ns/shop/sa/"),
        );
    }
    let serials: BTreeSet<_> = certificates
        .iter()
        .map(|certificate| &certificate.serial)
        .collect();
    evidence.hold(
        "distinct certificates",
        serials.len(),
        serials.len() == certificates.len(),
    );
    Ok(())
}

/// The ready pods that have a sidecar.
pub(super) fn meshed(stage: &Stage) -> Vec<PodView> {
    let mut pods = stage.sandbox.pods();
    pods.retain(|pod| pod.container(containers::PROXY).is_some() && !pod.terminating && pod.ready);
    pods
}

/// What each sidecar says of its certificate.
pub(super) async fn certificates(stage: &Stage) -> anyhow::Result<Vec<Certificate>> {
    let mut found = Vec::new();
    for pod in meshed(stage) {
        found.push(stage.admin(&pod.key, "/certs").await?);
    }
    Ok(found)
}
