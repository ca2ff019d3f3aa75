//! What can go wrong while making, loading or renewing an identity. Judging a peer has its own [`VerifyError`].

use std::io;
use std::path::PathBuf;

use crate::spiffe::{ParseIdError, SpiffeId};
use crate::verify::VerifyError;

/// An identity could not be made, loaded or renewed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id is malformed.
    #[error("bad identity")]
    Id(#[from] ParseIdError),
    /// A key could not be made, read or used.
    #[error("private key: {0}")]
    Key(&'static str),
    /// A PEM or DER document is not what it should be.
    #[error("{what}: {reason}")]
    Document {
        /// The document.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The CA does not sign this request, whoever asks.
    #[error("certificate request refused: {0}")]
    Csr(String),
    /// The issuing root cannot sign.
    #[error("cannot issue: {0}")]
    Issue(String),
    /// A chain that should be our own does not hold.
    #[error("certificate chain refused")]
    Chain(#[from] VerifyError),
    /// The CA answered with a certificate for somebody else.
    #[error("certificate is for {got}, not for {want}")]
    OtherIdentity {
        /// Whom we asked for.
        want: SpiffeId,
        /// Whom we got.
        got: SpiffeId,
    },
    /// rustls does not take what we made.
    #[error("tls")]
    Tls(#[from] rustls::Error),
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Keys may only lie in memory.
    #[error("{}: not a directory in memory: a private key must not reach a disk; mount an emptyDir with medium Memory there", path.display())]
    NotInMemory {
        /// The directory.
        path: PathBuf,
    },
    /// The CA cannot be reached.
    #[error("cannot reach the CA at {address}")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The CA refuses.
    #[error("the CA answered {code}: {message}")]
    Refused {
        /// gRPC code.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
}

impl Error {
    pub(crate) fn document(what: &'static str, reason: impl ToString) -> Self {
        Self::Document {
            what,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }

    /// The error and its causes in one line, for a log.
    #[must_use]
    pub fn full(&self) -> String {
        tulle_runtime::causes::chain(self)
    }
}
