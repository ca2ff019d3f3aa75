//! Interim answers (1xx), of which a server could send as many as it likes: each wakes whoever waits for the answer.
//!
//! What the status of a head is only HPACK's table knows, unless it is one of those that need a byte. So all others are
//! counted, stream by stream, until a body or the end says that the answer was there.

use std::collections::HashMap;

use tulle_runtime::limits::MAX_INTERIM;

use super::scan::{END_STREAM, Frame, PADDED, PRIORITY};

/// Heads of a stream that may be counted: one is that of the answer itself.
const MOST: u32 = MAX_INTERIM + 1;
/// Streams that are remembered. More than a connection carries: what is left are late heads of streams that were reset.
const STREAMS: usize = 4_096;

/// Heads of answers that may have been interim ones, by their stream.
#[derive(Debug, Default)]
pub(super) struct Interim(HashMap<u32, u32>);

impl Interim {
    /// A server has sent a head that begins so. False: it has sent too many of them.
    #[inline]
    pub(super) fn received(&mut self, frame: Frame, first: Option<&u8>) -> bool {
        // 200, 204, 206, 304, 400, 404 or 500, in HPACK's static table.
        let told = frame.flags & (PADDED | PRIORITY) == 0 && matches!(first, Some(0x88..=0x8e));
        if told || frame.flags & END_STREAM != 0 {
            self.forget(frame.stream);
            return true;
        }
        self.count(frame.stream)
    }

    /// A stream has its answer, or has ended.
    #[inline]
    pub(super) fn forget(&mut self, stream: u32) {
        if !self.0.is_empty() {
            self.0.remove(&stream);
        }
    }

    fn count(&mut self, stream: u32) -> bool {
        if self.0.len() >= STREAMS {
            self.0.clear();
        }
        let heads = self.0.entry(stream).or_default();
        *heads += 1;
        *heads <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::{END_HEADERS, HEADERS};
    use super::*;

    fn head(stream: u32, flags: u8) -> Frame {
        Frame {
            kind: HEADERS,
            flags: END_HEADERS | flags,
            stream,
            length: 5,
        }
    }

    #[test]
    fn a_stream_has_so_many_whatever_others_have() {
        let mut interim = Interim::default();
        for round in 0..MOST {
            for stream in [1, 3, 5] {
                assert!(interim.received(head(stream, 0), Some(&8)), "{round}");
            }
        }
        assert!(
            interim.received(head(1, 0), Some(&0x88)),
            "that is no interim one"
        );
        assert!(
            interim.received(head(3, END_STREAM), Some(&0x40)),
            "nor is that"
        );
        assert!(!interim.received(head(5, 0), Some(&8)));
        assert!(!interim.received(head(5, 0), None));
        assert!(
            interim.received(head(7, PADDED), Some(&0x88)),
            "the first one"
        );
        assert_eq!(interim.0.get(&7), Some(&1), "it may have been any");
    }

    #[test]
    fn nothing_is_kept_of_streams_that_have_their_answer_and_little_of_others() {
        let mut interim = Interim::default();
        for stream in 0..100_000 {
            assert!(interim.received(head(stream, 0), Some(&8)));
            assert!(interim.0.len() <= STREAMS);
        }
        interim.0.clear();
        interim.received(head(1, 0), Some(&8));
        interim.forget(1);
        assert!(interim.0.is_empty());
    }
}
