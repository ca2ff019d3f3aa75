//! Where a redirect leads: the rules of Gateway API's `HTTPRequestRedirectFilter`.

use http::HeaderValue;
use http::header::{HOST, InvalidHeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};

use super::rewrite::rewritten_path;
use crate::config::route::{Redirect, RouteMatch};

/// The route redirects to something that is no location.
#[derive(Debug, thiserror::Error)]
#[error("the route redirects to something that is no location")]
pub struct RedirectError(#[from] InvalidHeaderValue);

/// The `Location` of a redirect. `port` is the port that the client meant to reach.
///
/// # Errors
///
/// When the result is no header value.
pub fn location(
    redirect: &Redirect,
    matched: &RouteMatch,
    request: &Parts,
    port: u16,
) -> Result<HeaderValue, RedirectError> {
    let authority = authority(request);
    let scheme = redirect.scheme.as_ref().unwrap_or(&Scheme::HTTP);
    // `Host: :80` is none.
    let asked = authority.as_ref().map(Authority::host);
    let asked = asked.filter(|host| !host.is_empty());
    let host = redirect.host.as_deref().or(asked);
    let well_known = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => well_known,
        (None, None) => authority
            .as_ref()
            .and_then(Authority::port_u16)
            .unwrap_or(port),
    };
    let (path, query) = (request.uri.path(), request.uri.query());
    let path = match &redirect.path {
        Some(rewrite) => rewritten_path(matched, rewrite, path, query),
        // `OPTIONS *` asks about the server and has no path to keep.
        None => match request.uri.path_and_query().map(PathAndQuery::as_str) {
            None | Some("*") => "/".to_owned(),
            Some(both) => both.to_owned(),
        },
    };
    let location = match host {
        Some(host) if port == well_known => format!("{scheme}://{host}{path}"),
        Some(host) => format!("{scheme}://{host}:{port}{path}"),
        // The client named none that can be repeated. Two slashes in front would begin one.
        None => format!("/{}", path.trim_start_matches(['/', '\\'])),
    };
    Ok(HeaderValue::try_from(visible(location))?)
}

/// A target may have come with bytes that no location has; they are written as such.
fn visible(location: String) -> String {
    if location.is_ascii() {
        return location;
    }
    let mut visible = String::with_capacity(2 * location.len());
    for byte in location.bytes() {
        match byte {
            0..0x80 => visible.push(byte.into()),
            _ => visible.push_str(&format!("%{byte:02X}")),
        }
    }
    visible
}

fn authority(request: &Parts) -> Option<Authority> {
    if let Some(authority) = request.uri.authority() {
        return Some(authority.clone());
    }
    request
        .headers
        .get(HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
}
