//! Requests at times that do not depend on the answers: what a slow answer holds up is late, and is counted as late.
//!
//! The times are those of a Poisson process, the same for everybody who is given the same seed. A kernel timer wakes for
//! each, because the runtime's own is too coarse for thousands a second.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use anyhow::ensure;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// More seconds of requests than this may not wait.
const BEHIND: f64 = 1.0;

/// Whose time has come.
pub(super) struct Pace {
    rate: f64,
    random: RefCell<fastrand::Rng>,
    due: RefCell<VecDeque<Instant>>,
    ready: Semaphore,
    outstanding: Cell<usize>,
    answered: Notify,
    stopped: Cell<bool>,
}

impl Pace {
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self {
            rate,
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            due: RefCell::default(),
            ready: Semaphore::new(0),
            outstanding: Cell::new(0),
            answered: Notify::new(),
            stopped: Cell::new(false),
        }
    }

    /// Waits for a request whose time has come; that time.
    pub(super) async fn turn(&self) -> Instant {
        loop {
            if let Ok(permit) = self.ready.acquire().await {
                permit.forget();
            }
            let next = self.due.borrow_mut().pop_front();
            if let Some(due) = next {
                return due;
            }
        }
    }

    pub(super) fn answered(&self) {
        self.outstanding.set(self.outstanding.get() - 1);
        self.answered.notify_one();
    }

    /// Lets no more times come.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// Waits until everything is answered.
    pub(super) async fn drained(&self) {
        while self.outstanding.get() > 0 {
            self.answered.notified().await;
        }
    }

    /// Lets the times come. Ends when it was stopped or when too much waits.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut timer = Timer::new()?;
        let mut next = Instant::now();
        while !self.stopped.get() {
            let now = Instant::now();
            let mut released = 0;
            while next <= now {
                self.due.borrow_mut().push_back(next);
                released += 1;
                next += self.gap();
            }
            self.outstanding.set(self.outstanding.get() + released);
            self.ready.add_permits(released);
            let waiting = self.due.borrow().len();
            ensure!(
                waiting as f64 <= self.rate * BEHIND,
                "{waiting} requests wait: {:.0} a second is too much",
                self.rate
            );
            timer.wait(next - Instant::now()).await?;
        }
        Ok(())
    }

    fn gap(&self) -> Duration {
        let uniform = self.random.borrow_mut().f64();
        Duration::from_secs_f64(-(1.0 - uniform).ln() / self.rate)
    }
}

/// A kernel timer. Reading it is like reading a pipe: something is there once its time has come.
struct Timer(pipe::Receiver);

impl Timer {
    fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(timer)?))
    }

    async fn wait(&mut self, time: Duration) -> std::io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            // Zero would disarm it.
            tv_nsec: i64::from(time.subsec_nanos().max(1)),
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        self.0.read_exact(&mut [0; 8]).await?;
        Ok(())
    }
}
