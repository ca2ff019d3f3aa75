//! Heads of requests that h2 refuses by itself.
//!
//! It answers one that is larger than it may be with 431 and tells nobody else. Its answer is the only one that is a status
//! and nothing more, so it is found among the heads that are written. All that this looks at is their first byte, until a
//! connection has seen that status: from then on it follows how HPACK names it.

use super::scan::{END_STREAM, Frame, PADDED};

/// `:status`, with a value that is not in the table yet.
pub(super) const STATUS: u8 = 0x48;
/// `:status: 431` in full.
const TOO_LARGE: &[u8] = &[STATUS, 0x83, 0x69, 0x90, 0xff];
/// What the newest entry of the dynamic table is called.
const NEWEST: u32 = 62;

/// Follows one connection's heads.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Entries that have come to the table since `:status: 431`, if that is there.
    since: Option<u32>,
}

/// How a field is written.
enum Field {
    Indexed(u32),
    /// It comes to the table.
    Added,
    NotAdded,
    /// None: the table gets another size.
    Resize,
}

impl Refusals {
    /// Whether every head has to be looked at.
    #[inline]
    pub(super) fn follow(&self) -> bool {
        self.since.is_some()
    }

    /// Looks at a head, or trailers, with which these bytes begin. Whether it is h2's own answer.
    #[cold]
    pub(super) fn is_one(&mut self, frame: Frame, bytes: &[u8]) -> bool {
        let whole = frame.leaves_open().is_none() && frame.flags & PADDED == 0;
        let block = bytes.get(..frame.length).filter(|_| whole);
        let told = block.and_then(|block| self.read(block));
        if told.is_none() {
            // The next one that is written in full is found again.
            self.since = None;
        }
        told == Some(true) && frame.flags & END_STREAM != 0
    }

    /// Whether 431 is all that it says; `None`: it makes no sense.
    fn read(&mut self, block: &[u8]) -> Option<bool> {
        let (mut rest, mut fields, mut told) = (block, 0, false);
        while !rest.is_empty() {
            let (field, left) = Field::read(rest)?;
            match field {
                Field::Indexed(index) => told |= self.since.is_some_and(|it| NEWEST + it == index),
                Field::Added if rest.starts_with(TOO_LARGE) => {
                    self.since = Some(0);
                    told = true;
                }
                Field::Added => self.since = self.since.map(|since| since.saturating_add(1)),
                Field::NotAdded => {}
                Field::Resize => fields -= 1,
            }
            fields += 1;
            rest = left;
        }
        Some(told && fields == 1)
    }
}

impl Field {
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let first = *bytes.first()?;
        if first & 0x80 != 0 {
            let (index, rest) = integer(bytes, 7)?;
            return Some((Self::Indexed(index), rest));
        }
        if first & 0xe0 == 0x20 {
            let (_, rest) = integer(bytes, 5)?;
            return Some((Self::Resize, rest));
        }
        let added = first & 0x40 != 0;
        let (name, rest) = integer(bytes, if added { 6 } else { 4 })?;
        let rest = if name == 0 { after_text(rest)? } else { rest };
        let field = if added { Self::Added } else { Self::NotAdded };
        Some((field, after_text(rest)?))
    }
}

/// An integer in the last bits of a byte and perhaps in bytes after it (RFC 7541, 5.1).
pub(super) fn integer(bytes: &[u8], bits: u32) -> Option<(u32, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let most = (1 << bits) - 1;
    let mut value = u32::from(*first) & most;
    if value < most {
        return Some((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (next, left) = rest.split_first()?;
        rest = left;
        value += (u32::from(*next) & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

pub(super) fn after_text(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = integer(bytes, 7)?;
    rest.get(usize::try_from(length).ok()?..)
}

#[cfg(test)]
mod tests {
    use super::super::scan::{END_HEADERS, HEADERS};
    use super::*;

    /// Whether each of these heads is found to be h2's own answer.
    fn found(heads: &[(u8, &[u8])]) -> Vec<bool> {
        let mut refusals = Refusals::default();
        let looked_at = heads.iter().map(|(flags, block)| {
            let frame = Frame {
                kind: HEADERS,
                flags: flags | END_HEADERS,
                stream: 1,
                length: block.len(),
            };
            let looks = refusals.follow() || block.first() == Some(&STATUS);
            looks && refusals.is_one(frame, block)
        });
        looked_at.collect()
    }

    #[test]
    fn an_answer_that_is_nothing_but_431_is_found_however_it_is_written() {
        let date: &[u8] = b"\x40\x04date\x05today";
        let with_date = [TOO_LARGE, date].concat();
        let resized = [&[0x3f, 0xe1, 0x1f], TOO_LARGE].concat();
        let mut many = vec![(0, date); 66];
        many.insert(0, (1, TOO_LARGE));
        many.push((1, &[0xff, 1][..]));
        assert_eq!(found(&many).iter().filter(|it| **it).count(), 2);
        for (heads, expected) in [
            (&[(1, TOO_LARGE), (1, &[0xbe])][..], &[true, true][..]),
            (&[(1, &with_date), (1, &[0xbf])], &[false, true]),
            (&[(1, &with_date), (1, &[0xbe])], &[false, false]),
            (
                &[(1, TOO_LARGE), (0, date), (1, &[0xbf])],
                &[true, false, true],
            ),
            (
                &[(1, TOO_LARGE), (0, date), (1, &[0xbe])],
                &[true, false, false],
            ),
            (&[(1, TOO_LARGE), (1, &[0xbe, 0xbe])], &[true, false]),
            (&[(0, TOO_LARGE)], &[false]),
            (&[(1, &[STATUS, 0x82, 0x10, 0x03])], &[false]),
            (&[(1, &[0xbe]), (1, &[0x88])], &[false, false]),
            (
                &[(1, TOO_LARGE), (0, &[0x40, 0x7f]), (1, &[0xbe])],
                &[true, false, false],
            ),
            (&[(1, TOO_LARGE), (1, &resized)], &[true, true]),
        ] {
            assert_eq!(found(heads), expected, "{heads:?}");
        }
    }

    #[test]
    fn nothing_that_is_written_makes_it_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut block = TOO_LARGE.to_vec();
            block.extend(std::iter::repeat_with(|| random.u8(..)).take(6));
            found(&[(1, TOO_LARGE), (1, &block[random.usize(..11)..])]);
        }
    }
}
