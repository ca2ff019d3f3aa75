//! What an operator may see of the roots.

use std::time::SystemTime;

use super::{Authority, Stage};

/// What an operator may see of the roots.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Status {
    stage: Stage,
    next_step_in_seconds: Option<u64>,
    /// Whether this replica takes the steps of a rotation.
    elected: bool,
    /// Whether the elected replica's bundle has arrived; another does not know.
    bundle_published: bool,
    /// Where the elected replica cannot put its bundle, and why.
    bundle_refused: Vec<String>,
    leaf_ttl_seconds: u64,
    /// When what signs ends, in seconds since 1970: the root, or what is below it.
    signer_ends: u64,
    trust_bundle: String,
}

impl Authority {
    /// What an operator may see.
    pub(crate) fn status(&self) -> Status {
        let settings = &self.settings;
        let elected = settings.leadership.term().is_some();
        let sinks = settings.sinks.iter().filter(|_| elected);
        let bundle_refused = sinks.flat_map(|sink| sink.refused()).collect();
        let ends = self.issuer.load().root().not_after();
        let ends = ends.duration_since(SystemTime::UNIX_EPOCH);
        let state = self.state.lock();
        let left = |due: SystemTime| {
            due.duration_since((settings.now)())
                .unwrap_or_default()
                .as_secs()
        };
        Status {
            stage: state.roots.stage(),
            next_step_in_seconds: state.roots.due(settings.propagation).map(left),
            elected,
            bundle_published: elected && state.published,
            bundle_refused,
            leaf_ttl_seconds: settings.leaf_ttl.as_secs(),
            signer_ends: ends.unwrap_or_default().as_secs(),
            trust_bundle: state.roots.bundle(),
        }
    }
}
