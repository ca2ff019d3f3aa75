//! Lets a few log lines through, and counts the others.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lines that may come at once.
const AT_ONCE: u32 = 5;
/// How long it takes until there may be one more.
const EACH: Duration = Duration::from_secs(1);

/// A gate for lines of one kind: five at once, and one a second.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When those that went through will have been paid for.
    paid: Option<Instant>,
    left_out: u64,
}

impl Gate {
    /// Whether a line may be written; if so, how many were left out since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock();
        let paid = state.paid.map_or(now, |paid| paid.max(now)) + EACH;
        if paid > now + EACH * AT_ONCE {
            state.left_out += 1;
            return None;
        }
        state.paid = Some(paid);
        Some(std::mem::take(&mut state.left_out))
    }

    /// How many lines were left out since the last one, now that no more will come.
    pub(crate) fn close(&self) -> u64 {
        std::mem::take(&mut self.0.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_go_through_and_the_next_says_how_many_did_not() {
        let gate = Gate::default();
        let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
        assert_eq!(passed, [0; 5]);
        tokio::time::advance(EACH).await;
        assert_eq!(gate.pass(), Some(95));
        assert_eq!(gate.pass(), None);
        assert_eq!(gate.close(), 1);
        assert_eq!(gate.close(), 0);
        tokio::time::advance(EACH * 100).await;
        let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
        assert_eq!(passed, [0; 5], "a long silence saves nothing up");
    }
}
