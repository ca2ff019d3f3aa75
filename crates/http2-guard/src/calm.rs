//! What ends a connection from outside, and what is told of it: shared by the layer and whoever serves the connection.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use super::Pieces;
use super::codes::{REFUSED, is_fault, is_malformed};

/// Resets that may be announced before they are sent.
const MOST_PASSED_ON: u32 = 16;

/// Why a connection had to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer sent more control frames than it may.
    ControlFrames,
    /// Whoever serves it said so.
    Asked,
    /// The peer went on with interim answers (1xx) on streams that had been reset for them.
    Interim,
    /// The peer took no byte for too long.
    Stalled,
    /// h2 said so, with this reason, or would have for a head that is too large by far.
    Said(&'static str),
}

/// Ends a connection, and tells why it had to end.
#[derive(Clone, Debug)]
pub struct Calm(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) asked: AtomicBool,
    pub(super) ended: OnceLock<Ended>,
    pub(super) pieces: Pieces,
    /// Streams that h2 reset for what the peer sent, or refused.
    pub(super) faults: AtomicU32,
    /// Heads that h2 refused by itself, and of which nobody has been told.
    pub(super) refused: AtomicU32,
    /// Streams that h2 refused, because as many were open as may be, and of which nobody has been told.
    pub(super) refused_streams: AtomicU32,
    /// Streams that whoever serves the connection has refused, and that are not written yet.
    pub(super) refuses: AtomicU32,
    /// Streams that h2 reset because what the peer sent on them was malformed, and of which nobody has been told.
    pub(super) malformed: AtomicU32,
    /// Streams that whoever serves the connection resets for another's fault, and that are not written yet.
    pub(super) passed_on: AtomicU32,
    /// Streams that were reset for their interim answers, and of which nobody has been told.
    pub(super) interim: AtomicU32,
    /// Who wants to know of the peer's settings, and whether somebody waits there.
    pub(super) settings: AtomicWaker,
    pub(super) awaited: AtomicBool,
}

impl Shared {
    /// A stream is reset with this code; `None`: it comes later. `malformed`: if that was malformed, nobody knows of it.
    #[cold]
    pub(super) fn resets(&self, code: Option<&[u8]>, malformed: bool) {
        let own = |left: &AtomicU32| {
            let less = |left: u32| left.checked_sub(1);
            left.fetch_update(Relaxed, Relaxed, less).is_ok()
        };
        if code == Some(REFUSED) {
            if own(&self.refuses) {
                return;
            }
            self.refused_streams.fetch_add(1, Relaxed);
            self.pieces.call();
        } else if !code.is_none_or(is_fault) || own(&self.passed_on) {
            return;
        } else if malformed && code.is_some_and(is_malformed) {
            self.malformed.fetch_add(1, Relaxed);
            self.pieces.call();
        }
        self.faults.fetch_add(1, Relaxed);
    }
}

impl Calm {
    /// Has the connection end with `ENHANCE_YOUR_CALM` at the peer's next frame.
    pub fn ask(&self) {
        self.0.asked.store(true, Relaxed);
    }

    /// The pieces of bodies that are waiting.
    #[must_use]
    pub fn pieces(&self) -> &Pieces {
        &self.0.pieces
    }

    /// How many streams h2 has reset for what the peer sent, or refused. It also does so for what was under way while it sent a whole
    /// answer, unless that is one of 50 that it remembers for a second, and ends a connection at a number that it never forgets.
    #[must_use]
    pub fn faults(&self) -> u32 {
        self.0.faults.load(Relaxed)
    }

    /// How many heads of requests h2 has refused by itself since the last time: they were larger than they may be.
    /// [`Pieces::stop`] resolves for them too.
    #[must_use]
    pub fn take_refused(&self) -> u32 {
        self.0.refused.swap(0, Relaxed)
    }

    /// Wakes a task, always the same one, when h2 has taken settings of the peer in; it has to ask again then.
    #[inline]
    pub fn on_settings(&self, waker: &Waker) {
        if !self.0.awaited.load(Relaxed) {
            self.0.awaited.store(true, Relaxed);
            self.0.settings.register(waker);
        }
    }

    /// Whoever serves the connection refuses a stream, which h2 tells the peer in the same words as what it refuses by itself.
    pub fn refuse(&self) {
        self.0.refuses.fetch_add(1, Relaxed);
    }

    /// How many streams h2 has refused by itself since the last time: as many were open as may be. [`Pieces::stop`] resolves
    /// for them too.
    #[must_use]
    pub fn take_refused_streams(&self) -> u32 {
        self.0.refused_streams.swap(0, Relaxed)
    }

    /// How many streams h2 has reset since the last time because what the peer sent on them was malformed.
    /// [`Pieces::stop`] resolves for them too.
    #[must_use]
    pub fn take_malformed(&self) -> u32 {
        self.0.malformed.swap(0, Relaxed)
    }

    /// Whether a stream was reset because there were too many interim answers on it, of which nobody has been told: whose
    /// stream h2 has reset for a fault of the peer asks. Each is told once.
    #[must_use]
    pub fn take_interim(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let left = &self.0.interim;
        left.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    /// Whoever serves the connection resets a stream with the code that another peer has given: that says nothing of this one.
    pub fn passes_on(&self) {
        // Those of which no reset came of are not to be saved up.
        let one_more = |count| (count < MOST_PASSED_ON).then_some(count + 1);
        let _ = self.0.passed_on.fetch_update(Relaxed, Relaxed, one_more);
    }

    /// Why the connection had to end, if it had to.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.0.ended.get().copied()
    }
}
