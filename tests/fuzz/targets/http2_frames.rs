//! HTTP/2 frames: the layer under h2.
//!
//! The input is what a client sends, its preface included. While its peer is within limits, the layer changes nothing,
//! however the bytes come. Who sends more control frames than it may is stopped between two frames, and what h2 gets
//! from then on is a head that never ends.

#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tulle_fuzz::input::seed;
use tulle_fuzz::wire::Wire;
use tulle_proxy::io::{Ended, Frames, Whose};

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
/// A limit, of which as many again are forgiven at once.
const LIMIT: u32 = 4;

tulle_fuzz::target!(|data: &[u8]| {
    let cut = 1 + (seed(data) % 61) as usize;
    for size in [1, cut, usize::MAX] {
        let (passed, ended) = read(data, size, u32::MAX);
        assert_eq!((passed.as_slice(), ended), (data, None), "pieces of {size}");
        let (passed, ended) = read(data, size, LIMIT);
        let Some(ended) = ended else {
            assert_eq!(passed, data, "pieces of {size}");
            continue;
        };
        assert_eq!(ended, Ended::ControlFrames);
        let same = data
            .iter()
            .zip(&passed)
            .take_while(|(one, other)| one == other)
            .count();
        let starts = starts(data);
        let stopped = starts
            .iter()
            .any(|start| *start <= same && endless(&passed[*start..]));
        assert!(stopped || passed == data, "stopped amid a frame");
        assert!(
            control(data) > LIMIT as usize,
            "it sent no more than it may"
        );
    }
});

fn read(data: &[u8], size: usize, limit: u32) -> (Vec<u8>, Option<Ended>) {
    let wire = Wire::new(data, size);
    let (mut frames, calm) = Frames::new(wire, Whose::Client, limit, Duration::MAX);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut passed = Vec::new();
    loop {
        let mut buf = [0; 512];
        let mut buf = ReadBuf::new(&mut buf);
        let read = Pin::new(&mut frames).poll_read(&mut cx, &mut buf);
        assert!(matches!(read, Poll::Ready(Ok(()))), "{read:?}");
        if buf.filled().is_empty() {
            return (passed, calm.ended());
        }
        passed.extend_from_slice(buf.filled());
    }
}

/// Where frames begin.
fn starts(data: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = PREFACE;
    while let Some([a, b, c]) = data.get(at..at + 3) {
        starts.push(at);
        at += HEAD + u32::from_be_bytes([0, *a, *b, *c]) as usize;
    }
    // Where the next one would.
    starts.push(at);
    starts
}

/// Frames that are neither heads nor bodies.
fn control(data: &[u8]) -> usize {
    let kinds = starts(data)
        .into_iter()
        .filter_map(|start| data.get(start + 3));
    kinds.filter(|kind| ![0, 1, 9].contains(*kind)).count()
}

/// Whether this is one HEADERS frame, and then nothing but CONTINUATION frames, all of them empty and none the last.
fn endless(frames: &[u8]) -> bool {
    let mut kinds = frames.chunks(HEAD).map(|head| {
        (
            head[3..].first().copied(),
            head.len() == HEAD && head[4] & 4 == 0,
        )
    });
    kinds.next() == Some((Some(1), true))
        && kinds.len() > 100
        && kinds.all(|kind| kind == (Some(9), true))
}
