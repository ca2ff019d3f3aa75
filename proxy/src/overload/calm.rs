//! Gives memory back that was needed once and is not any more, also where there is no limit.
//!
//! The allocator keeps what is freed for the next time. After a flood that is the flood's worth, for as long as the process
//! lives, and on a node with a hundred sidecars it is somebody else's. So as long as the process has grown by a good deal,
//! the allocator is made to give back what it can, now and then; what is in use stays.

use std::time::{Duration, Instant};

use tulle_runtime::allocator;

use super::memory::resident;

/// Between two looks, each of which reads one small file. It becomes longer while nothing can be given back.
const LOOK: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(12));
/// Growth that is worth it, beyond the least that there ever was.
const GROWTH: u64 = 4 << 20;
/// A look waits this many times as long as giving back took, within reason, so that it takes no more than a small share of the
/// time. How long it took is what the clock says: on a machine with much to do that is mostly time of others.
const SHARE: u32 = 200;

/// Looks for ever.
pub async fn give_back_what_was_freed() {
    let (mut growth, mut pause) = (Growth::default(), LOOK.0);
    growth.is_worth_it(used());
    loop {
        tokio::time::sleep(pause).await;
        let before = used();
        if !growth.is_worth_it(before) {
            pause = LOOK.0;
            continue;
        }
        let begun = Instant::now();
        allocator::trim();
        let (after, took) = (used(), begun.elapsed());
        tracing::trace!(before, after, ?took, "free memory was given back");
        let given_back = before.zip(after);
        let given_back = given_back.map_or(0, |(before, after)| before.saturating_sub(after));
        pause = next(pause, given_back).max((took * SHARE).min(LOOK.1));
    }
}

/// By how much the process has grown.
#[derive(Debug, Default)]
struct Growth {
    /// The least that it ever used.
    least: Option<u64>,
}

impl Growth {
    /// Whether so much is by so much more than the least that giving back is worth it. What could not be read says nothing,
    /// neither now nor later.
    fn is_worth_it(&mut self, used: Option<u64>) -> bool {
        let Some(used) = used else {
            return false;
        };
        let least = self.least.map_or(used, |least| least.min(used));
        self.least = Some(least);
        used - least >= GROWTH
    }
}

/// How long until the next look after one that gave back so many bytes. What was still in use then may be free soon.
fn next(pause: Duration, given_back: u64) -> Duration {
    if given_back >= GROWTH {
        LOOK.0
    } else {
        (pause * 2).clamp(LOOK.0, LOOK.1)
    }
}

/// Bytes of this process that are in memory and no file's; `None`: that could not be read, as when files run out.
fn used() -> Option<u64> {
    resident(&std::fs::read_to_string("/proc/self/statm").ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rare_while_there_is_nothing_to_give_back() {
        let mut pause = LOOK.0;
        for seconds in [6, 12, 12] {
            pause = next(pause, GROWTH - 1);
            assert_eq!(pause, Duration::from_secs(seconds));
        }
        assert_eq!(next(pause, GROWTH), LOOK.0);
    }

    #[test]
    fn what_could_not_be_read_makes_no_look_worth_it_nor_any_later_one() {
        let least = 20 << 20;
        for (before, used, worth_it) in [
            (None, Some(least), false),
            (None, None, false),
            (Some(least), None, false),
            (Some(least), Some(least + GROWTH - 1), false),
            (Some(least), Some(least + GROWTH), true),
            (Some(least + GROWTH), Some(least), false),
        ] {
            let mut growth = Growth::default();
            growth.is_worth_it(before);
            let what = format!("{before:?}, then {used:?}");
            assert_eq!(growth.is_worth_it(used), worth_it, "{what}");
            assert!(!growth.is_worth_it(Some(least)), "{what}");
            assert!(!growth.is_worth_it(None), "{what}");
            assert!(growth.is_worth_it(Some(least + GROWTH)), "{what}");
        }
    }
}
