//! What is not reviewed: by the names that metrics have for it, and in the words that its sender reads.

use http::StatusCode;

use super::requests::{MEDIA_TYPE, PATH};
use crate::MAX_REVIEW;

tulle_runtime::named! {
    /// Why a request is not reviewed.
    pub(crate) enum Unserved {
        /// Nothing is at its path.
        Path = "path",
        /// It has another method.
        Method = "method",
        /// Its body is no JSON by its own account, or compressed.
        MediaType = "media_type",
        /// Its body did not come in time.
        Slow = "slow",
        /// Its client went before it had sent it.
        Gone = "gone",
        /// There is no room for it.
        Overload = "overload",
        /// Others were reviewed all the time that it waited.
        Busy = "busy",
    }
}

impl Unserved {
    /// Code and reason of the status.
    pub(super) fn status(self) -> (StatusCode, &'static str) {
        match self {
            Self::Path => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "Timeout"),
            Self::Gone => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Overload => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        }
    }

    /// What it is, and what to do.
    pub(super) fn message(self) -> String {
        match self {
            Self::Path => {
                format!("nothing is here: have the webhook's configuration name the path {PATH}")
            }
            Self::Method => format!("{PATH} takes POST: reviews are for the API server to send"),
            Self::MediaType => {
                format!("a review is {MEDIA_TYPE}, not compressed: reviews are for the API server to send")
            }
            Self::Slow => "the review did not arrive in time: look at the network between the API server and the injector".to_owned(),
            Self::Gone => "the review ended early".to_owned(),
            Self::Overload => format!(
                "the injector has as many reviews as it takes at a time: try again, add a replica, or raise its limits \
                 (--max-requests, --max-request-bytes, at least {MAX_REVIEW} for one review)"
            ),
            Self::Busy => "the injector has too much to do: try again, or add a replica".to_owned(),
        }
    }

    /// Whether an operator should act.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Overload | Self::Busy)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tulle_runtime::reasons::explained;

    use super::*;

    #[test]
    fn readme_explains_every_reason() {
        const README: &str = include_str!("../../../README.md");
        let named: BTreeSet<_> = Unserved::ALL.iter().map(|why| why.name()).collect();
        let said = explained(README, "`tulle_injector_refused_requests_total{reason}`");
        assert_eq!(said.expect("a table of each once"), named);
    }
}
