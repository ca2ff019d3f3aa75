//! Where the trust bundle goes, for workloads to mount.

use std::fs;
use std::io;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tulle_runtime::names::files::CA_BUNDLE_KEY;

use super::state::replace;

/// Takes the trust bundle whenever it changes.
pub trait BundleSink: Send + Sync + 'static {
    /// Puts the bundle (PEM) in place of the one before.
    ///
    /// # Errors
    /// If it did not arrive; it will be tried again, and no root signs before its bundle has arrived.
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, io::Result<()>>;

    /// Whether a namespace is known to have another bundle than that. Who has none at all is not meant.
    fn lacks(&self, _namespace: &str, _pem: &str) -> bool {
        false
    }

    /// Where the bundle cannot be put, and why, as far as this replica knows.
    fn refused(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Writes the bundle to `root.pem` in a directory, as a whole.
#[derive(Debug)]
pub struct DirectorySink {
    dir: PathBuf,
}

impl DirectorySink {
    /// Writes into `dir`, which is made if it is missing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn write(&self, pem: &str) -> io::Result<()> {
        let path = self.dir.join(CA_BUNDLE_KEY);
        let write = || {
            fs::create_dir_all(&self.dir)?;
            replace(&path, pem.as_bytes(), 0o644)
        };
        write().map_err(|error| {
            let remedy =
                "name a directory that this process may write with --bundle-dir, and make room";
            io::Error::new(
                error.kind(),
                format!("{}: {error}; {remedy}", path.display()),
            )
        })
    }
}

impl BundleSink for DirectorySink {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(self.write(pem)))
    }
}
