//! How much a message may become when it is read: two bytes on the wire may be a kilobyte in memory.
//!
//! Whoever sends a message decides how many parts it has, and each part is a struct once it is read, however empty. So parts
//! are counted before, without knowing what they mean: what reads as a message counts as one, all else as a text. What reads
//! as a message by chance makes the count larger, never smaller.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What a message in another one counts for; a text counts for one.
const MESSAGE: usize = 16;
/// Messages in messages that are looked into: prost reads no more.
const DEPTH: usize = 100;

/// Whether the parts of a message count for no more than `most`. What lies behind all of `opaque`, field in field, is a text
/// here: whoever reads it counts it then.
#[must_use]
pub fn fits(message: &[u8], opaque: &[u32], most: usize) -> bool {
    let mut count = Count { left: most };
    // What cannot be read makes nothing but an error.
    count.take(message, opaque, DEPTH) != Read::TooMuch
}

/// What has been left of a count.
struct Count {
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Message,
    /// Not a message, after all.
    Text,
    TooMuch,
}

impl Count {
    /// Counts the parts of a message.
    fn take(&mut self, mut message: &[u8], opaque: &[u32], depth: usize) -> Read {
        while !message.is_empty() {
            let Some((field, part)) = next(&mut message) else {
                return Read::Text;
            };
            let Some(part) = part else { continue };
            // Groups and numbers are nothing that grows.
            let behind = match opaque.split_first() {
                Some((first, behind)) if *first == field => behind,
                _ => &[],
            };
            let is_opaque = opaque.len() == 1 && opaque[0] == field;
            if self.part(part, behind, is_opaque, depth) == Read::TooMuch {
                return Read::TooMuch;
            }
        }
        Read::Message
    }

    /// Counts a part, and its parts.
    fn part(&mut self, part: &[u8], behind: &[u32], is_opaque: bool, depth: usize) -> Read {
        let before = self.left;
        let read = if is_opaque || depth == 0 {
            Read::Text
        } else {
            self.take(part, behind, depth - 1)
        };
        match read {
            Read::Message => self.pay(MESSAGE),
            Read::Text => {
                self.left = before;
                self.pay(1)
            }
            Read::TooMuch => Read::TooMuch,
        }
    }

    fn pay(&mut self, cost: usize) -> Read {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Read::Message
            }
            None => Read::TooMuch,
        }
    }
}

/// The next field of a message, and its content if that has a length; `None` if there is none.
fn next<'m>(message: &mut &'m [u8]) -> Option<(u32, Option<&'m [u8]>)> {
    let (field, kind) = decode_key(message).ok()?;
    let skipped = match kind {
        WireType::Varint => {
            decode_varint(message).ok()?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(message).ok()?).ok()?;
            let (part, rest) = message.split_at_checked(length)?;
            *message = rest;
            return Some((field, Some(part)));
        }
        // Nobody sends groups any more, and what is in one is skipped.
        WireType::StartGroup | WireType::EndGroup => 0,
    };
    *message = message.get(skipped..)?;
    Some((field, None))
}

/// Protobuf messages as gRPC carries them, of which each that is read has no more than so many parts.
#[derive(Debug)]
pub struct Bounded<E, D> {
    opaque: &'static [u32],
    most: usize,
    messages: PhantomData<fn(E) -> D>,
}

impl<E, D> Bounded<E, D> {
    /// As [`fits`] counts them.
    #[must_use]
    pub fn new(opaque: &'static [u32], most: usize) -> Self {
        Self {
            opaque,
            most,
            messages: PhantomData,
        }
    }
}

impl<E, D> Codec for Bounded<E, D>
where
    E: Message + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new(self.opaque, self.most)
    }

    fn decoder(&mut self) -> Self {
        Self::new(self.opaque, self.most)
    }
}

impl<E: Message, D> Encoder for Bounded<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = message.encode(to);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl<E, D: Message + Default> Decoder for Bounded<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        if !fits(&message, self.opaque, self.most) {
            return Err(Status::out_of_range(
                "a message has more parts than may be read: send less at a time",
            ));
        }
        let read = D::decode(message);
        read.map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
    use crate::google::protobuf::Any;

    /// Response, resource, its content.
    const CONTENT: &[u32] = &[2, 2, 2];

    /// What it counts for.
    fn count(message: &[u8], opaque: &[u32]) -> usize {
        let (mut fits_not, mut least) = (0, 1_usize << 40);
        while fits_not + 1 < least {
            let middle = fits_not.midpoint(least);
            if fits(message, opaque, middle) {
                least = middle;
            } else {
                fits_not = middle;
            }
        }
        least
    }

    #[test]
    fn empty_messages_count_and_what_is_written_short_is_counted_whole() {
        let empty = [0x12, 0].repeat(1000);
        assert_eq!(count(&empty, &[]), 1000 * MESSAGE);
        let inside = [&[0x12, 20][..], &[0x12, 0].repeat(10)].concat();
        assert_eq!(count(&inside, &[]), 11 * MESSAGE);
        let deep = (0..10_000).fold(Vec::new(), |inner: Vec<u8>, _| {
            let mut outer = vec![0x12];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.extend(inner);
            outer
        });
        assert_eq!(count(&deep, &[]), DEPTH * MESSAGE + 1);
        // Texts, numbers, and what breaks off.
        assert_eq!(
            count(&[0x0a, 1, b'/', 0x10, 7, 0x0a, 3, b'w', b'e', b'b'], &[]),
            2
        );
        assert!(fits(&[0x12, 9, 0], &[], 0) && fits(&[0xff; 64], &[], 0));
    }

    #[test]
    fn what_is_read_later_is_counted_then() {
        let resource = |bytes: usize| Resource {
            name: "a".to_owned(),
            resource: Some(Any {
                type_url: "b".to_owned(),
                value: [0x12, 0].repeat(bytes / 2),
            }),
            ..Resource::default()
        };
        let response = |bytes| DeltaDiscoveryResponse {
            resources: vec![resource(bytes), resource(2)],
            ..DeltaDiscoveryResponse::default()
        };
        let [small, large] = [2, 20_000].map(|bytes| response(bytes).encode_to_vec());
        assert_eq!(count(&small, CONTENT), count(&large, CONTENT));
        assert!(count(&large, &[]) > 10_000 * MESSAGE);
    }
}
