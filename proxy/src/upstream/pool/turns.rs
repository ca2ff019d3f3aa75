//! How many requests at a time make a connection of their own to one peer.
//!
//! On HTTP/1 each request needs one, and a handshake costs as much time on a processor as many requests. When time is short,
//! or when a new certificate has put all connections out of use, hundreds of requests that each make one leave none for
//! answers, until connecting takes too long and begins again. So only some do; the others take what these bring back, or
//! their turn, for no longer than connecting may take. If several of them fail and none succeeds in between, those who wait have
//! failed with them, as on HTTP/2. As long as nobody waits, all that this costs is a look at a counter.

use std::cell::Cell;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::upstream::{ConnectError, UpstreamError};

/// Attempts that fail one after the other before those who wait have failed too: one alone says little about the peer.
const IN_A_ROW: u32 = 4;

/// The turns of one key.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Cell<u32>,
    waiting: Cell<u32>,
    /// Attempts that have failed since one has not, or since those who wait were told.
    row: Cell<u32>,
    /// How often those who wait were told that they have failed.
    failed: Cell<u32>,
    next: Notify,
}

/// The right to make a connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    /// Whether one more has to wait, where so many connections may be made at a time.
    pub(super) fn are_taken(&self, most: u32) -> bool {
        self.taken.get() >= most
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

    /// Waits until there is a connection or a turn, perhaps, but no longer than `until`.
    pub(super) async fn wait(&self, until: Instant) -> Result<(), UpstreamError> {
        let failed = self.failed.get();
        let _waiting = Waiting::new(&self.waiting);
        let late = |_| UpstreamError::Overflow("connections");
        let next = self.next.notified();
        timeout_at(until, next).await.map_err(late)?;
        if self.failed.get() == failed {
            Ok(())
        } else {
            Err(ConnectError::Shared.into())
        }
    }
}

impl Turn<'_> {
    /// The attempt has ended.
    pub(super) fn end(self, made: bool) {
        let turns = self.0;
        let row = if made { 0 } else { turns.row.get() + 1 };
        turns.row.set(row % IN_A_ROW);
        if row == IN_A_ROW {
            turns.failed.set(turns.failed.get().wrapping_add(1));
            turns.next.notify_waiters();
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
    use std::pin::{Pin, pin};
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const AT_A_TIME: u32 = 32;

    type Waited = Result<(), UpstreamError>;

    async fn wait(turns: &Turns) -> Waited {
        turns.wait(Instant::now() + Duration::from_secs(60)).await
    }

    /// How a wait has ended, if it has.
    fn ended(waiting: &mut Pin<&mut impl Future<Output = Waited>>) -> Option<Waited> {
        waiting.as_mut().now_or_never()
    }

    #[tokio::test]
    async fn who_finds_no_turn_waits_for_one_or_for_a_connection() {
        let turns = Turns::default();
        let mut taken: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                assert!(!turns.are_taken(AT_A_TIME));
                turns.take()
            })
            .collect();
        assert!(turns.are_taken(AT_A_TIME));
        assert!(!turns.are_taken(AT_A_TIME + 1));
        let (mut first, mut second) = (pin!(wait(&turns)), pin!(wait(&turns)));
        assert!(ended(&mut first).is_none());
        assert!(ended(&mut second).is_none());
        // One is made: one of those who wait looks, not both.
        taken.remove(0).end(true);
        assert!(matches!(ended(&mut first), Some(Ok(()))));
        assert!(ended(&mut second).is_none());
        // One comes back.
        turns.one();
        assert!(matches!(ended(&mut second), Some(Ok(()))));
        drop(taken);
        assert!(!turns.are_taken(AT_A_TIME));
    }

    #[tokio::test]
    async fn who_waits_fails_with_several_attempts_in_a_row_and_who_comes_later_does_not() {
        let turns = Turns::default();
        let other = turns.take();
        let (mut first, mut second) = (pin!(wait(&turns)), pin!(wait(&turns)));
        assert!(ended(&mut first).is_none());
        assert!(ended(&mut second).is_none());
        for _ in 0..IN_A_ROW {
            turns.take().end(false);
        }
        for waiting in [first, second] {
            assert!(matches!(
                waiting.now_or_never(),
                Some(Err(UpstreamError::Connect(ConnectError::Shared)))
            ));
        }
        // Who comes later looks once in vain, perhaps, but has not failed.
        let once = wait(&turns).now_or_never();
        assert!(!matches!(once, Some(Err(_))));
        let mut later = pin!(wait(&turns));
        assert!(ended(&mut later).is_none());
        // It was given up, which says nothing about the endpoint.
        drop(other);
        assert!(matches!(ended(&mut later), Some(Ok(()))));
        assert_eq!((turns.waiting.get(), turns.taken.get()), (0, 0));
    }

    #[tokio::test]
    async fn attempts_that_fail_now_and_then_fail_nobody_who_waits() {
        let turns = Turns::default();
        for _ in 0..10 {
            for made in [false, false, false, true] {
                let mut waiting = pin!(wait(&turns));
                let looked = ended(&mut waiting);
                assert!(!matches!(looked, Some(Err(_))));
                turns.take().end(made);
                if looked.is_none() {
                    assert!(
                        matches!(ended(&mut waiting), Some(Ok(()))),
                        "it looks again"
                    );
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_connecting_may_take() {
        let turns = Turns::default();
        let began = Instant::now();
        let waited = wait(&turns).await;
        let late = matches!(waited, Err(UpstreamError::Overflow("connections")));
        assert!(late, "{waited:?}");
        assert_eq!(began.elapsed(), Duration::from_secs(60));
        assert_eq!(turns.waiting.get(), 0);
    }
}
