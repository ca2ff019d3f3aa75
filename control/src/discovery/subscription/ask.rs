//! What a request says, and what its reply turned out to be.

use std::time::Duration;

use crate::discovery::resource::{Name, Version};

/// What one request asks, whatever variant of the protocol carried it.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    /// Names to subscribe to.
    pub(crate) subscribe: Vec<Name>,
    /// Names to forget.
    pub(crate) unsubscribe: Vec<Name>,
    /// What a reconnecting client already has, and its version if that is one of ours.
    pub(crate) initial_versions: Vec<(Name, Option<Version>)>,
    /// Its word on an earlier response.
    pub(crate) reply: Option<Reply>,
}

/// An acknowledgement, or the opposite.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Nonce of the response meant.
    pub(crate) nonce: String,
    /// Why the client refused it; `None` is an ACK.
    pub(crate) error: Option<String>,
}

impl Ask {
    /// Whether it is nothing but a word on an earlier response.
    pub(crate) fn is_reply(&self) -> bool {
        self.reply.is_some() && self.names() == 0
    }

    /// Names in it.
    pub(crate) fn names(&self) -> usize {
        self.subscribe.len() + self.unsubscribe.len() + self.initial_versions.len()
    }
}

/// What a reply turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The request carried no reply, or repeats the one on the last response.
    None,
    /// Accepted; the age of the oldest change in that response, if it carried one.
    Accepted(Option<Duration>),
    /// Refused: the client keeps what it had.
    Refused,
    /// It names no response that is waiting for a reply.
    Stale,
}
