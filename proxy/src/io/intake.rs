//! How much may be read from peers until memory is looked at again.
//!
//! Whoever looks at memory allows so many bytes; readers use them up, and once they are used up each waits for a moment
//! before it reads on. So nobody can fill memory faster than those who have to go can be found, and whoever behaves is late
//! by moments instead of refused. Without a limit of memory there is no allowance, and a read costs one comparison more;
//! with one it costs an addition that workers share.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// What was taken beyond what was allowed counts the next time, but no more of it than this: at the least that is ever allowed
/// it is paid off before a client whose window updates wait meanwhile is taken for one that takes nothing.
const DEBT: i64 = 64 << 10;
/// How long a reader waits before it tries again.
const MOMENT: Duration = Duration::from_millis(2);

/// What may be read, for all readers together. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Intake(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Bytes; below zero if the last read took more than there were.
    left: AtomicI64,
    /// Rung when they are used up.
    used_up: Notify,
}

/// A reader's part in it.
#[derive(Debug, Default)]
pub(super) struct Reader {
    intake: Intake,
    /// While it waits; boxed because hardly anybody ever does.
    moment: Option<Pin<Box<Sleep>>>,
}

impl Intake {
    /// One with a limit, which has yet to be set.
    #[must_use]
    pub fn limited() -> Self {
        Self(Some(Arc::new(Shared {
            left: AtomicI64::new(i64::MAX),
            used_up: Notify::new(),
        })))
    }

    /// So many bytes may be read from now on, whatever was left; what was taken beyond that was some of them.
    pub fn allow(&self, bytes: u64) {
        if let Some(shared) = &self.0 {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let debt = shared.left.load(Relaxed).clamp(-DEBT, 0);
            shared.left.store(bytes.saturating_add(debt), Relaxed);
        }
    }

    /// Something takes so much memory that was not read.
    #[inline]
    pub fn take(&self, bytes: usize) {
        if let Some(shared) = &self.0 {
            shared.take(bytes);
        }
    }

    /// Resolves when all of it is used up, or was since it was asked last.
    pub async fn used_up(&self) {
        match &self.0 {
            Some(shared) => shared.used_up.notified().await,
            None => std::future::pending().await,
        }
    }

    /// What is left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> i64 {
        let shared = self.0.as_ref();
        shared.map_or(i64::MAX, |shared| shared.left.load(Relaxed))
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
        if before > 0 && before <= bytes {
            self.used_up.notify_one();
        }
    }
}

impl Reader {
    pub(super) fn of(intake: Intake) -> Self {
        Self {
            intake,
            moment: None,
        }
    }

    /// Ready when there may be a read.
    #[inline]
    pub(super) fn poll_turn(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.intake.is_used_up() {
            return self.poll_moment(tcp, cx);
        }
        self.moment = None;
        Poll::Ready(Ok(()))
    }

    /// So much was read.
    #[inline]
    pub(super) fn took(&self, bytes: usize) {
        if bytes > 0 {
            self.intake.take(bytes);
        }
    }

    #[cold]
    fn poll_moment(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Where there is nothing to read there is nothing to wait for.
        ready!(tcp.poll_read_ready(cx))?;
        while self.intake.is_used_up() {
            let moment = self.moment.get_or_insert_with(|| Box::pin(sleep(MOMENT)));
            ready!(moment.as_mut().poll(cx));
            self.moment = None;
        }
        Poll::Ready(Ok(()))
    }
}
