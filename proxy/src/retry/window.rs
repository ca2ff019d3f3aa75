//! What a cluster's requests and retries of the last seconds were, for its retry budget.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Seconds that the window covers.
const SECONDS: usize = 10;

/// Requests and retries by second. Workers that enter a new second at the same time may lose a few counts.
#[derive(Debug, Default)]
pub struct RetryWindow([Slot; SECONDS]);

#[derive(Debug, Default)]
struct Slot {
    /// The second that it counts.
    second: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl RetryWindow {
    /// Counts a request, whatever becomes of it.
    pub fn note_request(&self, now_ms: u64) {
        self.slot(second(now_ms)).requests.fetch_add(1, Relaxed);
    }

    /// Counts a retry, unless there were too many already: more than a share of the requests in percent, and more than
    /// a number per second. Returns whether it did.
    pub fn take(&self, share: u32, floor: u32, now_ms: u64) -> bool {
        let now = second(now_ms);
        let current = &self.slot(now).retries;
        // Counted first, so that workers that ask at the same time see each other.
        current.fetch_add(1, Relaxed);
        let (requests, retries) = self.sums(now);
        let allowed = (requests * u64::from(share) / 100).max(u64::from(floor) * SECONDS as u64);
        let granted = retries <= allowed;
        if !granted {
            // The slot may have been emptied for a later second meanwhile.
            let _ = current.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        }
        granted
    }

    fn slot(&self, second: u32) -> &Slot {
        let slot = &self.0[second as usize % SECONDS];
        let old = slot.second.load(Relaxed);
        let is_new = old != second
            && slot
                .second
                .compare_exchange(old, second, Relaxed, Relaxed)
                .is_ok();
        if is_new {
            slot.requests.store(0, Relaxed);
            slot.retries.store(0, Relaxed);
        }
        slot
    }

    fn sums(&self, now: u32) -> (u64, u64) {
        let fresh = self.0.iter().filter(|slot| {
            let age = now.wrapping_sub(slot.second.load(Relaxed));
            (age as usize) < SECONDS
        });
        fresh.fold((0, 0), |(requests, retries), slot| {
            (
                requests + u64::from(slot.requests.load(Relaxed)),
                retries + u64::from(slot.retries.load(Relaxed)),
            )
        })
    }
}

fn second(now_ms: u64) -> u32 {
    u32::try_from(now_ms / 1_000 % (1 << 31)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(window: &RetryWindow, share: u32, floor: u32, now: u64) -> usize {
        (0..10_000)
            .take_while(|_| window.take(share, floor, now))
            .count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests_or_the_floor_whichever_is_more() {
        for (requests, share, floor, allowed) in [
            (1_000, 20, 0, 200),
            (100, 20, 3, 30),
            (4, 20, 0, 0),
            (0, 20, 2, 20),
        ] {
            let window = RetryWindow::default();
            (0..requests).for_each(|_| window.note_request(5_000));
            assert_eq!(
                taken(&window, share, floor, 5_500),
                allowed,
                "{requests} requests"
            );
        }
    }

    #[test]
    fn what_was_taken_comes_back_when_the_window_has_passed() {
        let window = RetryWindow::default();
        assert_eq!(taken(&window, 20, 1, 1_000), 10);
        assert_eq!(taken(&window, 20, 1, 10_999), 0);
        assert_eq!(taken(&window, 20, 1, 11_000), 10);
    }

    #[test]
    fn requests_count_for_ten_seconds() {
        let window = RetryWindow::default();
        (0..100).for_each(|_| window.note_request(1_000));
        assert_eq!(taken(&window, 20, 0, 11_000), 0);
        (0..100).for_each(|_| window.note_request(12_000));
        assert_eq!(taken(&window, 20, 0, 12_000), 20);
    }
}
