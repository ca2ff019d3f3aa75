//! The trust bundle's file, and whether it has changed.

use std::path::PathBuf;

use crate::bundle::TrustBundle;
use crate::error::Error;

pub(super) struct BundleFile {
    path: PathBuf,
    /// What was read last, good or bad, so that each change is judged and reported once.
    seen: Option<Vec<u8>>,
}

impl BundleFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Reads it now.
    pub(super) fn load(&mut self) -> Result<TrustBundle, Error> {
        let content = std::fs::read(&self.path).map_err(|e| Error::file(&self.path, e))?;
        let bundle = TrustBundle::from_pem(&content);
        self.seen = Some(content);
        bundle
    }

    /// The new bundle, if the file changed and is good; a bad one is reported and the old one stays.
    pub(super) fn changed(&mut self) -> Option<TrustBundle> {
        // A few kilobytes of a local volume: cheaper than a thread to read them on.
        let content = std::fs::read(&self.path).ok()?;
        if self.seen.as_ref() == Some(&content) {
            return None;
        }
        let bundle = TrustBundle::from_pem(&content);
        self.seen = Some(content);
        bundle
            .inspect_err(|e| {
                tracing::warn!(
                    error = e.full(),
                    "trust bundle not taken; the last good one stays"
                )
            })
            .ok()
    }
}
