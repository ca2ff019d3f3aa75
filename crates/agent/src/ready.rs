//! Whether the files are good, told over HTTP and by a file.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tulle_identity::Identity;
use tulle_runtime::admin::{AdminServer, text, typed};
use tulle_runtime::metrics;

/// How far the agent has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What was written last, and under which generation.
    written: Mutex<Option<(Identity, u64)>>,
    ending: AtomicBool,
}

impl Status {
    /// Notes that this generation of the identity is on disk.
    pub(crate) fn set_written(&self, identity: &Identity, generation: u64) {
        *self.0.written.lock() = Some((identity.clone(), generation));
    }

    /// The generation that is on disk.
    pub(crate) fn written(&self) -> Option<u64> {
        self.0
            .written
            .lock()
            .as_ref()
            .map(|(_, generation)| *generation)
    }

    /// From now on it is not ready.
    pub(crate) fn set_ending(&self) {
        self.0.ending.store(true, Ordering::Relaxed);
    }

    /// Why not, if it is not ready.
    pub(crate) fn unready(&self) -> Option<String> {
        if self.0.ending.load(Ordering::Relaxed) {
            return Some("ending".to_owned());
        }
        let written = self.0.written.lock().clone();
        let Some((identity, generation)) = written else {
            return Some("no certificate yet".to_owned());
        };
        let current = identity.current();
        if let Err(error) = current.check() {
            return Some(format!("the certificate is not good: {}", error.full()));
        }
        (current.generation() != generation)
            .then(|| "the files are older than the certificate".to_owned())
    }

    /// Answers `/ready` and `/metrics`.
    pub(crate) fn routes(&self, server: &mut AdminServer, registry: Arc<Registry>) {
        let status = self.clone();
        server.get("/ready", move |_| {
            std::future::ready(match status.unready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(reason) => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {reason}\n"),
                ),
            })
        });
        server.get("/metrics", move |_| {
            std::future::ready(typed(
                StatusCode::OK,
                metrics::CONTENT_TYPE,
                metrics::encode(&registry),
            ))
        });
    }
}

/// A file that is there while the agent is ready.
#[derive(Debug)]
pub(crate) struct ReadyFile {
    path: Option<PathBuf>,
    there: bool,
}

impl ReadyFile {
    /// One that is left from before is removed: it says nothing about now.
    pub(crate) fn new(path: Option<PathBuf>) -> io::Result<Self> {
        let mut file = Self { path, there: true };
        file.set(false)?;
        Ok(file)
    }

    pub(crate) fn set(&mut self, ready: bool) -> io::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.there != ready) else {
            return Ok(());
        };
        if ready {
            fs::write(path, "ready\n")?;
        } else if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        self.there = ready;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tulle_identity::{CsrPolicy, IssueRequest, Issuer, Root, SpiffeId, TrustDomain};

    use super::*;

    #[test]
    fn ready_is_what_lies_on_disk_and_is_good_and_nothing_else() {
        let domain = TrustDomain::new("mesh.test").unwrap();
        let id = SpiffeId::new(&domain, "shop", "web").unwrap();
        let issuer = || {
            let root = Root::generate(&domain, Duration::from_secs(3600)).unwrap();
            Issuer::new(root, [], CsrPolicy::default()).unwrap()
        };
        let (ours, other) = (issuer(), issuer());
        let svid = || ours.issue_svid(&IssueRequest::new(&id)).unwrap();
        let identity = Identity::new(svid(), ours.bundle().clone());
        let status = Status::default();
        let said = || status.unready().unwrap_or_default();
        assert!(said().contains("no certificate yet"));
        status.set_written(&identity, identity.current().generation());
        assert_eq!(status.unready(), None);
        identity.rotate(svid()).unwrap();
        assert!(said().contains("older"), "{}", said());
        status.set_written(&identity, identity.current().generation());
        assert_eq!(status.unready(), None);
        identity.trust(other.bundle().clone());
        assert!(said().contains("not good"), "{}", said());
        identity.trust(ours.bundle().clone());
        status.set_written(&identity, identity.current().generation());
        assert_eq!(status.unready(), None);
        status.set_ending();
        assert!(said().contains("ending"), "{}", said());
    }

    #[test]
    fn the_file_is_there_while_ready_and_never_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        fs::write(&path, "of another life").unwrap();
        let mut file = ReadyFile::new(Some(path.clone())).unwrap();
        assert!(!path.exists());
        for ready in [true, true, false, false, true] {
            file.set(ready).unwrap();
            assert_eq!(path.exists(), ready);
        }
    }
}
