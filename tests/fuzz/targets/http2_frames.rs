//! HTTP/2 frames: the layer under h2.
//!
//! The input is what a client sends, its preface included; what follows the preface is what a server sends. While a peer is
//! within limits, the layer changes nothing but the end of trailers that are none, however the bytes come; behind one interim
//! answer too many, which is counted here as well, it puts one frame of its own in. Who sends more control frames than its work is
//! worth, or more of one head than it may, both of which are counted here once more, is stopped at the frame that is one too
//! many, or after it where its head is in h2's hands already, and what h2 gets from then on is a head that never ends. What h2
//! writes leaves as it is.

#![no_main]

use std::collections::HashMap;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tulle_fuzz::input::seed;
use tulle_fuzz::wire::Wire;
use tulle_proxy::io::{Ended, FrameBounds, Frames, Whose};
use tulle_runtime::limits::MAX_INTERIM;

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
/// A limit of control frames.
const LIMIT: u32 = 4;
/// Bytes that a head may be, and four times as many must not be.
const HEADER_LIST: u32 = 32;
/// In less than this, time earns nothing at this limit.
const NO_TIME: Duration = Duration::from_millis(2_400);
/// Most bytes that are read at once.
const BUFFER: usize = 512;
const BOUNDS: FrameBounds = FrameBounds {
    control_frames: LIMIT,
    header_list: HEADER_LIST,
    patience: Duration::MAX,
};
/// What a head that never ends has at least.
const ENDLESS: usize = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
/// Of a head: its first byte is no field.
const PADDED_OR_PRIORITY: u8 = 0x28;
/// Heads of a stream: the answer has one too.
const MOST: u32 = MAX_INTERIM + 1;

tulle_fuzz::target!(|data: &[u8]| {
    let cut = 1 + (seed(data) % 61) as usize;
    for size in [1, cut, usize::MAX] {
        reads(data, Whose::Client, size);
        if let Some(data) = data.get(PREFACE..) {
            reads(data, Whose::Server, size);
            writes(data, size);
        }
    }
});

/// A frame.
#[derive(Clone, Copy, Debug)]
struct Frame {
    start: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    length: usize,
}

impl Frame {
    fn end(self) -> usize {
        self.start + HEAD + self.length
    }

    fn is_control(self) -> bool {
        ![DATA, HEADERS, CONTINUATION].contains(&self.kind)
    }

    fn leaves_open(self) -> bool {
        !self.is_control() && self.kind != DATA && self.flags & 4 == 0
    }

    /// Control frames that its peer may send, or get, for it.
    fn worth(self) -> usize {
        match self.kind {
            HEADERS => 4,
            DATA if self.length > 0 => 3 + self.length / 1_024,
            _ => 0,
        }
    }
}

fn reads(data: &[u8], whose: Whose, size: usize) {
    let all = FrameBounds {
        control_frames: u32::MAX,
        header_list: u32::MAX >> 4,
        patience: Duration::MAX,
    };
    let (mut passed, ended, _) = read(data, whose, size, all);
    let begin = if whose == Whose::Client { PREFACE } else { 0 };
    let frames = frames(data, begin);
    let step = size.min(BUFFER);
    let faults = match whose {
        Whose::Client => Vec::new(),
        Whose::Server => interim(data, &frames, step),
    };
    take_out(&mut passed, &faults);
    restore(&mut passed, data, &frames);
    assert_eq!((passed.as_slice(), ended), (data, None), "pieces of {size}");
    let (mut passed, ended, took) = read(data, whose, size, BOUNDS);
    if took > NO_TIME {
        return;
    }
    let too_many = too_many(&frames);
    let whole = too_many.map_or(frames.len(), |(at, _)| at);
    let last = frames.get(whole).map_or(data.len(), |frame| frame.start);
    let put_in = faults.iter().take_while(|(at, _)| *at <= last).count();
    take_out(&mut passed, &faults[..put_in]);
    // Behind that is what a peer never sent.
    restore(&mut passed, data, &frames[..whole]);
    let Some((at, why)) = too_many else {
        assert_eq!((passed.as_slice(), ended), (data, None), "pieces of {size}");
        return;
    };
    assert_eq!(ended, Some(why), "pieces of {size}");
    let last = frames[at];
    let cut = last.start / step != (last.start + HEAD - 1) / step;
    let before = at.checked_sub(1).map(|before| frames[before]);
    let (stop, open) = if cut {
        (last.end(), Some(last))
    } else {
        (last.start, before)
    };
    if stop > data.len() {
        assert_eq!(passed, data, "pieces of {size}: nothing follows");
        return;
    }
    assert_eq!(passed[..stop], data[..stop], "pieces of {size}");
    let open = open.filter(|frame| frame.leaves_open());
    assert!(
        endless(&passed[stop..], open),
        "pieces of {size}: not stopped"
    );
}

/// Which streams have one interim answer too many, and where what is put in for that has its place.
fn interim(data: &[u8], frames: &[Frame], step: usize) -> Vec<(usize, [u8; 4])> {
    let mut heads = HashMap::<[u8; 4], u32>::new();
    let (mut faults, mut waits) = (Vec::new(), None);
    for frame in frames {
        let first = frame.start + HEAD;
        let known = (first - 1) / step == first / step && frame.flags & PADDED_OR_PRIORITY == 0;
        let told = known && matches!(data.get(first), Some(0x88..=0x8e));
        match frame.kind {
            HEADERS if !told && frame.flags & END_STREAM == 0 => {
                let heads = heads.entry(frame.stream).or_default();
                *heads += 1;
                if *heads == MOST + 1 {
                    waits = Some(frame.stream);
                }
            }
            HEADERS | DATA | RST_STREAM => drop(heads.remove(&frame.stream)),
            _ => {}
        }
        if !frame.leaves_open() && frame.end() <= data.len() {
            faults.extend(waits.take().map(|stream| (frame.end(), stream)));
        }
    }
    faults
}

/// Takes out what was put in there: streams that depend on themselves.
fn take_out(passed: &mut Vec<u8>, faults: &[(usize, [u8; 4])]) {
    for (at, [a, b, c, d]) in faults.iter().copied() {
        let fault = [0, 0, 5, 2, 0, a, b, c, d, a, b, c, d, 0];
        assert_eq!(
            passed.get(at..at + fault.len()),
            Some(&fault[..]),
            "at {at}"
        );
        passed.drain(at..at + fault.len());
    }
}

/// Gives trailers back the end of their stream, which those that have a pseudo-header lose, so that h2 refuses them.
fn restore(passed: &mut [u8], data: &[u8], frames: &[Frame]) {
    for (at, frame) in frames.iter().enumerate() {
        // A stream that could be new has a higher number than all before it.
        let begun = |it: &Frame| it.kind == HEADERS && it.stream >= frame.stream;
        // Nor can there be one of that number.
        let begins = frame.stream != [0; 4] && !frames[..at].iter().any(begun);
        let trailers = frame.kind == HEADERS && !begins;
        let flags = frame.start + 4;
        if trailers && passed.get(flags).is_some_and(|it| it | 1 == data[flags]) {
            passed[flags] = data[flags];
        }
    }
}

fn read(
    data: &[u8],
    whose: Whose,
    size: usize,
    bounds: FrameBounds,
) -> (Vec<u8>, Option<Ended>, Duration) {
    let begun = Instant::now();
    let (mut frames, calm) = Frames::new(Wire::new(data, size), whose, bounds);
    let mut cx = Context::from_waker(Waker::noop());
    let (mut passed, mut turns) = (Vec::new(), 0);
    loop {
        let mut buf = [0; BUFFER];
        let mut buf = ReadBuf::new(&mut buf);
        let read = Pin::new(&mut frames).poll_read(&mut cx, &mut buf);
        if read.is_pending() {
            // So that what has been put in is seen to.
            turns += 1;
            assert!(turns <= data.len(), "nobody would wake it");
            continue;
        }
        assert!(matches!(read, Poll::Ready(Ok(()))), "{read:?}");
        if buf.filled().is_empty() {
            return (passed, calm.ended(), begun.elapsed());
        }
        passed.extend_from_slice(buf.filled());
    }
}

/// All frames whose heads are whole.
fn frames(data: &[u8], begin: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut start = begin;
    while let Some([a, b, c, kind, flags, stream @ ..]) = data.get(start..start + HEAD) {
        let frame = Frame {
            start,
            kind: *kind,
            flags: *flags,
            stream: [stream[0] & 0x7f, stream[1], stream[2], stream[3]],
            length: u32::from_be_bytes([0, *a, *b, *c]) as usize,
        };
        start = frame.end();
        frames.push(frame);
    }
    frames
}

/// Which frame is one too many, and of what. What was earned counts when the limit is reached, and what is not needed then
/// is lost.
fn too_many(frames: &[Frame]) -> Option<(usize, Ended)> {
    let limit = LIMIT as usize;
    let (mut spent, mut earned, mut head) = (0, 0, 0);
    for (at, frame) in frames.iter().enumerate() {
        earned += frame.worth();
        spent += usize::from(frame.is_control());
        if spent > limit {
            spent = spent.saturating_sub(std::mem::take(&mut earned));
            if spent > limit {
                return Some((at, Ended::ControlFrames));
            }
        }
        match frame.kind {
            HEADERS => head = frame.length,
            CONTINUATION => head += frame.length,
            _ => continue,
        }
        if head > 4 * HEADER_LIST as usize {
            return Some((at, Ended::Said("too_many_continuations")));
        }
    }
    None
}

/// Whether this is one HEADERS frame, unless a head is open, and then nothing but CONTINUATION frames, all of them empty
/// and none the last.
fn endless(frames: &[u8], open: Option<Frame>) -> bool {
    let [a, b, c, d] = open.map_or([0, 0, 0, 1], |open| open.stream);
    let piece = |kind| [0, 0, 0, kind, 0, a, b, c, d];
    let (pieces, rest) = frames.as_chunks::<HEAD>();
    let begins = usize::from(open.is_none());
    let Some((first, more)) = pieces.split_at_checked(begins) else {
        return false;
    };
    rest.is_empty()
        && first.iter().all(|frame| *frame == piece(HEADERS))
        && more.len() > ENDLESS
        && more.iter().all(|frame| *frame == piece(CONTINUATION))
}

/// What is written leaves as it is; resets for what a peer did are counted.
fn writes(data: &[u8], size: usize) {
    let wire = Wire::new(&[], 1);
    let output = wire.output.clone();
    let (mut frames, calm) = Frames::new(wire, Whose::Client, BOUNDS);
    let mut cx = Context::from_waker(Waker::noop());
    let mut left = data;
    let mut turns = 0;
    while !left.is_empty() {
        let (first, second) = left.split_at(size.min(left.len()).div_ceil(2));
        let bufs = [first, &second[..first.len().min(second.len())]].map(IoSlice::new);
        let Poll::Ready(Ok(written)) = Pin::new(&mut frames).poll_write_vectored(&mut cx, &bufs)
        else {
            panic!("it always takes some");
        };
        assert!(written > 0, "it always takes some");
        left = &left[written..];
        turns += 1;
        if turns % 7 == 0 {
            flush(&mut frames, &mut cx);
        }
    }
    flush(&mut frames, &mut cx);
    assert_eq!(*output.lock(), data, "pieces of {size}");
    faults(data, calm.faults() as usize);
}

fn flush(frames: &mut Frames<Wire>, cx: &mut Context<'_>) {
    // It waits for one turn, in which more may be written.
    let first = Pin::new(&mut *frames).poll_flush(cx);
    assert!(first.is_pending() || matches!(first, Poll::Ready(Ok(()))));
    let second = Pin::new(frames).poll_flush(cx);
    assert!(matches!(second, Poll::Ready(Ok(()))), "{second:?}");
}

/// A reset whose reason came in a piece of its own is taken for a fault.
fn faults(data: &[u8], counted: usize) {
    let resets = frames(data, 0).into_iter();
    let resets = resets.filter(|frame| frame.kind == RST_STREAM);
    let reason = |frame: &Frame| data.get(frame.start + HEAD..)?.first_chunk::<4>();
    let sure = |frame: &Frame| matches!(reason(frame), Some([0, 0, 0, 1 | 3 | 5]));
    let least = resets.clone().filter(sure).count();
    assert!((least..=resets.count()).contains(&counted), "{counted}");
}
