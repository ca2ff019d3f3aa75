//! How many requests at a time make a connection of their own to one peer.
//!
//! On HTTP/1 each request needs one, and a handshake costs as much time on a processor as many requests. When time is short,
//! or when a new certificate has put all connections out of use, hundreds of requests that each make one leave none for
//! answers, until connecting takes too long and begins again. So only some do; the others take what these bring back, or
//! their turn. If one of them fails, those who wait have failed with it, as on HTTP/2. As long as nobody waits, all that this
//! costs is a look at a counter.

use std::cell::Cell;

use tokio::sync::Notify;

use crate::upstream::ConnectError;

/// Connections of a key that a worker makes at a time.
const AT_A_TIME: u32 = 32;

/// The turns of one key.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Cell<u32>,
    waiting: Cell<u32>,
    /// Attempts that have failed.
    failed: Cell<u32>,
    next: Notify,
}

/// The right to make a connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    /// Whether one more has to wait.
    pub(super) fn are_taken(&self) -> bool {
        self.taken.get() >= AT_A_TIME
    }

    pub(super) fn take(&self) -> Turn<'_> {
        self.taken.set(self.taken.get() + 1);
        Turn(self)
    }

    /// One of those who wait can look again.
    #[inline]
    pub(super) fn one(&self) {
        if self.waiting.get() > 0 {
            self.next.notify_one();
        }
    }

    /// Waits until there is a connection or a turn, perhaps.
    pub(super) async fn wait(&self) -> Result<(), ConnectError> {
        let failed = self.failed.get();
        let _waiting = Waiting::new(&self.waiting);
        self.next.notified().await;
        if self.failed.get() == failed {
            Ok(())
        } else {
            Err(ConnectError::Shared)
        }
    }
}

impl Turn<'_> {
    /// The attempt has ended.
    pub(super) fn end(self, made: bool) {
        if !made {
            self.0.failed.set(self.0.failed.get().wrapping_add(1));
            self.0.next.notify_waiters();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
        self.0.one();
    }
}

/// Somebody who waits; counted until dropped.
struct Waiting<'t>(&'t Cell<u32>);

impl<'t> Waiting<'t> {
    fn new(count: &'t Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_turn_waits_for_one_or_for_a_connection() {
        let turns = Turns::default();
        let mut taken: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                assert!(!turns.are_taken());
                turns.take()
            })
            .collect();
        assert!(turns.are_taken());
        let (mut first, mut second) = (pin!(turns.wait()), pin!(turns.wait()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        // One is made: one of those who wait looks, not both.
        taken.remove(0).end(true);
        assert!(matches!(first.as_mut().now_or_never(), Some(Ok(()))));
        assert!(second.as_mut().now_or_never().is_none());
        // One comes back.
        turns.one();
        assert!(matches!(second.as_mut().now_or_never(), Some(Ok(()))));
        drop(taken);
        assert!(!turns.are_taken());
    }

    #[tokio::test]
    async fn who_waits_fails_with_an_attempt_and_who_comes_later_does_not() {
        let turns = Turns::default();
        let (turn, other) = (turns.take(), turns.take());
        let (mut first, mut second) = (pin!(turns.wait()), pin!(turns.wait()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        turn.end(false);
        for waiting in [first, second] {
            assert!(matches!(
                waiting.now_or_never(),
                Some(Err(ConnectError::Shared))
            ));
        }
        // Who comes later looks once in vain, perhaps, but has not failed.
        let once = turns.wait().now_or_never();
        assert!(!matches!(once, Some(Err(_))));
        let mut later = pin!(turns.wait());
        assert!(later.as_mut().now_or_never().is_none());
        // It was given up, which says nothing about the endpoint.
        drop(other);
        assert!(matches!(later.now_or_never(), Some(Ok(()))));
        assert_eq!((turns.waiting.get(), turns.taken.get()), (0, 0));
    }
}
