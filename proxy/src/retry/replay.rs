//! The body of a request, shared by its attempts.
//!
//! It belongs to the request: an attempt reads it through [`RequestBody`], and what was read is kept up to a cap so
//! that the next attempt can read it again. Past the cap nothing is kept and there are no more retries. Only the
//! newest attempt gets anything: one that was abandoned just stays silent until its connection drops it.
//!
//! What the client has sent may also be taken before anybody asks for it ([`Waiting`]), where too many small pieces wait.

mod ahead;
mod pause;
mod rest;
mod uploads;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use ahead::{Ahead, Said};
use pause::Pause;

use crate::fields::{self, Trailer};
use crate::grpc::Messages;
use crate::io::Calm;
use crate::worker::Worker;

pub use uploads::Uploads;

/// Pieces that are kept at most: each takes memory beside its bytes.
const PIECES: usize = 1_024;

/// Why a body that an attempt reads ended early.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client went away or sent garbage.
    #[error("the client did not send the whole request body")]
    Client(#[source] hyper::Error),
    /// The client took its stream back before it was at the end, and called that no error.
    #[error("the client reset its request before the end of the body")]
    Reset,
    /// Its trailers are not what trailers may be.
    #[error("the request ends with {0}")]
    Trailer(&'static str),
    /// It is large, and memory is short.
    #[error("the request body is large, and memory is short")]
    Overload,
    /// The client paused for too long, or sends too little.
    #[error("the client paused for too long in the request body")]
    Late,
    /// The exchange is over; nobody wants the rest.
    #[error("the exchange ended before the request body did")]
    Over,
}

/// Why a request will never be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// The client went away or sent garbage.
    Client,
    /// It ends with a trailer that no request may have.
    Trailer(&'static str),
    /// The client paused for too long.
    Late,
    /// It is large, and memory is short.
    Overload,
    /// Too many small pieces of it waited.
    Crowd,
}

/// Bytes from which on a body is one of those that are cut when memory is short.
pub const HEAVY: u64 = 16 * 1024;

/// The request's side of its body.
#[derive(Debug)]
pub struct Replay(Option<Rc<RefCell<Shared>>>);

/// An attempt's side of it. An empty body costs nothing.
#[derive(Debug)]
pub struct RequestBody(Option<Attempt>);

#[derive(Debug)]
struct Attempt {
    shared: Rc<RefCell<Shared>>,
    number: u32,
}

/// A body's part in how crowded its connection is.
#[derive(Debug)]
pub struct Waiting(Weak<RefCell<Shared>>);

#[derive(Debug)]
struct Shared {
    source: Option<Incoming>,
    /// What was taken from the source and nobody has asked for yet; boxed because few have any.
    ahead: Option<Box<Ahead>>,
    /// The connection, if it counts pieces: that of HTTP/2.
    calm: Option<Calm>,
    /// Length as announced before anything was read.
    announced: SizeHint,
    /// What was read and may be read again.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// How much of the rest may still be kept.
    cap: usize,
    /// How many of `kept` the current attempt has had.
    next: usize,
    trailers: Option<HeaderMap>,
    /// Whether the current attempt has had the trailers.
    trailers_given: bool,
    /// Number of the current attempt.
    attempt: u32,
    /// Whether that has yet to begin: all that it has to read is there until then, and nobody reads it.
    promised: bool,
    state: State,
    /// Bytes read from the client.
    bytes: u64,
    /// Messages read from the client, if it is a gRPC call.
    messages: Option<Messages>,
    /// The current attempt, waiting for the client; `None`: it has not asked for more since it was given something.
    waker: Option<Waker>,
    /// The exchange, which ends if this body is given up.
    exchange: Option<Waker>,
    /// Where it is among the bodies of its worker.
    place: Option<usize>,
    worker: Rc<Worker>,
    /// Whether the client may pause for as long as it likes: a call of gRPC, and every request that has an answer.
    patient: bool,
    /// The waits for the client, if there was one.
    pause: Option<Pause>,
    failure: Option<RequestFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The client may send more; everything so far is kept.
    Kept,
    /// The client may send more; some of it is gone.
    Streamed,
    /// The client has sent everything; all of it is kept.
    EndedKept,
    /// The client has sent everything; some of it is gone.
    EndedStreamed,
    /// The client failed.
    Failed,
    /// Nobody reads any more.
    Over,
}

impl Replay {
    /// Takes the body of a request, to keep up to `cap` bytes of it. That of a gRPC call is counted in messages too. Unless
    /// it is `patient`, the client may pause only for so long before there is an answer.
    #[must_use]
    pub fn new(
        source: Incoming,
        cap: usize,
        grpc: bool,
        patient: bool,
        calm: Option<Calm>,
        worker: &Rc<Worker>,
    ) -> Self {
        if source.is_end_stream() {
            return Self(None);
        }
        let shared = Rc::new(RefCell::new(Shared {
            announced: source.size_hint(),
            source: Some(source),
            ahead: None,
            calm,
            kept: VecDeque::new(),
            kept_bytes: 0,
            cap,
            next: 0,
            trailers: None,
            trailers_given: false,
            attempt: 0,
            promised: true,
            state: State::Kept,
            bytes: 0,
            messages: grpc.then(Messages::default),
            waker: None,
            exchange: None,
            place: None,
            worker: worker.clone(),
            patient,
            pause: None,
            failure: None,
        }));
        let place = worker.uploads.enter(Rc::downgrade(&shared));
        shared.borrow_mut().place = Some(place);
        Self(Some(shared))
    }

    /// The body of a request that has none.
    #[must_use]
    pub fn empty() -> Self {
        Self(None)
    }

    /// Its part in how crowded the connection is; `None`: it has none.
    #[must_use]
    pub fn waiting(&self) -> Option<Waiting> {
        self.0.as_ref().map(|shared| Waiting(Rc::downgrade(shared)))
    }

    /// The body for a new attempt, from its beginning; the attempt before gets nothing any more.
    #[must_use]
    pub fn attempt(&self) -> RequestBody {
        RequestBody(self.0.as_ref().map(|shared| {
            let mut this = shared.borrow_mut();
            this.begin_anew();
            this.promised = false;
            Attempt {
                shared: shared.clone(),
                number: this.attempt,
            }
        }))
    }

    /// There will be another attempt: from here on the one before gets nothing any more, and until it has begun nothing is let
    /// go of what it has to read.
    pub fn promise(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().begin_anew();
        }
    }

    /// Whether a new attempt would get the whole body.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.state()
            .is_none_or(|state| matches!(state, State::Kept | State::EndedKept))
    }

    /// Whether the client has sent all of it and the current attempt has read all of it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|shared| shared.borrow().is_complete())
    }

    /// Why it will never be complete, if it will not.
    #[must_use]
    pub fn failure(&self) -> Option<RequestFailure> {
        self.0.as_ref().and_then(|shared| shared.borrow().failure)
    }

    /// The same body, to ask whether it was given up.
    #[must_use]
    pub fn watched(&self) -> Self {
        Self(self.0.clone())
    }

    /// Ready when it was given up because memory was short.
    #[inline]
    pub fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        match &self.0 {
            Some(shared) => shared.borrow_mut().poll_given_up(cx),
            None => Poll::Pending,
        }
    }

    /// Bytes read from the client so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.borrow().bytes)
    }

    /// Messages of a gRPC call read from the client so far.
    #[must_use]
    pub fn messages(&self) -> Messages {
        self.0
            .as_ref()
            .and_then(|shared| shared.borrow().messages)
            .unwrap_or_default()
    }

    /// There will be no more attempts: nothing is kept from here on, and the client may take its time.
    pub fn commit(&self) {
        if let Some(shared) = &self.0 {
            let mut this = shared.borrow_mut();
            this.stop_keeping();
            (this.patient, this.pause) = (true, None);
        }
    }

    /// The exchange is over: an attempt that still waits for the client is told so.
    pub fn finish(&self) {
        let Some(shared) = &self.0 else { return };
        let mut this = shared.borrow_mut();
        if this.is_complete() {
            return;
        }
        this.state = State::Over;
        this.forget();
        (this.source, this.ahead) = (None, None);
        if let Some(waker) = this.waker.take() {
            waker.wake();
        }
    }

    /// Reads the rest of the body and throws it away, as long as all of it stays below the cap.
    pub async fn discard(&self) {
        let mut body = self.attempt();
        while self.is_replayable() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            if !matches!(frame, Some(Ok(_))) {
                break;
            }
        }
    }

    fn state(&self) -> Option<State> {
        self.0.as_ref().map(|shared| shared.borrow().state)
    }
}

impl Shared {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::EndedKept | State::EndedStreamed)
    }

    fn is_complete(&self) -> bool {
        self.has_ended()
            && self.next >= self.kept.len()
            && (self.trailers.is_none() || self.trailers_given)
    }

    /// From its beginning, for the next attempt, unless that is promised already.
    fn begin_anew(&mut self) {
        if !self.promised {
            self.attempt += 1;
            self.next = 0;
            self.trailers_given = false;
            self.waker = None;
            self.promised = true;
        }
    }

    /// Keeps nothing, and has nothing any more that was kept.
    fn forget(&mut self) {
        self.cap = 0;
        self.kept.clear();
        self.next = 0;
    }

    fn stop_keeping(&mut self) {
        self.cap = 0;
        self.kept.drain(..self.next);
        self.next = 0;
        if self.kept_bytes > 0 || self.bytes > 0 {
            self.lose();
        }
    }

    /// Notes that some of the body is gone.
    fn lose(&mut self) {
        self.state = match self.state {
            State::Kept => State::Streamed,
            State::EndedKept => State::EndedStreamed,
            other => other,
        };
    }

    fn end(&mut self) {
        self.state = match self.state {
            State::Kept => State::EndedKept,
            State::Streamed => State::EndedStreamed,
            other => other,
        };
    }

    fn keep(&mut self, data: &Bytes) {
        if data.is_empty() {
            return;
        }
        self.bytes += data.len() as u64;
        if let Some(messages) = &mut self.messages {
            messages.note(data);
        }
        let fits = self.kept_bytes + data.len() <= self.cap
            && self.kept.len() < PIECES
            && !self.worker.overload.is_short_of_memory();
        if fits && self.state == State::Kept {
            self.kept_bytes += data.len();
            self.kept.push_back(data.clone());
            self.next = self.kept.len();
        } else {
            self.forget();
            self.lose();
        }
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if matches!(self.state, State::Over | State::Failed) {
            return Poll::Ready(Some(Err(RequestBodyError::Over)));
        }
        if let Some(data) = self.kept.get(self.next) {
            let data = data.clone();
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.has_ended() {
            let trailers = if self.trailers_given {
                None
            } else {
                self.trailers.clone()
            };
            self.trailers_given = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        self.poll_source(cx)
    }

    fn poll_given_up(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.failure == Some(RequestFailure::Overload) {
            return Poll::Ready(());
        }
        match &mut self.exchange {
            Some(exchange) => exchange.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn fail(&mut self, why: RequestFailure) {
        self.state = State::Failed;
        self.failure = Some(why);
    }

    /// Ready when the client has paused for too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.patient {
            return Poll::Pending;
        }
        let patience = &self.worker.settings.patience;
        let pause = self
            .pause
            .get_or_insert_with(|| Pause::new(patience, self.bytes));
        pause.poll(cx, patience, self.bytes)
    }

    /// The next frame that was taken ahead, or that comes now.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Said> {
        if let Some(ahead) = &mut self.ahead {
            if let Some(next) = ahead.next() {
                return Poll::Ready(next);
            }
            self.ahead = None;
        }
        loop {
            let said = match ready!(self.poll_taking(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            // A frame without a byte would cost the receiver as much as any other, and too many of them the connection.
            let empty = said.data_ref().is_some_and(Bytes::is_empty);
            if !empty || self.has_come() {
                return Poll::Ready(Some(Ok(self.together(said, cx))));
            }
        }
    }

    /// Whether all of the body has been taken from the source, trailers and all.
    fn has_come(&self) -> bool {
        self.source.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let polled = self.poll_piece(cx);
        match polled {
            Poll::Pending => {
                if self.poll_pause(cx).is_ready() {
                    self.fail(RequestFailure::Late);
                    return Poll::Ready(Some(Err(RequestBodyError::Late)));
                }
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            // hyper takes a stream that was reset without an error for one that is at its end.
            Poll::Ready(None) if self.calm.is_some() && !self.has_come() => {
                self.fail(RequestFailure::Client);
                Poll::Ready(Some(Err(RequestBodyError::Reset)))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(RequestFailure::Client);
                Poll::Ready(Some(Err(RequestBodyError::Client(error))))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                self.waker = None;
                if let Some(pause) = &mut self.pause {
                    pause.interrupt();
                }
                if let Some(data) = frame.data_ref() {
                    if self.bytes >= HEAVY && self.worker.overload.cuts_transfers() {
                        self.fail(RequestFailure::Overload);
                        return Poll::Ready(Some(Err(RequestBodyError::Overload)));
                    }
                    self.keep(data);
                    if self.ahead.is_none() && self.has_come() {
                        self.end();
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    if let Err(why) = check(trailers) {
                        self.fail(RequestFailure::Trailer(why));
                        return Poll::Ready(Some(Err(RequestBodyError::Trailer(why))));
                    }
                    self.trailers = Some(trailers.clone());
                    self.trailers_given = true;
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

/// Takes out of a request's trailers what nobody may act upon, unless it is refused for one of them.
fn check(trailers: &mut HeaderMap) -> Result<(), &'static str> {
    let becomes = |name: &str| fields::trailer(name.as_bytes());
    let mut names = trailers.keys().map(HeaderName::as_str);
    if names.any(|name| becomes(name) == Trailer::Refused) {
        return Err(fields::REFUSED_TRAILER);
    }
    fields::trim(trailers);
    fields::remove(trailers, |name| becomes(name) == Trailer::Dropped);
    Ok(())
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(attempt) = &self.0 else {
            return Poll::Ready(None);
        };
        let mut shared = attempt.shared.borrow_mut();
        if shared.attempt != attempt.number {
            return Poll::Pending;
        }
        shared.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|attempt| {
            let shared = attempt.shared.borrow();
            shared.attempt == attempt.number && shared.is_complete()
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(attempt) => attempt.shared.borrow().announced,
        }
    }
}
