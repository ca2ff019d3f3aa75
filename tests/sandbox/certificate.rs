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

/// The same, of the CA whose state is in that file. During a rotation of the roots everybody trusts the first one, but
/// certificates may be of any.
pub(crate) fn svid_of(ca: &Path, id: &str) -> anyhow::Result<(Svid, TrustBundle)> {
    let state: Value = serde_json::from_slice(&std::fs::read(ca)?)?;
    let roots = state["roots"].as_array().context("no roots")?;
    let secrets = roots.iter().filter_map(|root| root["secret"].as_str());
    let roots: Result<Vec<_>, _> = secrets.map(Root::from_pem).collect();
    let mut roots = roots?.into_iter();
    let signer = roots.next().context("no root")?;
    let others: Vec<_> = roots.map(|root| root.cert().clone()).collect();
    let issuer = Issuer::new(signer, others, CsrPolicy::default())?;
    let svid = issuer.issue_svid(&IssueRequest::new(&id.parse()?))?;
    Ok((svid, issuer.bundle().clone()))
}
