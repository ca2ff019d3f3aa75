//! Certificates from the mesh's own root, for control planes that are not ours.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use tulle_identity::{CsrPolicy, IssueRequest, Issuer, Root, Svid, TrustBundle};

/// Where the mesh's CA keeps its root.
const CA: &str = "/run/tulle/control/ca.json";

/// An SVID as any workload has one, and the mesh's roots.
pub(crate) fn svid(id: &str) -> anyhow::Result<(Svid, TrustBundle)> {
    svid_of(Path::new(CA), id)
}

/// The same, of the CA whose state is in that file.
pub(crate) fn svid_of(ca: &Path, id: &str) -> anyhow::Result<(Svid, TrustBundle)> {
    let state: Value = serde_json::from_slice(&std::fs::read(ca)?)?;
    let secret = state["roots"][0]["secret"].as_str().context("a root")?;
    let issuer = Issuer::new(Root::from_pem(secret)?, [], CsrPolicy::default())?;
    let svid = issuer.issue_svid(&IssueRequest::new(&id.parse()?))?;
    Ok((svid, issuer.bundle().clone()))
}
