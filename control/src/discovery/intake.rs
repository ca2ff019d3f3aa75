//! Requests that have not come whole, and how much of them may lie here.
//!
//! A message is read once all of it is there; until then what has come of it lies in memory, for as long as its client
//! likes. So a message that comes in parts takes room for all of it, as soon as it says how long it is, of what there is for
//! its client on all of its streams; and it has that until all is done that it asks for, because what was read of it waits as
//! well, for its pod to appear, for a turn, until what came before is paid for. What comes at once needs none.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tulle_identity::SpiffeId;

use super::Peer;
use crate::limit::{Kept, LARGE, Reached, Slack};

/// How many of the longest messages a client may have under way.
const LONGEST: usize = 4;
/// Bytes before a message: whether it is compressed, and how long it is.
const HEAD: usize = 5;

/// Takes the requests of streams in before a service that reads them, whose connections carry a [`Peer`].
#[derive(Clone, Debug)]
pub(crate) struct Intake<S> {
    service: S,
    room: Arc<Room>,
}

/// Room for requests that have not come whole.
#[derive(Debug)]
struct Room {
    /// Bytes of one request, at most.
    longest: usize,
    of_clients: Kept<(IpAddr, SpiffeId), Semaphore>,
    reached: Reached,
    slack: Slack,
}

/// Room of a stream's last message, until all is done that it asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Held {
    /// It is done.
    pub(super) fn give_back(&self) {
        self.0.lock().take();
    }
}

/// The requests of a stream, as they come.
#[derive(Debug)]
struct Coming {
    body: Body,
    message: Message,
    room: Arc<Room>,
    of_client: Arc<Semaphore>,
    /// For the message that has come in part.
    taken: Option<OwnedSemaphorePermit>,
    /// For the one that has come whole.
    held: Held,
    /// One of them was large.
    large: bool,
}

/// How far a message has come.
#[derive(Debug, Default)]
struct Message {
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    begun: usize,
    /// Bytes of the rest that have not.
    missing: usize,
}

impl<S> Intake<S> {
    /// For messages of at most so many bytes; one for which there is no room is counted in `reached`. What large ones leave is told
    /// to `slack`. Whoever reads a stream finds a [`Held`] in its request.
    pub(super) fn new(service: S, longest: usize, reached: Reached, slack: Slack) -> Self {
        let room = Arc::new(Room {
            longest,
            of_clients: Kept::default(),
            reached,
            slack,
        });
        Self { service, room }
    }
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Intake<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let held = Held::default();
        request.extensions_mut().insert(held.clone());
        let peer = request.extensions().get::<Peer>();
        // Of a client without an identity nothing is read.
        let of_client = peer.and_then(|peer| self.room.of_client(peer));
        let request = match of_client {
            Some(of_client) => request.map(|body| {
                Body::new(Coming {
                    body,
                    message: Message::default(),
                    room: self.room.clone(),
                    of_client,
                    taken: None,
                    held,
                    large: false,
                })
            }),
            None => request,
        };
        self.service.call(request)
    }
}

impl<S: NamedService> NamedService for Intake<S> {
    const NAME: &'static str = S::NAME;
}

impl Room {
    fn of_client(&self, peer: &Peer) -> Option<Arc<Semaphore>> {
        let whose = (peer.address.ip().to_canonical(), peer.id.clone()?);
        let most = self.longest.saturating_mul(LONGEST);
        let make = || Semaphore::new(most.min(Semaphore::MAX_PERMITS));
        Some(self.of_clients.of(&whose, make, |_| false))
    }
}

impl Coming {
    /// Some more has come.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Status> {
        if self.message.read(bytes) {
            // Nobody asks for more before what came is done.
            *self.held.0.lock() = self.taken.take();
        }
        let Some(length) = self.message.length().filter(|_| self.taken.is_none()) else {
            return Ok(());
        };
        self.large |= length >= LARGE;
        // One that is too long is refused for that, before anything of it is kept.
        let length = u32::try_from(length.min(self.room.longest)).unwrap_or(u32::MAX);
        let taken = self.of_client.clone().try_acquire_many_owned(length);
        self.taken = Some(taken.map_err(|_| {
            self.room.reached.count("unfinished_requests");
            Status::resource_exhausted(
                "this client has too much under way of requests that have not come whole; try again",
            )
        })?);
        Ok(())
    }
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(status) = self.take(bytes)
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if self.large {
            self.room.slack.left();
        }
    }
}

impl Message {
    /// Reads on; returns whether a message has come to its end.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            if self.begun < HEAD {
                let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.begun));
                self.head[self.begun..][..head.len()].copy_from_slice(head);
                self.begun += head.len();
                bytes = rest;
                self.missing = self.length().unwrap_or(0);
            }
            if self.begun == HEAD {
                let come = bytes.len().min(self.missing);
                self.missing -= come;
                bytes = &bytes[come..];
                if self.missing == 0 {
                    self.begun = 0;
                    ended = true;
                }
            }
        }
        ended
    }

    /// How long the message is that has come in part, if it has said so.
    fn length(&self) -> Option<usize> {
        let [_, length @ ..] = self.head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        (self.begun == HEAD).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(u32::try_from(length).expect("short").to_be_bytes());
        message.resize(HEAD + length, 7);
        message
    }

    #[test]
    fn a_message_is_followed_however_it_is_cut() {
        let lengths = [0, 1, 300, 0, 5, 70_000];
        let all: Vec<u8> = lengths.into_iter().flat_map(message).collect();
        for cut in [1, 2, 4, 5, 6, 7, 299, 16_384, all.len()] {
            let (mut read, mut ended) = (Message::default(), 0);
            for part in all.chunks(cut) {
                ended += usize::from(read.read(part));
            }
            assert_eq!(read.length(), None, "{cut}: all have come whole");
            let parts = all.chunks(cut).len();
            assert!(ended >= 1 && ended <= lengths.len().min(parts), "{cut}");
        }
        let mut read = Message::default();
        assert!(!read.read(&message(300)[..HEAD - 1]));
        assert_eq!(read.length(), None, "it has not said so");
        assert!(!read.read(&message(300)[HEAD - 1..HEAD + 299]));
        assert_eq!(read.length(), Some(300));
        let rest = [&[7], &message(9)[..HEAD]].concat();
        assert!(read.read(&rest), "the first has ended");
        assert_eq!(read.length(), Some(9), "and the next has begun");
    }
}
