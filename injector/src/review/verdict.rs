//! What comes of reviews, by names that metrics have for it, and in the words that their authors read.

use tulle_runtime::causes::chain;

use super::MAX_REVIEW;
use super::request::{API_VERSION, KIND, Request};
use crate::{Decision, InjectError, InjectReason, SkipReason};

/// Longest message of an answer. Values of annotations are part of them, and may be long.
const MAX_MESSAGE: usize = 1024;

/// What came of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The pod gets a sidecar.
    Injected(InjectReason),
    /// The object is let in as it is, but for the label that a copy of an injected pod may lack.
    Skipped(SkipReason),
    /// The pod is kept out.
    Refused(Refusal),
    /// There was no review to answer.
    Malformed(Flaw),
}

impl Verdict {
    /// Its name in metrics, and that of its reason.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Injected(reason) => Decision::Inject(reason).names(),
            Self::Skipped(reason) => Decision::Skip(reason).names(),
            Self::Refused(reason) => ("refused", reason.name()),
            Self::Malformed(flaw) => ("malformed", flaw.name()),
        }
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Inject(reason) => Self::Injected(reason),
            Decision::Skip(reason) => Self::Skipped(reason),
        }
    }
}

tulle_runtime::named! {
    /// Why a pod is kept out.
    pub enum Refusal {
        /// An annotation has a value without which the pod must not run.
        Annotation = "annotation",
        /// The label that opts in or out has neither of its values.
        Label = "label",
        /// A container would run with an id of the sidecar's, and past it.
        ReservedId = "reserved_id",
        /// A container or volume has a name of ours.
        ReservedName = "reserved_name",
        /// A container of the sidecar's name says of it what cannot be.
        Override = "override",
        /// A container listens on a port of the sidecar's.
        ReservedPort = "reserved_port",
        /// The pod does not have the shape of one.
        Shape = "shape",
        /// The pod is of a version that is not known.
        PodVersion = "pod_version",
        /// The request names no namespace.
        NoNamespace = "no_namespace",
        /// The namespace is not known yet.
        UnknownNamespace = "unknown_namespace",
    }
}

tulle_runtime::named! {
    /// Why a body is no review.
    pub enum Flaw {
        /// It is too large.
        Size = "size",
        /// It is not JSON, or too deep.
        Json = "json",
        /// It is another kind or version of document.
        Version = "version",
        /// Its request cannot be read.
        Request = "request",
    }
}

/// A pod that is kept out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{error}")]
    Injection {
        error: InjectError,
        /// Where in the pod it lies.
        field: Option<String>,
    },
    #[error(
        "pods of this version cannot be injected: have the webhook's configuration match version v1 of pods"
    )]
    PodVersion,
    #[error(
        "the request names no namespace: have the webhook's configuration match namespaced objects"
    )]
    NoNamespace,
    #[error("the injector does not know yet what its namespace asks for: try again")]
    UnknownNamespace,
}

impl Refused {
    pub(super) fn reason(&self) -> Refusal {
        match self {
            Self::Injection { error, .. } => match error {
                InjectError::Malformed { .. }
                | InjectError::Missing { .. }
                | InjectError::Patch { .. } => Refusal::Shape,
                InjectError::Annotation { .. }
                | InjectError::Limit { .. }
                | InjectError::UnknownLimit { .. } => Refusal::Annotation,
                InjectError::Label { .. } => Refusal::Label,
                InjectError::ReservedId { .. } => Refusal::ReservedId,
                InjectError::ReservedName { .. } => Refusal::ReservedName,
                InjectError::Override { .. } => Refusal::Override,
                InjectError::ReservedPort { .. } => Refusal::ReservedPort,
            },
            Self::PodVersion => Refusal::PodVersion,
            Self::NoNamespace => Refusal::NoNamespace,
            Self::UnknownNamespace => Refusal::UnknownNamespace,
        }
    }

    /// Code and reason of the status.
    pub(super) fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Injection { .. } => (422, "Invalid"),
            Self::PodVersion | Self::NoNamespace => (400, "BadRequest"),
            Self::UnknownNamespace => (503, "ServiceUnavailable"),
        }
    }

    /// Where in the pod it lies.
    pub(super) fn field(&self) -> Option<&str> {
        match self {
            Self::Injection { field, .. } => field.as_deref(),
            _ => None,
        }
    }

    /// What the author of the pod reads.
    pub(super) fn message(&self, request: &Request) -> String {
        let words = match self {
            Self::Injection { error, .. } => chain(error),
            other => other.to_string(),
        };
        tidy(&format!("pod {}: {words}", request.pod()), MAX_MESSAGE)
    }
}

/// A body that is no review.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(
        "the review has {bytes} bytes, and no more than {MAX_REVIEW} are read: make the object smaller"
    )]
    TooLarge { bytes: usize },
    #[error("the body is no {KIND} in JSON")]
    Json(#[source] serde_json::Error),
    #[error(
        "this is a {kind:?} of {api_version:?}, and {KIND} of {API_VERSION} is spoken here: name v1 alone in \
         admissionReviewVersions of the webhook's configuration"
    )]
    Version { api_version: String, kind: String },
    #[error("the review's request cannot be read")]
    Request(#[source] serde_json::Error),
    #[error("the review has no {field}: reviews are for the API server to send")]
    Absent { field: &'static str },
}

impl Malformed {
    pub(super) fn flaw(&self) -> Flaw {
        match self {
            Self::TooLarge { .. } => Flaw::Size,
            Self::Json(_) => Flaw::Json,
            Self::Version { .. } => Flaw::Version,
            Self::Request(_) | Self::Absent { .. } => Flaw::Request,
        }
    }

    pub(super) fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            _ => 400,
        }
    }

    /// Reason of the status.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "RequestEntityTooLarge",
            _ => "BadRequest",
        }
    }

    pub(super) fn message(&self) -> String {
        tidy(&chain(self), MAX_MESSAGE)
    }
}

/// At most so many bytes, in one line. What is too long loses its middle: who is meant comes first, and the remedy last.
pub(crate) fn tidy(words: &str, most: usize) -> String {
    const GAP: &str = " ... ";
    let line = |words: &str| words.replace(char::is_control, " ");
    if words.len() <= most {
        return line(words);
    }
    let rest = most - GAP.len();
    let head = words.floor_char_boundary(rest / 2);
    let tail = words.ceil_char_boundary(words.len() - (rest - rest / 2));
    [&line(&words[..head]), GAP, &line(&words[tail..])].concat()
}
