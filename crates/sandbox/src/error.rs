//! What can go wrong in the sandbox, said so that the reader knows what to do about it.

use std::io;
use std::path::PathBuf;

/// Why the sandbox, or one thing in it, does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel or the administrator does not let this user do it.
    #[error("this machine does not let the sandbox {what}; {remedy}")]
    Privilege {
        /// What was tried.
        what: &'static str,
        /// What would help.
        remedy: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An operation on a file, process or socket failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An operation on links, addresses or routes failed.
    #[error("cannot {what}")]
    Network {
        /// What was tried, and on what.
        what: String,
        /// What the kernel said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// The node's translation rules could not be loaded.
    #[error("cannot load the rules for ClusterIPs")]
    Rules(#[source] tulle_nft::Error),
    /// A manifest cannot be read.
    #[error("{}:{line}: {problem}", file.display())]
    Manifest {
        /// The file.
        file: PathBuf,
        /// The line, counted from one.
        line: u64,
        /// What is wrong, with the field if it is known.
        problem: String,
    },
    /// A pod asks for something that the sandbox does not have.
    #[error("pod {pod}: {problem}")]
    Refused {
        /// `namespace/name` of the pod.
        pod: String,
        /// The field, its value and the remedy.
        problem: String,
    },
    /// The named thing does not exist.
    #[error("there is no {kind} {name}")]
    Missing {
        /// Kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// More than one sandbox is running, and nobody said which one is meant.
    #[error("several sandboxes are running: {}", running.join("; "))]
    Several {
        /// The id of each, with the command that started it if it is known.
        running: Vec<String>,
    },
    /// None of the running sandboxes is the one that was named.
    #[error("there is no running sandbox {id}; running: {}", running.join("; "))]
    NotThatOne {
        /// The id that was named.
        id: u32,
        /// As in [`Error::Several`].
        running: Vec<String>,
    },
    /// A running sandbox did not do what it was asked.
    #[error("{0}")]
    Answered(String),
    /// Not everything was ready in time.
    #[error("not ready in time: {waiting}")]
    NotReady {
        /// What is not ready, and why.
        waiting: String,
    },
    /// A token cannot be signed.
    #[error("cannot make service account tokens: {0}")]
    Token(String),
}

impl Error {
    /// Whether this machine does not permit, or its kernel does not have, what a sandbox needs.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let denied = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::Unsupported
            )
        };
        match self {
            Self::Privilege { .. }
            | Self::Rules(tulle_nft::Error::NoNfTables(_) | tulle_nft::Error::NotPermitted(_)) => {
                true
            }
            Self::Io { source, .. } => denied(source),
            Self::Network { source, .. } => match source.as_ref() {
                rtnetlink::Error::NetlinkError(error) => denied(&error.to_io()),
                _ => false,
            },
            _ => false,
        }
    }

    /// An I/O error of an operation that has a name.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// As [`Error::io`], for the errors of system calls.
    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let what = what.into();
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    /// A netlink error of an operation that has a name.
    pub(crate) fn network(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Network {
            what,
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_refuses_is_denied() {
        let error = |errno: nix::Error| Error::errno("make a bridge")(errno);
        assert!(error(nix::Error::EPERM).is_denied());
        assert!(error(nix::Error::EROFS).is_denied());
        assert!(error(nix::Error::EOPNOTSUPP).is_denied());
        assert!(!error(nix::Error::ENOENT).is_denied());
        let missing = Error::Missing {
            kind: "pod",
            name: "shop/web".to_owned(),
        };
        assert!(!missing.is_denied());
    }
}
