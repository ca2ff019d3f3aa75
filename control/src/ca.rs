//! The certificate authority: who a workload is, and for how long.
//!
//! [`token`] says who the caller is, [`authority`] signs with the mesh's root and rotates it by overlap ([`roots`],
//! kept on disk by [`state`]), [`sink`] hands the trust bundle to those who mount it, [`service`] is the gRPC face, and
//! [`door`] keeps those who ask too much of it out.

mod authority;
mod door;
mod failure;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod metrics;
mod roots;
mod service;
mod sink;
mod state;
mod token;

use std::path::PathBuf;

pub(crate) use authority::{Authority, LONGEST_STAGE, RotateError, Settings};
pub(crate) use door::Requests;
pub(crate) use metrics::Metrics;
pub(crate) use service::{CertificateServer, CertificateService};
pub use sink::{BundleSink, DirectorySink};
pub use token::{Caller, JwksReview, TokenError, TokenReview};

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
    #[error("CA state {}: {reason}; restore it from a backup, or remove it to begin with a new root (every workload must then be restarted)", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state is of another mesh.
    #[error("CA state {} is of trust domain {found}, not {wanted}: use another --state-dir, or --trust-domain {found}", path.display())]
    OtherDomain {
        /// The file.
        path: PathBuf,
        /// The trust domain of its root.
        found: String,
        /// The one that was asked for.
        wanted: String,
    },
    /// Certificates cannot be made.
    #[error("cannot issue certificates")]
    Identity(#[from] tulle_identity::Error),
    /// An id cannot be made.
    #[error("the control plane's own identity")]
    Id(#[from] tulle_identity::ParseIdError),
}

#[cfg(test)]
pub(crate) use token::tests as token_tests;
