//! Counts the messages in a gRPC body, which are told apart by their length prefix (gRPC over HTTP/2,
//! "Length-Prefixed-Message").
//!
//! A prefix is a flag byte and a length of four bytes, and data frames may cut it anywhere. Nothing is copied or kept
//! but the length of what is still to skip, so a hostile length costs nothing.

/// Length of a prefix.
const PREFIX: u8 = 5;

/// Follows one direction of a call. A message counts once its prefix is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    count: u64,
    /// Bytes of the current message that are still to come; while its prefix comes in, the length so far.
    left: u32,
    /// Bytes of the next prefix that have come.
    prefix: u8,
    /// What came was no prefix; nothing after it can be told apart.
    lost: bool,
}

impl Messages {
    /// Messages so far.
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }

    /// Takes the next bytes of the body in.
    pub fn note(&mut self, mut data: &[u8]) {
        while !self.lost && !data.is_empty() {
            if self.prefix == 0 && self.left > 0 {
                let skipped = u32::try_from(data.len()).unwrap_or(u32::MAX).min(self.left);
                self.left -= skipped;
                data = &data[skipped as usize..];
                continue;
            }
            let (byte, rest) = (data[0], &data[1..]);
            match self.prefix {
                0 => self.lost = byte > 1,
                _ => self.left = self.left << 8 | u32::from(byte),
            }
            self.prefix += 1;
            if self.prefix == PREFIX {
                self.prefix = 0;
                self.count += 1;
            }
            data = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(5 + length as usize, 0xff);
        bytes
    }

    fn count(frames: &[&[u8]]) -> u64 {
        let mut messages = Messages::default();
        frames.iter().for_each(|frame| messages.note(frame));
        messages.count()
    }

    #[test]
    fn messages_are_counted_however_frames_cut_them() {
        let body = [message(0), message(3), message(70_000), message(0)].concat();
        for size in [1, 2, 4, 5, 7, 16_384, body.len()] {
            let frames: Vec<_> = body.chunks(size).collect();
            assert_eq!(count(&frames), 4, "frames of {size}");
        }
        assert_eq!(count(&[&body[..3]]), 0, "a prefix that is not complete");
        assert_eq!(count(&[&body[..5]]), 1, "an empty message");
    }

    #[test]
    fn a_compressed_message_counts_and_what_is_none_does_not() {
        assert_eq!(count(&[&[1, 0, 0, 0, 1, 7]]), 1);
        let garbage = [message(1), b"no prefix at all, and on it goes".to_vec()].concat();
        assert_eq!(count(&[&garbage]), 1);
        assert_eq!(
            count(&[&[0, 0xff, 0xff, 0xff, 0xff], &[0; 64]]),
            1,
            "a length that never comes"
        );
    }
}
