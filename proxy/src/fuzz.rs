//! Entrances for the fuzz targets (`tests/fuzz`) to parsers that no other crate may call.
//!
//! Only with the feature `fuzz`, which no program has.

pub use crate::http::fuzz as headers;
pub use crate::xds::fuzz as xds;

use crate::telemetry::{ConnectionRecord, RequestRecord};

/// Where the guard sees each message of an HTTP/1 stream end in which nobody switches protocols, up to where it refuses
/// it.
#[must_use]
pub fn http1_message_ends(stream: &[u8]) -> Vec<usize> {
    crate::io::message_ends(stream)
}

/// The lines that the access log writes of these, in this order.
#[must_use]
pub fn access_log(requests: &[RequestRecord], connections: &[ConnectionRecord]) -> Vec<u8> {
    crate::telemetry::lines_of(requests, connections)
}
