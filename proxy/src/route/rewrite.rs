//! Rewrites the path and the host of a request on its way upstream.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Uri};

use crate::config::route::{PathMatch, PathRewrite, RouteMatch};

/// The route's rewrite makes no valid request of this one.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The new path is none.
    #[error("the route rewrites the path to something that is no path")]
    Path(#[source] http::Error),
    /// The new host is none.
    #[error("the route rewrites the host to something that is no host")]
    Host(#[source] http::Error),
}

/// Rewrites path and host in place.
///
/// # Errors
///
/// When the result is no valid path or host.
pub fn rewrite(
    matched: &RouteMatch,
    path: Option<&PathRewrite>,
    host: Option<&HeaderValue>,
    request: &mut Parts,
) -> Result<(), RewriteError> {
    if path.is_none() && host.is_none() {
        return Ok(());
    }
    // `OPTIONS *` has no path.
    let path = path.filter(|_| request.uri.path() != "*");
    let mut uri = std::mem::take(&mut request.uri).into_parts();
    if let Some(rewrite) = path {
        let current = uri.path_and_query.as_ref();
        let (path, query) = current.map_or(("/", None), |both| (both.path(), both.query()));
        let path = rewritten_path(matched, rewrite, path, query);
        let path = PathAndQuery::from_maybe_shared(bytes::Bytes::from(path));
        uri.path_and_query = Some(path.map_err(|error| RewriteError::Path(error.into()))?);
    }
    if let Some(host) = host {
        if uri.authority.is_some() {
            let authority =
                Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes()));
            uri.authority = Some(authority.map_err(|error| RewriteError::Host(error.into()))?);
        }
        if uri.authority.is_none() || request.headers.contains_key(HOST) {
            request.headers.insert(HOST, host.clone());
        }
    }
    request.uri = Uri::from_parts(uri).map_err(|error| RewriteError::Path(error.into()))?;
    Ok(())
}

/// The new path, with the query as it was.
pub(super) fn rewritten_path(
    matched: &RouteMatch,
    rewrite: &PathRewrite,
    path: &str,
    query: Option<&str>,
) -> String {
    let (new, rest) = match rewrite {
        PathRewrite::Full(new) => (&**new, ""),
        PathRewrite::Prefix(new) => (new.trim_end_matches('/'), after_prefix(&matched.path, path)),
    };
    let mut all = String::with_capacity(new.len() + rest.len() + 2 + query.map_or(0, str::len));
    all.push_str(new);
    all.push_str(rest);
    if !all.starts_with('/') {
        all.insert(0, '/');
    }
    if let Some(query) = query {
        all.push('?');
        all.push_str(query);
    }
    all
}

/// What follows the matched prefix; nothing for matches that have none.
fn after_prefix<'p>(matched: &PathMatch, path: &'p str) -> &'p str {
    match matched {
        PathMatch::Prefix(prefix) | PathMatch::SegmentPrefix(prefix) => path
            .strip_prefix(prefix.trim_end_matches('/'))
            .unwrap_or_default(),
        PathMatch::Exact(_) | PathMatch::Regex(_) => "",
    }
}
