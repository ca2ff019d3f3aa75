//! Why a resource was refused: which field, what it held, what to do.

use std::fmt::Display;
use std::time::Duration;

use tulle_xds_proto::google::protobuf;
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::resource::UnpackError;

/// Characters of a value that an error repeats.
const MAX_VALUE: usize = 128;
/// Characters of what it advises, which may repeat a pattern.
const MAX_REMEDY: usize = 1024;

/// Why a resource, or a part of it, was refused. Its `Display` goes to the control plane in the NACK.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not the message that they should be.
    #[error("{field}: {source}")]
    Message {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        #[source]
        source: UnpackError,
    },
    /// A field that must be there is not.
    #[error("{field}: missing; {remedy}")]
    Missing {
        /// Path of the field.
        field: String,
        /// What to set.
        remedy: &'static str,
    },
    /// A field holds something that it must not.
    #[error("{field}: {value:?} is not valid; {remedy}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        remedy: String,
    },
    /// A field asks for something that this proxy does not do.
    #[error("{field}: not supported; {remedy}")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// What to use in its place.
        remedy: &'static str,
    },
}

impl DecodeError {
    pub(in crate::xds) fn missing(field: &str, remedy: &'static str) -> Self {
        Self::Missing {
            field: field.to_owned(),
            remedy,
        }
    }

    pub(in crate::xds) fn invalid(field: &str, value: impl Display, remedy: impl Display) -> Self {
        // Both may hold what comes from elsewhere, and go into logs: their first part is enough.
        Self::Invalid {
            field: field.to_owned(),
            value: cut(value, MAX_VALUE),
            remedy: cut(remedy, MAX_REMEDY),
        }
    }

    pub(super) fn unsupported(field: &str, remedy: &'static str) -> Self {
        Self::Unsupported {
            field: field.to_owned(),
            remedy,
        }
    }

    /// Path of the field that is to blame.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Message { field, .. }
            | Self::Missing { field, .. }
            | Self::Invalid { field, .. }
            | Self::Unsupported { field, .. } => field,
        }
    }

    fn under(mut self, parent: impl Display) -> Self {
        let (Self::Message { field, .. }
        | Self::Missing { field, .. }
        | Self::Invalid { field, .. }
        | Self::Unsupported { field, .. }) = &mut self;
        *field = if field.is_empty() {
            parent.to_string()
        } else {
            format!("{parent}.{field}")
        };
        self
    }
}

fn cut(text: impl Display, to: usize) -> String {
    text.to_string().chars().take(to).collect()
}

/// Names the field in which an error occurred.
pub(super) trait At<T> {
    /// Prefixes the path of the error's field.
    fn at(self, field: impl Display) -> Result<T, DecodeError>;
    /// Prefixes it with an element of a list.
    fn at_index(self, field: &str, index: usize) -> Result<T, DecodeError>;
}

impl<T> At<T> for Result<T, DecodeError> {
    fn at(self, field: impl Display) -> Result<T, DecodeError> {
        self.map_err(|error| error.under(field))
    }

    fn at_index(self, field: &str, index: usize) -> Result<T, DecodeError> {
        self.map_err(|error| error.under(format_args!("{field}[{index}]")))
    }
}

/// Reads a message out of an `Any`.
pub(super) fn unpack<M: Message + Name + Default>(any: &protobuf::Any) -> Result<M, DecodeError> {
    let unpacked = tulle_xds_proto::unpack(any);
    unpacked.map_err(|source| DecodeError::Message {
        field: String::new(),
        source,
    })
}

/// Refuses a field that is set although this proxy cannot honour it.
pub(super) fn refuse(set: bool, field: &str, remedy: &'static str) -> Result<(), DecodeError> {
    if set {
        Err(DecodeError::unsupported(field, remedy))
    } else {
        Ok(())
    }
}

/// A resource must carry the name under which it was sent.
pub(super) fn same_name(field: &str, inner: &str, outer: &str) -> Result<(), DecodeError> {
    if inner == outer {
        return Ok(());
    }
    Err(DecodeError::invalid(
        field,
        inner,
        format_args!("it was sent as resource {outer:?}"),
    ))
}

/// A duration that is not negative.
pub(super) fn duration(
    field: &str,
    value: Option<&protobuf::Duration>,
) -> Result<Option<Duration>, DecodeError> {
    let Some(value) = value else { return Ok(None) };
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(value.seconds), u32::try_from(value.nanos))
    else {
        return Err(bad_duration(field, value));
    };
    // `Duration::new` panics when nanoseconds carry over the largest number of seconds.
    if nanos >= 1_000_000_000 || seconds > 315_576_000_000 {
        return Err(bad_duration(field, value));
    }
    Ok(Some(Duration::new(seconds, nanos)))
}

fn bad_duration(field: &str, value: &protobuf::Duration) -> DecodeError {
    let text = format!("{}s {}ns", value.seconds, value.nanos);
    DecodeError::invalid(field, text, "use a duration of zero or more")
}
