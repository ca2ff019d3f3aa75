//! Trailers with pseudo-header fields, which make a request malformed (RFC 9113, 8.1).
//!
//! h2 throws these fields away and serves the request. Here the mark that the stream ends is taken off their frame: h2 takes
//! trailers without it for what they are then, malformed, and resets the stream. A field that is written as no more than a
//! number of the dynamic table is not looked up, nor one that another read brings: h2 throws it away all the same.

use super::refusals::{after_text, integer};
use super::scan::{END_STREAM, Frame, HEAD, PADDED, PRIORITY};

/// The last pseudo-header field of the static table (RFC 7541, appendix A).
const LAST_PSEUDO: u32 = 14;

/// Looks at the trailers with whose frame these bytes begin, and has h2 refuse them if there is reason to.
#[cold]
pub(super) fn spoil(frame: Frame, bytes: &mut [u8]) {
    let end = bytes.len().min(HEAD + frame.length);
    if block(frame, &bytes[HEAD..end]).is_some_and(has_pseudo) {
        // The flags' place.
        bytes[4] &= !END_STREAM;
    }
}

/// The fields of a frame, as far as they are at hand.
fn block(frame: Frame, payload: &[u8]) -> Option<&[u8]> {
    let padded = frame.flags & PADDED != 0;
    let padding = if padded { *payload.first()? } else { 0 };
    let before = usize::from(padded) + if frame.flags & PRIORITY == 0 { 0 } else { 5 };
    let end = frame.length.checked_sub(padding.into())?.min(payload.len());
    payload.get(before..end)
}

fn has_pseudo(mut fields: &[u8]) -> bool {
    while let Some((pseudo, rest)) = field(fields) {
        if pseudo {
            return true;
        }
        fields = rest;
    }
    false
}

/// Whether the first of these fields is a pseudo-header field, and what comes after it.
fn field(bytes: &[u8]) -> Option<(bool, &[u8])> {
    let (bits, indexed) = match *bytes.first()? {
        0x80.. => (7, true),
        0x40.. => (6, false),
        0x20.. => return Some((false, integer(bytes, 5)?.1)),
        _ => (4, false),
    };
    let (index, rest) = integer(bytes, bits)?;
    match (indexed, index) {
        (_, 1..=LAST_PSEUDO) => Some((true, rest)),
        (true, _) => Some((false, rest)),
        (false, 0) => {
            let pseudo = begins_with_colon(rest);
            Some((pseudo, after_text(after_text(rest)?)?))
        }
        (false, _) => Some((false, after_text(rest)?)),
    }
}

/// Whether a text does: as it is, or in the seven bits of Huffman's code (RFC 7541, appendix B).
fn begins_with_colon(text: &[u8]) -> bool {
    let first = integer(text, 7).and_then(|(length, rest)| rest.first().filter(|_| length > 0));
    let coded = text.first().is_some_and(|length| length & 0x80 != 0);
    match first {
        Some(byte) if coded => byte >> 1 == 0b101_1100,
        Some(byte) => *byte == b':',
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::{END_HEADERS, HEADERS};
    use super::*;

    /// Whether trailers with these fields are spoilt.
    fn spoilt(flags: u8, payload: &[u8]) -> bool {
        let frame = Frame {
            kind: HEADERS,
            flags: END_STREAM | END_HEADERS | flags,
            stream: 1,
            length: payload.len(),
        };
        let mut bytes = vec![0; HEAD];
        bytes[4] = frame.flags;
        bytes.extend_from_slice(payload);
        spoil(frame, &mut bytes);
        assert_eq!(&bytes[HEAD..], payload);
        bytes[4] & END_STREAM == 0
    }

    #[test]
    fn pseudo_header_fields_are_found_however_they_are_written() {
        for (name, flags, payload, found) in [
            ("a number", 0, &b"\x82"[..], true),
            ("a name of the table", 0, b"\x04\x02/x", true),
            ("one to be remembered", 0, b"\x41\x01a", true),
            ("a name in letters", 0, b"\0\x05:path\x02/x", true),
            (
                "a name in Huffman's code",
                0,
                b"\0\x84\xb9\x58\xd3\x3f\x02/x",
                true,
            ),
            ("after another", 0, b"\0\x01x\x01y\x84", true),
            ("after a resize", 0, b"\x20\x84", true),
            ("padded", PADDED, b"\x01\x84\0", true),
            ("with a priority", PRIORITY, b"\0\0\0\0\x01\x84", true),
            ("none", 0, b"", false),
            ("fields", 0, b"\0\x01x\x01:\x40\x01y\x01z\xbe", false),
            ("a field of the table", 0, b"\x0f\x01\x01a\x90", false),
            ("only in the padding", PADDED, b"\x01\x90\x84", false),
            (
                "only in the priority",
                PRIORITY,
                b"\x84\x84\x84\x84\x84\x90",
                false,
            ),
            ("an empty name", 0, b"\0\0\x01:", false),
            ("cut off", 0, b"\0\x7f", false),
            ("more padding than there is", PADDED, b"\x09\x84", false),
        ] {
            assert_eq!(spoilt(flags, payload), found, "{name}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let length = random.usize(..12);
            let payload: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                .take(length)
                .collect();
            spoilt(random.u8(..) & (PADDED | PRIORITY), &payload);
        }
    }
}
