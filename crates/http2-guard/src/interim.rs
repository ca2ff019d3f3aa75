//! Interim answers (1xx), of which a server could send as many as it likes: each wakes whoever waits for the answer.
//!
//! What the status of a head is only HPACK's table knows, unless it is one of those that need a byte. So all others are
//! counted, stream by stream, until a body or the end says that the answer was there. A stream that has too many is reset:
//! h2 is given a frame behind the last of them that is a fault of this stream alone, and resets it. What the server has sent
//! on it by then still comes, and is thrown away; one that never stops loses its connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tulle_runtime::limits::InterimAllowance;

use super::scan::{END_STREAM, Frame, HEAD, PADDED, PRIORITY};

/// Streams that are remembered. More than a connection carries: what is left are late heads of streams that were reset.
const STREAMS: usize = 4_096;
/// Bytes of such heads on streams that were reset already: more than fits into the sockets of both ends before a server
/// hears of it.
const LATE: usize = 16 << 20;
/// The kind and the payload of a frame that makes a stream depend on itself (RFC 7540, 5.3.1).
const PRIORITY_FRAME: u8 = 2;
const PRIORITY_LENGTH: u8 = 5;

/// Heads of answers that may have been interim ones, by their stream.
#[derive(Debug, Default)]
pub(super) struct Interim {
    streams: HashMap<u32, Heads>,
    late: usize,
}

/// What has come on a stream.
#[derive(Debug)]
enum Heads {
    /// One, which may be that of the answer itself, and perhaps more.
    Left(InterimAllowance),
    /// Too many: it was reset.
    Reset,
}

/// What is to be done about a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// Its stream is reset.
    Reset,
    /// The connection ends.
    End,
}

impl Interim {
    /// A server has sent a head that begins so.
    #[inline]
    pub(super) fn received(&mut self, frame: Frame, first: Option<&u8>) -> Verdict {
        // 200, 204, 206, 304, 400, 404 or 500, in HPACK's static table.
        let told = frame.flags & (PADDED | PRIORITY) == 0 && matches!(first, Some(0x88..=0x8e));
        if told || frame.flags & END_STREAM != 0 {
            self.forget(frame.stream);
            return Verdict::Fine;
        }
        self.count(frame)
    }

    /// A stream has its answer, or has ended.
    #[inline]
    pub(super) fn forget(&mut self, stream: u32) {
        if !self.streams.is_empty() {
            self.streams.remove(&stream);
        }
    }

    /// A stream is reset from here: of what still comes on it, nothing is interim.
    #[inline]
    pub(super) fn gave_up(&mut self, stream: u32) {
        if let Some(heads) = self.streams.get_mut(&stream) {
            *heads = Heads::Reset;
        }
    }

    fn count(&mut self, frame: Frame) -> Verdict {
        if self.streams.len() >= STREAMS {
            self.streams.clear();
        }
        match self.streams.entry(frame.stream) {
            Entry::Vacant(place) => {
                place.insert(Heads::Left(InterimAllowance::default()));
                Verdict::Fine
            }
            Entry::Occupied(mut heads) => {
                if let Heads::Left(left) = heads.get_mut() {
                    if left.take() {
                        return Verdict::Fine;
                    }
                    heads.insert(Heads::Reset);
                    return Verdict::Reset;
                }
                if self.late >= LATE {
                    return Verdict::End;
                }
                self.late += HEAD + frame.length;
                Verdict::Fine
            }
        }
    }
}

/// A frame for which h2 resets a stream, and does nothing else.
pub(super) fn fault(stream: u32) -> [u8; 14] {
    let [a, b, c, d] = stream.to_be_bytes();
    let head = [0, 0, PRIORITY_LENGTH, PRIORITY_FRAME, 0, a, b, c, d];
    let mut frame = [0; 14];
    frame[..head.len()].copy_from_slice(&head);
    frame[head.len()..][..4].copy_from_slice(&[a, b, c, d]);
    frame
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tulle_runtime::limits::{INTERIM_EVERY, MAX_INTERIM};

    use super::super::scan::{END_HEADERS, HEADERS};
    use super::*;

    /// One is that of the answer itself.
    const MOST: u32 = MAX_INTERIM + 1;

    fn head(stream: u32, flags: u8) -> Frame {
        Frame {
            kind: HEADERS,
            flags: END_HEADERS | flags,
            stream,
            length: 5,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_so_many_whatever_others_have() {
        let mut interim = Interim::default();
        for round in 0..MOST {
            for stream in [1, 3, 5] {
                let verdict = interim.received(head(stream, 0), Some(&8));
                assert_eq!(verdict, Verdict::Fine, "{round}");
            }
        }
        let told = interim.received(head(1, 0), Some(&0x88));
        assert_eq!(told, Verdict::Fine, "that is no interim one");
        let last = interim.received(head(3, END_STREAM), Some(&0x40));
        assert_eq!(last, Verdict::Fine, "nor is that");
        assert_eq!(interim.received(head(5, 0), Some(&8)), Verdict::Reset);
        assert_eq!(interim.received(head(5, 0), None), Verdict::Fine, "late");
        interim.received(head(7, PADDED), Some(&0x88));
        assert!(interim.streams.contains_key(&7), "it may have been any");
    }

    #[tokio::test(start_paused = true)]
    async fn more_may_come_in_time() {
        let mut interim = Interim::default();
        for _ in 0..1_000 {
            assert_eq!(interim.received(head(1, 0), Some(&8)), Verdict::Fine);
            advance(INTERIM_EVERY).await;
        }
        let mut verdicts = (0..MOST).map(|_| interim.received(head(1, 0), Some(&8)));
        assert!(verdicts.by_ref().take(16).all(|it| it == Verdict::Fine));
        assert_eq!(verdicts.next(), Some(Verdict::Reset));
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_and_on_after_that_loses_the_connection() {
        let mut interim = Interim::default();
        for _ in 0..MOST {
            interim.received(head(1, 0), Some(&8));
        }
        assert_eq!(interim.received(head(1, 0), Some(&8)), Verdict::Reset);
        // One that its client has given up.
        interim.received(head(3, 0), Some(&8));
        interim.gave_up(3);
        interim.gave_up(5);
        assert!(!interim.streams.contains_key(&5), "there was nothing on it");
        for late in 0..LATE.div_ceil(HEAD + 5) {
            let stream = if late % 2 == 0 { 1 } else { 3 };
            assert_eq!(interim.received(head(stream, 0), Some(&8)), Verdict::Fine);
        }
        assert_eq!(interim.received(head(7, 0), Some(&8)), Verdict::Fine);
        assert_eq!(interim.received(head(3, 0), Some(&8)), Verdict::End);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_streams_that_have_their_answer_and_little_of_others() {
        let mut interim = Interim::default();
        for stream in 0..100_000 {
            assert_eq!(interim.received(head(stream, 0), Some(&8)), Verdict::Fine);
            assert!(interim.streams.len() <= STREAMS);
        }
        interim.streams.clear();
        interim.received(head(1, 0), Some(&8));
        interim.forget(1);
        assert!(interim.streams.is_empty());
    }
}
