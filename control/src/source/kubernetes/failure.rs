//! What can go wrong between us and the API server.

use std::time::Duration;

/// Why something was not learnt.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It does not answer.
    #[error("the API server said nothing for {0:?}")]
    Silent(Duration),
    /// It cannot be asked.
    #[error("the API server cannot be asked")]
    Unreachable(#[source] Box<kube::Error>),
    /// It does not want to answer.
    #[error("the API server answers {code}: {message}")]
    Refused {
        /// The status of HTTP, or of the event.
        code: u16,
        /// What it says about it.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Its answer breaks off.
    #[error("the answer of the API server breaks off")]
    Broken(#[source] Box<kube::Error>),
    /// Its answer makes no sense.
    #[error("the answer of the API server is not what was asked for")]
    Malformed(#[source] serde_json::Error),
    /// Nobody could go on from its answer.
    #[error("a list of the API server has no version")]
    Unversioned,
    /// An answer has no end.
    #[error("an event has more than {0} bytes")]
    TooLong(usize),
    /// A watch ended as soon as it had begun.
    #[error("the API server ends the watch at once")]
    Ended,
}

impl Failure {
    /// One word of a few.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Silent(_) => "silent",
            Self::Unreachable(_) => "unreachable",
            Self::Refused { code: 410, .. } => "expired",
            Self::Refused { code: 429, .. } => "throttled",
            Self::Refused {
                code: 401 | 403, ..
            } => "denied",
            Self::Refused {
                code: 500..=599, ..
            } => "server",
            Self::Refused { .. } => "refused",
            Self::Broken(_) => "broken",
            Self::Malformed(_) | Self::Unversioned | Self::TooLong(_) => "malformed",
            Self::Ended => "ended",
        }
    }

    /// What a person may do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Refused { code: 401, .. } => {
                "check the service account's token and the API server's clock"
            }
            Self::Refused { code: 403, .. } => {
                "let the service account get, list and watch it: apply the ClusterRole of this version"
            }
            Self::Refused { code: 404, .. } => "is the API server older than this version needs?",
            Self::Refused { code: 410, .. } => "it has forgotten; everything is listed anew",
            Self::Refused { code: 429, .. } => {
                "it is busy, or cannot convert what it has stored; it is asked again later: if that lasts, look at the conversion webhook of the definition"
            }
            Self::Refused {
                code: 500..=599, ..
            } => {
                "look at the API server's log, and at the conversion webhook of the definition if it has one"
            }
            Self::Refused { .. } | Self::Malformed(_) | Self::Unversioned | Self::TooLong(_) => {
                "look at the API server's log"
            }
            Self::Silent(_) | Self::Unreachable(_) | Self::Broken(_) | Self::Ended => {
                "check that the API server runs and can be reached from here"
            }
        }
    }

    /// Whether what was known of versions is of no use any more.
    pub(super) fn is_desync(&self) -> bool {
        matches!(
            self,
            Self::Refused { code: 410, .. } | Self::Malformed(_) | Self::TooLong(_)
        )
    }

    /// Whether it does not know the question.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: 400 | 422,
                ..
            }
        )
    }

    /// Whether it may know the question, and no answer.
    pub(super) fn is_inability(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: 500..=599,
                ..
            }
        )
    }

    /// How long it wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
