//! What travels: an encoded resource and its version.
//!
//! A version is a hash of the bytes, so replicas and restarts agree on it.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::google::protobuf::Any;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Name of a resource.
pub(crate) type Name = Arc<str>;

/// Version of one resource: a hash of its encoded bytes, sixteen hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Version(u64);

impl Version {
    /// The version of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }

    /// The version of a resource of this name, as a part of the version of several.
    pub(crate) fn under(self, name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), self.0))
    }
}

/// The version of several resources, in whatever order.
impl Sum for Version {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        Self(parts.fold(0, |sum, part| sum.wrapping_add(part.0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A resource as it goes onto the wire, shared by every stream that wants it.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Type URL of the message.
    type_url: &'static str,
    /// The message.
    value: Bytes,
    /// Version of the message.
    pub(crate) version: Version,
}

impl Encoded {
    /// Takes over an encoded message and hashes it.
    pub(crate) fn new(kind: ResourceType, value: Bytes) -> Self {
        Self {
            type_url: kind.type_url(),
            version: Version::of(&value),
            value,
        }
    }

    /// The message for one response.
    pub(crate) fn to_any(&self) -> Any {
        Any {
            type_url: self.type_url.to_owned(),
            value: self.value.to_vec(),
        }
    }

    /// Bytes that it takes in a response, name and framing not counted.
    pub(crate) fn size(&self) -> usize {
        self.value.len() + self.type_url.len()
    }
}
