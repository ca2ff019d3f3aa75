//! Where the CA keeps its roots: a file of one control plane, or a Secret that the replicas of one share.

use std::path::Path;
use std::time::Duration;

use kube::Client;

use super::CaError;
use super::roots::Roots;
use super::secret::RootSecret;
use super::state::StateFile;

/// Longest time in which the Secret is not looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How old what a replica knows of the roots may be for it to sign by it.
const STALE: Duration = Duration::from_secs(60);

/// Where the roots are kept.
#[derive(Debug)]
pub(crate) enum Memory {
    /// In a file.
    File(StateFile),
    /// In a Secret.
    Secret(Box<RootSecret>),
}

impl Memory {
    /// A file in a directory, which is made if it is missing.
    pub(crate) fn in_directory(dir: &Path) -> Result<Self, CaError> {
        StateFile::open(dir).map(Self::File)
    }

    /// The Secret.
    pub(crate) fn in_secret(client: &Client) -> Self {
        Self::Secret(Box::new(RootSecret::new(client)))
    }

    /// What people call it.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::File(file) => file.place(),
            Self::Secret(_) => RootSecret::place(),
        }
    }

    /// What was saved, or `None` if there is nothing.
    pub(crate) async fn load(&self) -> Result<Option<Roots>, CaError> {
        match self {
            Self::File(file) => file.load(),
            Self::Secret(secret) => secret.load().await,
        }
    }

    /// Replaces what is saved.
    pub(crate) async fn save(&self, roots: &Roots) -> Result<(), CaError> {
        match self {
            Self::File(file) => file.save(roots),
            Self::Secret(secret) => secret.save(roots).await,
        }
    }

    /// Fails if nothing is saved although something was.
    pub(crate) async fn may_begin(&self) -> Result<(), CaError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Secret(secret) => secret.may_begin().await,
        }
    }

    /// Whether somebody else may have changed it since it was read.
    pub(crate) fn is_due(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Secret(secret) => secret.is_hinted() || secret.asked().elapsed() >= LOOK,
        }
    }

    /// Have it read again.
    pub(crate) fn hint(&self) {
        if let Self::Secret(secret) = self {
            secret.hint();
        }
    }

    /// For how long another replica may still sign as it was before a change.
    pub(crate) fn lag(&self) -> Duration {
        match self {
            Self::File(_) => Duration::ZERO,
            Self::Secret(_) => STALE,
        }
    }

    /// Whether what is known of it is too old to sign by.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Secret(secret) => secret.asked().elapsed() >= STALE,
        }
    }

    /// Longest pause between two looks.
    pub(crate) fn look(&self, pause: Duration) -> Duration {
        match self {
            Self::File(_) => pause,
            Self::Secret(_) => pause.min(LOOK),
        }
    }

    /// Calls `wake` whenever somebody else may have changed it, for ever.
    pub(crate) async fn follow(&self, wake: impl Fn()) {
        match self {
            Self::File(_) => std::future::pending().await,
            Self::Secret(secret) => secret.follow(wake).await,
        }
    }
}
