//! Follows the frames of one direction of an HTTP/2 connection, of which it looks at nothing but heads.

/// Length of a frame's head.
pub(super) const HEAD: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

/// What of a frame's head matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) length: usize,
}

/// Where in a stream of frames its reader is.
#[derive(Debug)]
pub(super) struct Scanner {
    /// Bytes before the next head: of the preface, or of a payload.
    skip: usize,
    /// The beginning of a head that came in pieces.
    head: [u8; HEAD],
    have: usize,
}

impl Scanner {
    /// A stream that begins with so many bytes of something else.
    pub(super) fn after(preface: usize) -> Self {
        Self {
            skip: preface,
            head: [0; HEAD],
            have: 0,
        }
    }

    /// Goes through bytes up to the end of the next head. That frame, and where its head ends; `None`: there is none.
    #[inline]
    pub(super) fn next(&mut self, bytes: &[u8], from: usize) -> Option<(Frame, usize)> {
        let mut at = from + self.skip;
        if at >= bytes.len() {
            self.skip = at - bytes.len();
            return None;
        }
        self.skip = 0;
        let rest = &bytes[at..];
        let frame = if self.have == 0 && rest.len() >= HEAD {
            at += HEAD;
            Frame::parse(rest)
        } else {
            let taken = rest.len().min(HEAD - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
            self.have += taken;
            at += taken;
            if self.have < HEAD {
                return None;
            }
            self.have = 0;
            Frame::parse(&self.head)
        };
        self.skip = frame.length;
        Some((frame, at))
    }

    /// What follows the frame whose head came last comes again from its beginning.
    pub(super) fn forget(&mut self) {
        self.skip = 0;
    }

    /// Where in these bytes, from there on, the frame ends whose head came last, if no other head has begun.
    #[inline]
    pub(super) fn end(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let end = from + self.skip;
        (self.have == 0 && end <= bytes.len()).then_some(end)
    }
}

impl Frame {
    #[inline]
    fn parse(head: &[u8]) -> Self {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        Self {
            kind: head[3],
            flags: head[4],
            // The first bit means nothing.
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            length: length as usize,
        }
    }

    /// Its bytes without the padding that follows them, of which its first byte says how long it is.
    #[inline]
    pub(super) fn unpadded(self, first: u8) -> usize {
        self.length.saturating_sub(1 + usize::from(first))
    }

    /// Whether it has fields of a head.
    #[inline]
    pub(super) fn is_of_a_head(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    /// The stream of a head whose fields go on in the next frame.
    #[inline]
    pub(super) fn leaves_open(self) -> Option<u32> {
        (self.is_of_a_head() && self.flags & END_HEADERS == 0).then_some(self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let head = [0, 0, length, kind, flags, 0, 0, 0, 1];
        [&head[..], &vec![0xff; length.into()]].concat()
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let preface = b"a preface of some length";
        let frames = [
            frame(4, 0, 0),
            frame(1, 5, 200),
            frame(0, 1, 3),
            frame(6, 0, 8),
        ]
        .concat();
        let bytes = [&preface[..], &frames].concat();
        for piece in 1..bytes.len() {
            let mut scanner = Scanner::after(preface.len());
            let mut seen = Vec::new();
            for part in bytes.chunks(piece) {
                let mut at = 0;
                while let Some((frame, next)) = scanner.next(part, at) {
                    seen.push((frame.kind, frame.flags, frame.length));
                    at = next;
                }
            }
            let expected = [(4, 0, 0), (1, 5, 200), (0, 1, 3), (6, 0, 8)];
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_has_three_bytes() {
        let head = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
        let (frame, _) = Scanner::after(0).next(&head, 0).unwrap();
        assert_eq!(frame.length, (1 << 24) - 1);
    }
}
