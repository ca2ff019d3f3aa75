//! The certificate authority: who a workload is, and for how long.
//!
//! [`token`] says who the caller is, [`authority`] signs with the mesh's root and rotates it by overlap ([`roots`],
//! kept in a [`memory`]: on disk by [`state`], in a cluster by [`secret`]; [`plugged`] is a root that somebody else provides),
//! [`sink`] hands the trust bundle to those who mount it, [`service`] is the gRPC face, and [`door`] keeps those who ask too
//! much of it out.

mod authority;
mod door;
mod failure;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod memory;
mod metrics;
mod plugged;
mod roots;
mod secret;
mod service;
mod sink;
mod state;
mod token;

use std::path::PathBuf;

pub(crate) use authority::{Authority, LONGEST_STAGE, RotateError, Settings};
pub(crate) use door::Requests;
pub(crate) use memory::Memory;
pub(crate) use metrics::Metrics;
pub(crate) use plugged::Plugged;
pub(crate) use service::{CertificateServer, CertificateService};
pub use sink::{BundleSink, DirectorySink};
pub use token::{Caller, JwksReview, KubernetesReview, TokenError, TokenReview};

/// The CA cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the state directory cannot be read or written.
    #[error("cannot use CA state {}: name a directory that this process may write with --state-dir", path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others can read the CA's keys.
    #[error("CA state {} has mode {mode:o}, others can read its keys: run chmod 600 on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The state does not make sense.
    #[error(
        "CA state {place}: {reason}; restore it from a backup, or remove it to begin with a new root (every workload must then be restarted)"
    )]
    Broken {
        /// The file or Secret.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The state is of another mesh.
    #[error(
        "CA state {place} is of trust domain {found}, not {wanted}: use --trust-domain {found}, or another state"
    )]
    OtherDomain {
        /// The file or Secret.
        place: String,
        /// The trust domain of its root.
        found: String,
        /// The one that was asked for.
        wanted: String,
    },
    /// The API server does not give or take the state.
    #[error("cannot use CA state {place}")]
    Api {
        /// The Secret.
        place: String,
        /// Why.
        #[source]
        source: crate::platform::ApiError,
    },
    /// Another replica has changed the state meanwhile.
    #[error("CA state {0} has just been changed by another replica")]
    Raced(String),
    /// The state is gone, but not its mesh.
    #[error("CA state {0} is gone, but its mesh is not, as its trust bundle (ConfigMap {namespace}/{bundle}) says: restore the state from a backup, or remove the bundle to begin with a new root (every workload must then be restarted)", namespace = tulle_runtime::names::CONTROL_NAMESPACE, bundle = tulle_runtime::names::CA_CONFIG_MAP)]
    Lost(String),
    /// A root that somebody else provides cannot be used.
    #[error("root of {place}: {reason}")]
    Plugged {
        /// The Secret.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Nobody believes what a root signs.
    #[error("peers refuse what the root signs")]
    Refused(#[source] tulle_identity::Error),
    /// Certificates cannot be made.
    #[error("cannot issue certificates")]
    Identity(#[from] tulle_identity::Error),
    /// An id cannot be made.
    #[error("the control plane's own identity")]
    Id(#[from] tulle_identity::ParseIdError),
}

impl CaError {
    /// Whether it may pass without anybody's help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Api { source, .. } => source.is_passing(),
            Self::Raced(_) => true,
            _ => false,
        }
    }

    /// The error and its causes in one line.
    fn full(&self) -> String {
        tulle_runtime::causes::chain(self)
    }
}

#[cfg(test)]
pub(crate) use token::tests as token_tests;
