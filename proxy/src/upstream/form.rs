//! A request's head in the form that a version of HTTP wants, where the client spoke the other one.

use std::net::SocketAddr;

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Uri};
use http_body::Body;

use super::{Head, UpstreamError};
use crate::conn::HttpVersion;
use crate::retry::RequestBody;

/// What a field counts beside its name and value.
const FIELD: usize = 32;
/// What `:method`, `:scheme`, `:authority` and `:path` count beside the values of three of them.
const PSEUDO: usize = 4 * FIELD + ":method:schemehttp:authority:path".len();

impl Head {
    /// The same request for a version; `address` is where it goes, should it not say for whom it is.
    ///
    /// # Errors
    ///
    /// When it is larger than `limit` in HTTP/2's way of counting: a peer may end the connection for it, on which there
    /// are others. What came on HTTP/2 was counted on its way in.
    pub fn suited_to(
        self,
        version: HttpVersion,
        address: SocketAddr,
        body: &RequestBody,
        limit: u32,
    ) -> Result<Self, UpstreamError> {
        let is_http2 = self.uri.authority().is_some();
        match version {
            HttpVersion::Http1 if is_http2 => Ok(self.into_http1(body)),
            HttpVersion::Http2 if !is_http2 => {
                let head = self.into_http2(address);
                let limit = limit as usize;
                if head.http2_size() <= limit {
                    return Ok(head);
                }
                let target = head.uri.path_and_query().map_or(0, |it| it.as_str().len()) > limit;
                Err(UpstreamError::TooLarge { target })
            }
            HttpVersion::Http1 | HttpVersion::Http2 => Ok(self),
        }
    }

    fn into_http1(mut self, body: &RequestBody) -> Self {
        let authority = self.uri.authority().map(Authority::as_str);
        let host = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
        if let Some(host) = host {
            self.headers.insert(HOST, host);
        }
        let path = self.uri.path_and_query().cloned();
        self.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        join_cookies(&mut self.headers);
        if !body.is_end_stream() && !self.headers.contains_key(CONTENT_LENGTH) {
            // hyper takes a GET for one without a body unless it is told.
            let chunked = HeaderValue::from_static("chunked");
            self.headers.insert(TRANSFER_ENCODING, chunked);
        }
        self
    }

    /// Its size as a list of fields (RFC 9113, 6.5.2).
    fn http2_size(&self) -> usize {
        let fields = self.headers.iter();
        let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD);
        let authority = self.uri.authority().map_or(0, |it| it.as_str().len());
        let path = self.uri.path_and_query().map_or(0, |it| it.as_str().len());
        let pseudo = self.method.as_str().len() + authority + path + PSEUDO;
        pseudo + fields.sum::<usize>()
    }

    fn into_http2(mut self, address: SocketAddr) -> Self {
        self.headers.remove(TRANSFER_ENCODING);
        let host = self.headers.remove(HOST);
        let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let authority = named.or_else(|| address.to_string().parse().ok());
        let mut uri = std::mem::take(&mut self.uri).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = authority;
        uri.path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
        self.uri = Uri::from_parts(uri).unwrap_or_default();
        self
    }
}

/// HTTP/2 may split cookies over several fields, HTTP/1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let parts: Vec<_> = headers.get_all(COOKIE).iter().collect();
    if parts.len() < 2 {
        return;
    }
    let parts: Vec<_> = parts.into_iter().map(HeaderValue::as_bytes).collect();
    // Joined, valid values are one.
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
