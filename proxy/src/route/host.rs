//! The host that a request names.

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, uri::Authority};

/// The host, perhaps with a port: of a target that has one, else what `Host` says.
pub(super) fn of(request: &Parts) -> Option<&[u8]> {
    let authority = request.uri.authority().map(Authority::as_str);
    let header = || request.headers.get(HOST).map(HeaderValue::as_bytes);
    authority.map(str::as_bytes).or_else(header)
}
