//! Keeps an HTTP/2 connection that many requests share from ending because of answers that some clients do not take.
//!
//! h2 ends a connection on which too many small pieces wait, whosever they are. At half of that reading stops, which is seen
//! here: whoever takes nothing of what comes by this connection is given up, until few wait. What has come for them is read
//! to where it is now, because h2 never forgets what comes for a stream that has been reset. A request pays for it with what
//! it costs to count its pieces.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::Target;
use crate::io::Calm;
use crate::overload::Newest;
use crate::telemetry::{Limit, Limits, Who};

/// Between two looks while too many wait.
const STEP: Duration = Duration::from_millis(10);
/// How long reading may have stopped while there is nobody to be given up, and how long is read what nobody wants.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one connection carries. It belongs to whoever has a lease, and to what relieves it.
#[derive(Debug)]
pub(in crate::upstream) struct Load {
    /// Streams that are leased.
    pub(in crate::upstream) streams: Cell<usize>,
    calm: Calm,
    /// Whether it has stopped for good.
    stuck: Cell<bool>,
    /// Whether so many streams had to be reset that it will not live long.
    worn: Cell<bool>,
    /// More streams than that reset for what its peer sent on them wear it out.
    most_faults: u32,
    /// Whom that is told of.
    target: Target,
    limits: Limits,
    /// Answers that nobody wants, which are read all the same.
    unwanted: RefCell<Vec<Unwanted>>,
    has_unwanted: Cell<bool>,
}

#[derive(Debug)]
struct Unwanted {
    answer: Incoming,
    /// When something was last read of it, and when it was given up.
    moved: Instant,
    since: Instant,
}

impl Load {
    /// `local_resets`: streams that h2 resets for what the peer sent, before it ends the connection.
    pub(super) fn new(calm: Calm, local_resets: u32, target: Target, limits: Limits) -> Self {
        Self {
            streams: Cell::new(0),
            calm,
            stuck: Cell::new(false),
            worn: Cell::new(false),
            most_faults: local_resets / 2,
            target,
            limits,
            unwanted: RefCell::default(),
            has_unwanted: Cell::new(false),
        }
    }

    /// A number that is its own, and not 0.
    pub(super) fn number(self: &Rc<Self>) -> usize {
        Rc::as_ptr(self).addr()
    }

    /// So much of an answer was taken.
    #[inline]
    pub(super) fn took(&self, length: usize) {
        self.calm.pieces().taken(length);
    }

    /// Nobody wants the rest of an answer.
    pub(super) fn abandon(&self, mut answer: Incoming) {
        self.take(&mut answer);
        if self.calm.pieces().are_too_many() && !answer.is_end_stream() {
            let now = Instant::now();
            self.unwanted.borrow_mut().push(Unwanted {
                answer,
                moved: now,
                since: now,
            });
            self.has_unwanted.set(true);
        }
    }

    /// Whether a stream of it was reset for its interim answers; each is told once.
    pub(super) fn take_interim(&self) -> bool {
        self.calm.take_interim()
    }

    /// Whether nothing more comes by it.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.get()
    }

    /// Whether it has not long to live: what is asked from now on is asked on another one, if one can be made, and what was
    /// asked is answered.
    pub(super) fn is_worn(&self) -> bool {
        if !self.worn.get() && self.calm.faults() > self.most_faults {
            self.worn.set(true);
            let what = "a connection to it is left, because many streams had to be reset";
            self.target
                .reached(&self.limits, Limit::H2LocalResets, what);
        }
        self.worn.get()
    }

    /// Whether there is something to see to.
    fn is_crowded(&self) -> bool {
        self.calm.pieces().are_too_many() || self.has_unwanted.get()
    }

    /// Takes what has come. `None`: that was the end; otherwise, whether there was anything.
    fn take(&self, answer: &mut Incoming) -> Option<bool> {
        let mut any = false;
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut *answer).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.took(frame.data_ref().map_or(0, bytes::Bytes::len));
                    any = true;
                }
                Poll::Ready(_) => return None,
                Poll::Pending => return Some(any),
            }
        }
    }

    /// Reads what nobody wants, until nothing comes or it takes too long.
    fn read_unwanted(&self) {
        if !self.has_unwanted.get() {
            return;
        }
        let now = Instant::now();
        let stopped = self.calm.pieces().are_too_many();
        let mut unwanted = self.unwanted.borrow_mut();
        unwanted.retain_mut(|it| {
            match self.take(&mut it.answer) {
                None => return false,
                Some(true) => it.moved = now,
                // While reading has stopped nothing can come.
                Some(false) if stopped => it.moved = now,
                Some(false) => {}
            }
            now - it.moved < 3 * STEP && now - it.since < PATIENCE
        });
        self.has_unwanted.set(!unwanted.is_empty());
    }
}

/// Sees to one connection whenever too many small pieces wait on it, for ever.
pub(super) async fn relieve(load: Rc<Load>, newest: Newest, limits: Limits) {
    let pieces = load.calm.pieces();
    loop {
        pieces.stop().await;
        let mut since = Instant::now();
        while load.is_crowded() {
            load.read_unwanted();
            if pieces.are_too_many() {
                if give_up(&load, &newest, &limits) {
                    since = Instant::now();
                }
                let goes_on = pieces.are_few() || since.elapsed() >= PATIENCE;
                if goes_on && !pieces.go_on() {
                    load.stuck.set(true);
                }
            }
            sleep(STEP).await;
        }
    }
}

/// Gives some up who take nothing. False: there is nobody.
fn give_up(load: &Rc<Load>, newest: &Newest, limits: &Limits) -> bool {
    newest.give_up_answers(load.number(), |direction, address| {
        let what = "an answer is given up of which too many small pieces wait";
        let who = Who { address, id: None };
        limits.reached(Limit::H2DataFrames, direction, who, what);
    })
}
