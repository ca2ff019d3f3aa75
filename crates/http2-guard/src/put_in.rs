//! A frame of this layer's own, put in between what a peer has sent before and after it.
//!
//! What came behind it waits here, and is the peer's again when it is given on: it has not been looked at before.

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

use super::give;

/// The frame, and what comes after it.
#[derive(Debug)]
pub(super) struct PutIn {
    own: Bytes,
    rest: Bytes,
}

impl PutIn {
    /// Takes back what is in `buf` from `at` on. `before`: what had been put in already, of which a part was given.
    pub(super) fn new(
        own: &[u8],
        buf: &mut ReadBuf<'_>,
        at: usize,
        before: Option<Box<Self>>,
    ) -> Self {
        let mut rest = buf.filled()[at..].to_vec();
        buf.set_filled(at);
        if let Some(before) = before {
            rest.extend_from_slice(&before.rest);
        }
        Self {
            own: Bytes::copy_from_slice(own),
            rest: Bytes::from(rest),
        }
    }

    /// Whether all was given.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.rest.is_empty()
    }

    /// Gives what there is room for. Whether that is the peer's.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let of_peer = !self.own.has_remaining();
        give(
            if of_peer {
                &mut self.rest
            } else {
                &mut self.own
            },
            buf,
        );
        of_peer
    }
}
