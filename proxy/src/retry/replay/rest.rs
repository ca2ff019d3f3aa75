//! What a client still sends of a body after its request has been answered here.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http_body::Body as _;
use hyper::body::Incoming;

use super::Replay;

/// How often hyper is let go on reading: it hands out one piece each time, and the end of chunks is one.
const ROUNDS: usize = 4;

impl Replay {
    /// Whether the client has sent all of it, as far as anybody has read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|shared| shared.borrow().has_ended())
    }

    /// Nobody reads it any more. Throws away what has come of the rest, and tells whether that was all.
    pub async fn throw_away(&self) -> bool {
        if self.has_ended() {
            return true;
        }
        let shared = self.0.as_ref();
        let source = shared.and_then(|shared| shared.borrow_mut().source.take());
        self.finish();
        let Some(mut source) = source else {
            return false;
        };
        for _ in 0..ROUNDS {
            if let Some(ended) = take(&mut source) {
                return ended;
            }
            tokio::task::yield_now().await;
        }
        false
    }
}

/// Takes what has come. `None`: more may come; otherwise, whether that was all.
fn take(source: &mut Incoming) -> Option<bool> {
    let cx = &mut Context::from_waker(Waker::noop());
    while !source.is_end_stream() {
        match Pin::new(&mut *source).poll_frame(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_))) => return Some(false),
            Poll::Ready(None) => return Some(true),
            Poll::Pending => return None,
        }
    }
    Some(true)
}
