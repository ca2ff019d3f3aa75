//! Gives memory back that was needed once and is not any more, also where there is no limit.
//!
//! The allocator keeps what is freed for the next time. After a flood that is the flood's worth, for as long as the process
//! lives, and on a node with a hundred sidecars it is somebody else's. So as long as the process has grown by a good deal,
//! the allocator is made to give back what it can, now and then; what is in use stays.

use std::time::{Duration, Instant};

use super::memory::resident;
use super::trim;

/// Between two looks, each of which reads one small file. It becomes longer while nothing can be given back.
const LOOK: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(12));
/// Growth that is worth it, beyond the least that there ever was.
const GROWTH: u64 = 4 << 20;
/// A look waits this many times as long as giving back took, within reason, so that it takes no more than a small share of the
/// time. How long it took is what the clock says: on a machine with much to do that is mostly time of others.
const SHARE: u32 = 200;

/// Looks for ever.
pub async fn give_back_what_was_freed() {
    let (mut least, mut pause) = (used(), LOOK.0);
    loop {
        tokio::time::sleep(pause).await;
        let before = used();
        least = least.min(before);
        if before - least < GROWTH {
            pause = LOOK.0;
            continue;
        }
        let begun = Instant::now();
        trim::trim();
        let (used, took) = (used(), begun.elapsed());
        tracing::trace!(before, used, ?took, "free memory was given back");
        pause = next(pause, before.saturating_sub(used)).max((took * SHARE).min(LOOK.1));
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

/// Bytes of this process that are in memory and no file's.
fn used() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm");
    statm.ok().and_then(|statm| resident(&statm)).unwrap_or(0)
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
}
