//! Ends streams whose client takes nothing of its answer.
//!
//! hyper gives each stream of an HTTP/2 connection to a task of its own, which waits while the stream's window is closed.
//! So [`Streams`], which starts these tasks, knows when that is what they wait for: the last that the body said before
//! was a piece of it. Only such a wait has a timer, and is known to whoever has to free memory. A stream that has nothing
//! to say may be silent for as long as it likes, and one of which something moves begins its time anew.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

use super::exchange::Connection;
use crate::overload::Waiting;
use crate::telemetry::Limit;

thread_local! {
    /// What the body of the stream whose task runs now has said last; `None`: nothing in this turn.
    static SAID: Cell<Option<Said>> = const { Cell::new(None) };
}

/// What a body says when it is asked for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Here is a piece; or, before it was asked at all, there will be some. With the number of the shared connection by which
    /// small ones come; else 0.
    Piece(usize),
    /// There is nothing yet, or nothing any more.
    Nothing,
}

/// To be called by every body of an answer.
#[inline]
pub(super) fn note(said: Said) {
    SAID.set(Some(said));
}

/// Starts the tasks of a connection's streams.
#[derive(Clone, Debug)]
pub(super) struct Streams(pub(super) Rc<Connection>);

impl<F: Future<Output: 'static> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let connection = self.0.clone();
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            let (newest, downstream) = (&connection.worker.newest, &connection.downstream);
            let wait = |cx: &Context<'_>, source| {
                let waker = cx.waker().clone();
                let (direction, peer) = (downstream.direction, downstream.peer);
                newest.waits(direction, peer, source, &connection.unread, waker)
            };
            let mut stall = Stall::new(connection.worker.settings.patience.flush, wait);
            let ended = poll_fn(|cx| stall.poll(stream.as_mut(), cx)).await;
            // Of those that are given up it is told there.
            if ended.is_none() && !stall.is_given_up() {
                tell(&connection);
            }
            // Dropped before its end, the stream is reset.
        });
    }
}

fn tell(connection: &Connection) {
    let what = "an answer is cut off that its client does not take";
    connection.reached(Limit::H2Flush, what);
}

/// A stream's wait for its window.
struct Stall<W> {
    patience: Duration,
    /// What it waits with.
    waits: Option<usize>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Makes a wait known.
    wait: W,
    waiting: Option<Waiting>,
}

impl<W: FnMut(&Context<'_>, usize) -> Waiting> Stall<W> {
    fn new(patience: Duration, wait: W) -> Self {
        Self {
            patience,
            waits: None,
            timer: None,
            wait,
            waiting: None,
        }
    }

    /// Whether it had to go to free memory.
    fn is_given_up(&self) -> bool {
        self.waiting.as_ref().is_some_and(Waiting::is_given_up)
    }

    /// Has the stream go on. `None`: its client has taken nothing for too long, or while memory was needed.
    fn poll<F: Future>(
        &mut self,
        stream: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<F::Output>> {
        if self.is_given_up() {
            return Poll::Ready(None);
        }
        SAID.set(None);
        if let Poll::Ready(done) = stream.poll(cx) {
            return Poll::Ready(Some(done));
        }
        if let Some(said) = SAID.take() {
            // Something has moved since the last turn.
            self.waits = match said {
                Said::Piece(source) => Some(source),
                Said::Nothing => None,
            };
            self.timer = None;
            self.waiting = None;
        }
        let Some(source) = self.waits else {
            return Poll::Pending;
        };
        if self.waiting.is_none() {
            self.waiting = Some((self.wait)(cx, source));
        }
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        timer.as_mut().poll(cx).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::conn::Direction;
    use crate::overload::{Newest, Unread};

    const PATIENCE: Duration = Duration::from_secs(300);

    const A_PIECE: Said = Said::Piece(0);

    fn known(newest: &Newest) -> impl FnMut(&Context<'_>, usize) -> Waiting {
        let peer = std::net::SocketAddr::from(([10, 1, 0, 9], 1));
        let unread = Unread::of(false);
        move |cx, source| {
            let waker = cx.waker().clone();
            newest.waits(Direction::Inbound, peer, source, &unread, waker)
        }
    }

    /// A stream whose body says this in its turns, one after the other, and which then waits.
    async fn ends(turns: &'static [Option<Said>], pause: Duration) -> bool {
        let newest = Newest::default();
        let mut stall = Stall::new(PATIENCE, known(&newest));
        for said in turns {
            let mut turn = pin!(poll_fn(|_| {
                if let Some(said) = said {
                    note(*said);
                }
                Poll::<()>::Pending
            }));
            let turned = poll_fn(|cx| stall.poll(turn.as_mut(), cx)).now_or_never();
            if turned.is_some() {
                return true;
            }
            advance(pause).await;
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_takes_nothing_is_cut_off() {
        const PIECE: Option<Said> = Some(A_PIECE);
        const NOTHING: Option<Said> = Some(Said::Nothing);
        let (short, long) = (PATIENCE / 2, PATIENCE * 10);
        assert!(ends(&[PIECE, None], long).await, "it takes nothing");
        assert!(
            ends(&[PIECE, None, None, None], short).await,
            "nor when asked again"
        );
        assert!(
            !ends(&[PIECE, PIECE, PIECE, PIECE], short).await,
            "it is slow"
        );
        assert!(
            !ends(&[PIECE, NOTHING, None, None], long).await,
            "there is nothing to take"
        );
        assert!(
            !ends(&[None, None, None], long).await,
            "there is no answer yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_woken_for_that() {
        let newest = Newest::default();
        let mut stall = Stall::new(PATIENCE, known(&newest));
        let begun = Instant::now();
        let mut first = true;
        let mut stream = pin!(poll_fn(|_| {
            if std::mem::take(&mut first) {
                note(A_PIECE);
            }
            Poll::<()>::Pending
        }));
        assert_eq!(poll_fn(|cx| stall.poll(stream.as_mut(), cx)).await, None);
        assert_eq!(begun.elapsed(), PATIENCE);
    }
}
