//! How many control frames a peer may send for the work that it gives.
//!
//! PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM and frames of unknown kinds cost the sender nothing, and ask for
//! an answer or for time. A peer that works needs some for each message, so each head and each piece of a body, either
//! way, earns some; time earns a few more. What is left over counts, up to a limit.

use std::time::Duration;

use tokio::time::Instant;

use super::scan::{CONTINUATION, DATA, Frame, HEADERS};

/// Control frames that the head of a message is good for: PRIORITY, RST_STREAM, windows of its stream and of the
/// connection.
const HEAD_EARNS: u32 = 4;
/// Those that a piece of a body is good for: two windows, and a PING to measure how long they have to be ...
const PIECE_EARNS: u32 = 3;
/// ... and one more for each so many bytes of it, because it may be taken in smaller pieces.
const BYTES: usize = 1_024;
/// In this time as many are earned as may be left over.
const REFILL: Duration = Duration::from_secs(10);

/// Control frames of a peer, against what it may send.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u32,
    spent: u32,
    earned: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            spent: 0,
            earned: 0,
            since: Instant::now(),
        }
    }

    /// The peer sent a frame. False: it has sent too many.
    #[inline]
    pub(super) fn received(&mut self, frame: Frame) -> bool {
        if !self.earn(frame) {
            self.spent += 1;
        }
        self.spent <= self.limit || self.settle(Instant::now())
    }

    /// A frame was sent to the peer.
    #[inline]
    pub(super) fn sent(&mut self, frame: Frame) {
        self.earn(frame);
    }

    #[inline]
    fn earn(&mut self, frame: Frame) -> bool {
        let earned = match frame.kind {
            HEADERS => HEAD_EARNS,
            // A frame's length has 24 bits.
            DATA if frame.length > 0 => PIECE_EARNS + (frame.length / BYTES) as u32,
            // What is empty earns nothing; the library counts it.
            DATA | CONTINUATION => 0,
            _ => return false,
        };
        self.earned = self.earned.saturating_add(earned);
        true
    }

    /// Sets off what was spent against what was earned since the last time. What is earned beyond that is lost.
    #[cold]
    fn settle(&mut self, now: Instant) -> bool {
        let waited = now.duration_since(std::mem::replace(&mut self.since, now));
        let refill = u128::from(self.limit) * waited.as_millis() / REFILL.as_millis();
        let refill = u32::try_from(refill).unwrap_or(u32::MAX);
        let earned = std::mem::take(&mut self.earned).saturating_add(refill);
        self.spent = self.spent.saturating_sub(earned);
        self.spent <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Frame = control(6);
    const WINDOW: Frame = control(8);

    const fn control(kind: u8) -> Frame {
        Frame {
            kind,
            flags: 0,
            stream: 1,
            length: 8,
        }
    }

    fn message(kind: u8) -> Frame {
        Frame {
            kind,
            flags: 0,
            stream: 1,
            length: 100,
        }
    }

    /// How many of these a peer gets through, of that many at most.
    fn passed(budget: &mut Budget, frame: Frame, most: u32) -> u32 {
        (0..most).take_while(|_| budget.received(frame)).count() as u32
    }

    #[test]
    fn a_flood_is_over_at_the_limit() {
        for kind in [2, 3, 4, 6, 8, 77] {
            let passed = passed(&mut Budget::new(100), control(kind), 10_000);
            assert!((100..110).contains(&passed), "{passed} of kind {kind}");
        }
    }

    #[test]
    fn who_works_may_send_as_many_as_that_takes() {
        let mut budget = Budget::new(100);
        for _ in 0..10_000 {
            assert!(budget.received(message(HEADERS)));
            budget.sent(message(HEADERS));
            for _ in 0..3 {
                budget.sent(message(DATA));
                assert!(budget.received(WINDOW) && budget.received(WINDOW));
                assert!(budget.received(PING));
            }
            assert!(budget.received(control(3)));
        }
    }

    #[test]
    fn a_large_piece_may_be_taken_in_small_ones() {
        let mut budget = Budget::new(100);
        let large = Frame {
            length: 16_384,
            ..message(DATA)
        };
        for _ in 0..10_000 {
            budget.sent(large);
            assert_eq!(passed(&mut budget, WINDOW, 8), 8);
        }
    }

    #[test]
    fn work_of_long_ago_does_not_pay_for_a_flood() {
        let mut budget = Budget::new(100);
        for _ in 0..100_000 {
            assert!(budget.received(message(HEADERS)));
        }
        assert!(passed(&mut budget, PING, 10_000) < 210);
    }

    #[test]
    fn empty_frames_are_no_work() {
        let mut budget = Budget::new(100);
        let empty = Frame {
            length: 0,
            ..message(DATA)
        };
        for _ in 0..10_000 {
            assert!(budget.received(empty));
        }
        assert!(passed(&mut budget, PING, 10_000) < 110);
    }

    #[test]
    fn time_earns_some() {
        let mut budget = Budget::new(100);
        let begun = budget.since;
        budget.spent = 101;
        assert!(!budget.settle(begun), "no time has passed");
        budget.spent = 150;
        assert!(
            !budget.settle(begun + Duration::from_secs(1)),
            "10 were earned"
        );
        budget.spent = 150;
        assert!(
            budget.settle(begun + Duration::from_secs(7)),
            "60 more were"
        );
    }
}
