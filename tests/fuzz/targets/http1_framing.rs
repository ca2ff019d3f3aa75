//! HTTP/1 framing: the guard and hyper behind it.
//!
//! The input is what a client sends. However it is cut into reads, the guard gives the same verdict and lets the same
//! bytes through. What it lets through, an independent strict reader takes for the same messages with the same ends,
//! and so does hyper: no bytes exist that one of the three takes for a request and another for a body. What any of them
//! refuses ends the connection.

#![no_main]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tulle_fuzz::http1::{self as reference, Message, Stream};
use tulle_fuzz::input::seed;
use tulle_fuzz::wire::Wire;
use tulle_proxy::fuzz::http1_message_ends;
use tulle_proxy::io::{Guard, Heads, REFUSED};

/// What the guard gives on in the place of what it refuses: a request of its own for a head, else what hyper refuses.
const INSTEAD: &[u8] = b"TULLE-REFUSED / HTTP/1.1\r\nhost: -\r\n\r\n";
const POISON: &[u8] = b"\0\n\n";
/// hyper takes no shorter heads, and no more fields.
const HEADS: Heads = Heads {
    patience: Duration::MAX,
    longest: 8 * 1024,
    most: 100,
    answer: |_| Bytes::from_static(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"),
};

tulle_fuzz::target!(|data: &[u8]| {
    let pieces = [1, 2 + (seed(data) % 61) as usize];
    for switched in [false, true] {
        let whole = guarded(data, usize::MAX, switched);
        let stream = reference::read(&whole.passed, switched);
        same_messages(data, &whole, &stream, switched);
        for size in pieces {
            let cut = guarded(data, size, switched);
            assert_eq!(cut.refused, whole.refused, "verdict in pieces of {size}");
            if whole.refused {
                // Where in a refused line it is cut off depends on the reads; what was complete before does not.
                let again = reference::read(&cut.passed, switched);
                assert_eq!(again.messages, stream.messages, "pieces of {size}");
            } else {
                assert_eq!(cut.passed, whole.passed, "pieces of {size}");
            }
        }
        if !switched {
            for size in [usize::MAX, pieces[1]] {
                same_as_hyper(data, size, &whole, &stream);
            }
        }
    }
});

/// What came through the guard.
struct Guarded {
    passed: Vec<u8>,
    refused: bool,
}

fn guarded(data: &[u8], size: usize, switched: bool) -> Guarded {
    let (mut guard, gate) = Guard::new(Wire::new(data, size), HEADS);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut passed = Vec::new();
    loop {
        // Whoever asks to switch has its answer at once.
        gate.answered(switched);
        let mut buf = [0; 1024];
        let mut buf = ReadBuf::new(&mut buf);
        let read = Pin::new(&mut guard).poll_read(&mut cx, &mut buf);
        if read.is_pending() {
            assert!(passed.ends_with(INSTEAD), "a wait for nothing");
            break;
        }
        assert!(matches!(read, Poll::Ready(Ok(()))), "{read:?}");
        if buf.filled().is_empty() {
            break;
        }
        passed.extend_from_slice(buf.filled());
    }
    let refused = gate.refused().is_some();
    if refused {
        let ends = [INSTEAD, POISON, b""];
        let end = ends.into_iter().find(|end| passed.ends_with(end));
        passed.truncate(passed.len() - end.map_or(0, <[u8]>::len));
    }
    assert!(data.starts_with(&passed), "something else came through");
    assert!(
        refused || passed.len() == data.len(),
        "something is missing"
    );
    Guarded { passed, refused }
}

/// The guard and the strict reader see the same messages, and what the reader refuses the guard does not let end.
fn same_messages(data: &[u8], guarded: &Guarded, stream: &Stream, switched: bool) {
    let ends: Vec<_> = stream.messages.iter().map(|(_, end)| *end).collect();
    let switch = stream
        .messages
        .last()
        .filter(|(last, _)| switched && last.asks_to_switch());
    if let Some((_, end)) = switch {
        assert!(!guarded.refused, "what follows is another protocol");
        assert_eq!(&guarded.passed[*end..], &data[*end..]);
    }
    let seen = http1_message_ends(data);
    let common = seen.len().min(ends.len());
    assert_eq!(ends[..common], seen[..common], "where messages end");
    if switch.is_none() && stream.refused.is_none() && !guarded.refused {
        assert_eq!(seen.len(), ends.len(), "how many messages there are");
    }
}

/// hyper behind the guard reads what the strict reader reads, and answers 400 to what is refused.
fn same_as_hyper(data: &[u8], size: usize, guarded: &Guarded, stream: &Stream) {
    let served = serve(data, size);
    let complete: Vec<_> = served.complete.iter().collect();
    let expected: Vec<_> = stream.messages.iter().map(|(message, _)| message).collect();
    let common = complete.len().min(expected.len());
    assert_eq!(complete, expected[..common], "what hyper reads");
    assert!(
        served.heads <= expected.len() + usize::from(stream.open.is_some()),
        "hyper takes something else for a head"
    );
    let ended = served.ended || served.complete.last().is_some_and(closes);
    assert!(
        ended || complete.len() == expected.len(),
        "hyper lost a request"
    );
    if guarded.refused || stream.refused.is_some() {
        assert!(ended, "what is refused does not end the connection");
    }
}

/// Whether no more requests are read after this one.
fn closes(message: &Message) -> bool {
    message.old || message.values("connection").next().is_some()
}

/// What hyper made of a stream.
#[derive(Default)]
struct Served {
    complete: Vec<Message>,
    /// Requests whose head came.
    heads: usize,
    /// Whether it answered that a message is bad, or gave the connection up in the middle of one.
    ended: bool,
}

fn serve(data: &[u8], size: usize) -> Served {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
    }
    let served = Arc::new(Mutex::new(Served::default()));
    let wire = Wire::new(data, size);
    let output = wire.output.clone();
    let (guard, gate) = Guard::new(wire, HEADS);
    let service = service_fn(|request: Request<Incoming>| {
        let (gate, served) = (gate.clone(), served.clone());
        async move {
            if request.method().as_str() == REFUSED {
                assert!(
                    gate.refused().is_some(),
                    "a client sent the guard's own request"
                );
                served.lock().ended = true;
                let mut answer = Response::new(Empty::<Bytes>::new());
                *answer.status_mut() = StatusCode::BAD_REQUEST;
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
                return Ok::<_, hyper::Error>(answer);
            }
            served.lock().heads += 1;
            let connect = request.method() == Method::CONNECT;
            if connect || request.headers().contains_key("upgrade") {
                gate.answered(false);
            }
            let message = received(request).await?;
            served.lock().complete.push(message);
            let mut answer = Response::new(Empty::<Bytes>::new());
            if connect {
                // Any other status would switch.
                *answer.status_mut() = StatusCode::NOT_FOUND;
            }
            Ok(answer)
        }
    });
    let serving = http1::Builder::new()
        .half_close(true)
        .max_buf_size(HEADS.longest + Heads::MORE)
        .serve_connection(TokioIo::new(guard), service);
    let ended = RUNTIME.with(|runtime| runtime.block_on(serving)).is_err();
    let mut served = std::mem::take(&mut *served.lock());
    let output = output.lock();
    let bad = |answer: &[u8]| {
        answer == b"HTTP/1.1 400" || answer == b"HTTP/1.1 431" || answer == b"HTTP/1.1 414"
    };
    served.ended |= ended || output.windows(12).any(bad);
    served
}

async fn received(request: Request<Incoming>) -> Result<Message, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let fields = |headers: &http::HeaderMap| {
        let owned = |(name, value): (&http::HeaderName, &HeaderValue)| {
            (name.as_str().to_owned(), value.as_bytes().to_vec())
        };
        let mut fields: Vec<_> = headers.iter().map(owned).collect();
        fields.sort_by(|one, other| one.0.cmp(&other.0));
        fields
    };
    Ok(Message {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        old: head.version == Version::HTTP_10,
        fields: fields(&head.headers),
        trailers: body.trailers().map(fields).unwrap_or_default(),
        body: body.to_bytes().to_vec(),
    })
}
