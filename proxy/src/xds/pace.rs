//! How fast a control plane may talk: what bounds the work that it can make here, whatever it is or has become.
//!
//! Two rules. Responses cost by count, by size and by the time that they took, and past a burst that is enough for any start
//! they are read at a steady rate: half of a core at most goes into them. And a server that answers each refusal with another bad resource hears of it ever later, up to some seconds;
//! what the data path asks for is not held back meanwhile. Time is given from outside.

use std::time::Duration;

use tokio::time::Instant;

/// What may be heard at once, and each second after that: a response costs one, one more for each 16 KiB, and two for each
/// millisecond of work.
const BURST: f64 = 4096.0;
const EACH_SECOND: f64 = 1000.0;
const BYTES: usize = 16 * 1024;
/// What a second of work costs.
const WORK: f64 = 2.0 * EACH_SECOND;
/// Refused responses in a row that are answered at once.
const PATIENCE: u32 = 4;
const FIRST_HOLD: Duration = Duration::from_millis(100);
const LONGEST_HOLD: Duration = Duration::from_secs(5);

/// The pace of one control plane, over all its streams.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Instant,
    refused: u32,
    held_until: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            left: BURST,
            at: Instant::now(),
            refused: 0,
            held_until: None,
        }
    }

    /// A response of that many bytes was read; true if that was too much, for now.
    pub(super) fn heard(&mut self, now: Instant, bytes: usize) -> bool {
        let before = self.left(now);
        let cost = 1.0 + (bytes / BYTES) as f64;
        self.left = before - cost;
        self.at = now;
        before >= 0.0 && self.left < 0.0
    }

    /// A response was applied, as a whole or with refusals.
    pub(super) fn applied(&mut self, now: Instant, good: bool) {
        if good {
            self.refused = 0;
            self.held_until = None;
            return;
        }
        self.refused = self.refused.saturating_add(1);
        let over = self.refused.saturating_sub(PATIENCE);
        if over > 0 && self.may_ack(now) {
            let hold = FIRST_HOLD.saturating_mul(1 << (over - 1).min(16));
            self.held_until = Some(now + hold.min(LONGEST_HOLD));
        }
    }

    /// A response took that long to act on; true if that was too much, for now.
    pub(super) fn worked(&mut self, now: Instant, took: Duration) -> bool {
        let before = self.left(now);
        self.left = before - took.as_secs_f64() * WORK;
        self.at = now;
        before >= 0.0 && self.left < 0.0
    }

    /// Whether the next response may be read.
    pub(super) fn may_listen(&self, now: Instant) -> bool {
        self.left(now) >= 0.0
    }

    /// Whether what was heard may be acknowledged or refused.
    pub(super) fn may_ack(&self, now: Instant) -> bool {
        self.held_until.is_none_or(|until| until <= now)
    }

    /// When the answer to one of these questions will be another one.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let listen = (!self.may_listen(now))
            .then(|| now + Duration::from_secs_f64(-self.left(now) / EACH_SECOND));
        let ack = self.held_until.filter(|until| *until > now);
        match (listen, ack) {
            (Some(listen), Some(ack)) => Some(listen.min(ack)),
            (one, other) => one.or(other),
        }
    }

    fn left(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + since * EACH_SECOND).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_heard_at_once_and_the_rest_at_a_steady_rate() {
        let mut pace = Pace::new();
        let now = Instant::now();
        let heard = |pace: &mut Pace, now| {
            let mut heard = 0;
            while pace.may_listen(now) {
                pace.heard(now, 100);
                heard += 1;
            }
            heard
        };
        assert_eq!(heard(&mut pace, now), 4097);
        assert!(
            pace.next(now)
                .is_some_and(|next| next <= now + Duration::from_millis(2))
        );
        assert_eq!(heard(&mut pace, now + Duration::from_secs(1)), 1000);
        assert_eq!(heard(&mut pace, now + Duration::from_secs(3600)), 4097);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_response_costs_by_its_size() {
        let mut pace = Pace::new();
        let now = Instant::now();
        assert!(
            !pace.heard(now, 16 * 1024 * 1024),
            "one of the largest is no offence"
        );
        while !pace.heard(now, 16 * 1024 * 1024) {}
        assert!(!pace.may_listen(now));
        let next = pace.next(now).expect("it is a matter of time");
        assert!(next <= now + Duration::from_secs(2), "{:?}", next - now);
        assert!(pace.may_listen(next + Duration::from_millis(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn work_past_the_burst_takes_half_of_the_time() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let (began, each) = (now, Duration::from_millis(7));
        let mut worked = Duration::ZERO;
        while worked < Duration::from_secs(20) {
            now = pace.next(now).unwrap_or(now) + each;
            worked += each;
            pace.worked(now, each);
        }
        // Two seconds of it were the burst.
        let took = (now - began).as_secs_f64();
        assert!((35.0..39.0).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_in_a_row_are_told_ever_later_until_something_is_good() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let mut holds = Vec::new();
        for _ in 0..12 {
            pace.applied(now, false);
            let until = pace.next(now).unwrap_or(now);
            assert_eq!(pace.may_ack(now), until == now);
            holds.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(holds[..4], [0, 0, 0, 0]);
        assert_eq!(holds[4..], [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.applied(now, false);
        assert!(!pace.may_ack(now));
        pace.applied(now, true);
        assert!(pace.may_ack(now) && pace.next(now).is_none());
    }
}
