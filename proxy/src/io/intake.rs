//! How much may be read from peers until memory is looked at again.
//!
//! Whoever looks at memory allows so many bytes, and looks again when half of them are used up. Once all are, each reader waits
//! for a moment before it reads on, and the longer the more often it finds nothing; then it reads a little in advance of what
//! will be allowed, as what it waits for may be a few bytes without which nothing of its answers moves. So nobody can fill
//! memory faster than those who have to go can be found, and whoever behaves is late by moments instead of refused. Without a
//! limit of memory there is no allowance, and a read costs two comparisons more; with one it costs an addition that workers
//! share.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// What was taken beyond what was allowed counts the next time, but no more of it than this: at the least that is ever allowed
/// it is paid off before a client whose window updates wait meanwhile is taken for one that takes nothing.
const DEBT: i64 = 64 << 10;
/// How long a reader waits before it tries again; twice as long after each time, up to so many times.
const MOMENT: Duration = Duration::from_millis(2);
const DOUBLINGS: u32 = 3;
/// Whoever has waited so many times reads no more than so much, unless more than so much was taken in advance already.
const LATE: u32 = 4;
const LITTLE: usize = 256;
const ADVANCE: i64 = DEBT / 2;

/// What may be read, for all readers together. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Intake(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Bytes; below zero if the last read took more than there were.
    left: AtomicI64,
    /// Half of what there was.
    low: AtomicI64,
    /// Rung when no more than that are left.
    runs_low: Notify,
    /// How often a reader has begun to wait.
    delayed: Counter,
}

/// A reader's part in it.
#[derive(Debug, Default)]
pub(super) struct Reader {
    intake: Intake,
    /// While it waits; boxed because hardly anybody ever does.
    moment: Option<Pin<Box<Sleep>>>,
    /// How often it has waited since it read something.
    waits: u32,
}

impl Intake {
    /// One with a limit, which has yet to be set, and the counter of reads that it delays.
    #[must_use]
    pub fn limited(delayed: Counter) -> Self {
        Self(Some(Arc::new(Shared {
            left: AtomicI64::new(i64::MAX),
            low: AtomicI64::new(0),
            runs_low: Notify::new(),
            delayed,
        })))
    }

    /// So many bytes may be read from now on, whatever was left; what was taken beyond that was some of them.
    pub fn allow(&self, bytes: u64) {
        if let Some(shared) = &self.0 {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let debt = shared.left.load(Relaxed).clamp(-DEBT, 0);
            let left = bytes.saturating_add(debt);
            shared.low.store(left.max(0) / 2, Relaxed);
            shared.left.store(left, Relaxed);
        }
    }

    /// Something takes so much memory that was not read.
    #[inline]
    pub fn take(&self, bytes: usize) {
        if let Some(shared) = &self.0 {
            shared.take(bytes);
        }
    }

    /// Resolves when half of it is used up, or was since it was asked last.
    pub async fn runs_low(&self) {
        match &self.0 {
            Some(shared) => shared.runs_low.notified().await,
            None => std::future::pending().await,
        }
    }

    /// What is left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> i64 {
        let shared = self.0.as_ref();
        shared.map_or(i64::MAX, |shared| shared.left.load(Relaxed))
    }

    /// Whether so little was taken in advance that there may be a little more.
    fn gives_advances(&self) -> bool {
        let shared = self.0.as_ref();
        shared.is_some_and(|shared| shared.left.load(Relaxed) > -ADVANCE)
    }

    fn delays(&self) {
        if let Some(shared) = &self.0 {
            shared.delayed.inc();
        }
    }

    #[inline]
    fn is_used_up(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|shared| shared.left.load(Relaxed) <= 0)
    }
}

impl Shared {
    #[inline]
    fn take(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let before = self.left.fetch_sub(bytes, Relaxed);
        let low = self.low.load(Relaxed);
        if before > low && before.saturating_sub(bytes) <= low {
            self.runs_low.notify_one();
        }
    }
}

impl Reader {
    pub(super) fn of(intake: Intake) -> Self {
        Self {
            intake,
            moment: None,
            waits: 0,
        }
    }

    /// Ready when there may be a read, of so many bytes.
    #[inline]
    pub(super) fn poll_turn(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.intake.is_used_up() {
            return self.poll_moment(tcp, cx);
        }
        (self.moment, self.waits) = (None, 0);
        Poll::Ready(Ok(usize::MAX))
    }

    /// So much was read.
    #[inline]
    pub(super) fn took(&self, bytes: usize) {
        if bytes > 0 {
            self.intake.take(bytes);
        }
    }

    #[cold]
    fn poll_moment(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Where there is nothing to read there is nothing to wait for.
        ready!(tcp.poll_read_ready(cx))?;
        let mut most = usize::MAX;
        while self.intake.is_used_up() {
            if self.waits >= LATE && self.intake.gives_advances() {
                most = LITTLE;
                break;
            }
            if self.moment.is_none() && self.waits == 0 {
                self.intake.delays();
            }
            let pause = MOMENT * (1 << self.waits.min(DOUBLINGS));
            let moment = self.moment.get_or_insert_with(|| Box::pin(sleep(pause)));
            ready!(moment.as_mut().poll(cx));
            self.moment = None;
            self.waits = self.waits.saturating_add(1);
        }
        (self.moment, self.waits) = (None, 0);
        Poll::Ready(Ok(most))
    }
}
