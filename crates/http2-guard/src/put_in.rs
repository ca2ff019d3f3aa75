//! A frame of this layer's own, put in between what a peer has sent before and after it.
//!
//! What came behind it waits here, and is the peer's again when it is given on: it has not been looked at before. Between the
//! two h2 finds nothing to read for some turns, so that what it has to say about the frame leaves before a flood goes on.

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::give;

/// Turns: in the first h2 writes, in the second what it has written leaves with what others had to say.
const TURNS: u8 = 2;

/// The frame, and what comes after it.
#[derive(Debug)]
pub(super) struct PutIn {
    own: Bytes,
    rest: Bytes,
    /// Turns for h2 that are left.
    turns: u8,
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
            turns: TURNS,
        }
    }

    /// Whether all was given.
    pub(super) fn is_over(&self) -> bool {
        self.own.is_empty() && self.turns == 0 && self.rest.is_empty()
    }

    /// Whether it is h2's turn.
    pub(super) fn pauses(&mut self) -> bool {
        if !self.own.is_empty() || self.turns == 0 {
            return false;
        }
        self.turns -= 1;
        true
    }

    /// Gives what there is room for. Whether that is the peer's.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let of_peer = self.own.is_empty();
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
