//! Values of fields: names, ports, addresses, headers, regular expressions, durations.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use regex_automata::meta::Regex;

use super::Invalid;
use crate::store::route::Created;

/// Longest regular expression, as in the Gateway API.
const MAX_REGEX_LENGTH: usize = 1024;
/// Memory that a compiled regular expression may take: the sidecar takes no larger one.
const MAX_REGEX_SIZE: usize = 256 << 10;

/// A DNS label: the names of Services and namespaces.
pub(super) fn label(field: &str, name: &str) -> Result<(), Invalid> {
    dns(field, name, 63, false)
}

/// A DNS subdomain: the names of most objects.
pub(super) fn subdomain(field: &str, name: &str) -> Result<(), Invalid> {
    dns(field, name, 253, true)
}

fn dns(field: &str, name: &str, longest: usize, dots: bool) -> Result<(), Invalid> {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let valid = name.len() <= longest
        && if dots {
            name.split('.').all(part)
        } else {
            part(name)
        };
    if valid {
        return Ok(());
    }
    let dots = if dots { ", `.`" } else { "" };
    Err(Invalid::new(
        field,
        format!(
            "{name:?} is not a valid name: use a-z, 0-9, `-`{dots}, at most {longest} characters"
        ),
    ))
}

/// A port.
pub(super) fn port(field: impl Into<String>, number: i64) -> Result<u16, Invalid> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Invalid::new(field, format!("{number} is not a port: use 1 to 65535")))
}

/// An IP address.
pub(super) fn ip(field: impl Into<String>, text: &str) -> Result<IpAddr, Invalid> {
    text.parse()
        .map_err(|_| Invalid::new(field, format!("{text:?} is not an IP address")))
}

/// The name of a header; pseudo headers are none.
pub(super) fn header_name(field: impl Into<String>, text: &str) -> Result<HeaderName, Invalid> {
    HeaderName::from_str(text)
        .map_err(|_| Invalid::new(field, format!("{text:?} is not a header name")))
}

/// Headers that say where a message ends, or belong to one connection.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The name of a header that a filter may change: none that the framing of messages hangs on.
pub(super) fn changed_header(field: impl Into<String>, text: &str) -> Result<HeaderName, Invalid> {
    let field = field.into();
    match header_name(field.clone(), text)? {
        name if FRAMING.contains(&name.as_str()) => Err(Invalid::new(
            field,
            format!("{text:?} belongs to the framing of messages: filters must not change it"),
        )),
        name => Ok(name),
    }
}

/// The value of a header.
pub(super) fn header_value(field: impl Into<String>, text: &str) -> Result<HeaderValue, Invalid> {
    HeaderValue::from_str(text).map_err(|_| {
        Invalid::new(
            field,
            format!("{text:?} is not a header value: use printable ASCII"),
        )
    })
}

/// A regular expression.
pub(super) fn regex(field: impl Into<String>, pattern: &str) -> Result<Arc<str>, Invalid> {
    let field = field.into();
    if pattern.len() > MAX_REGEX_LENGTH {
        return Err(Invalid::new(
            field,
            format!(
                "regular expression of {} bytes: at most {MAX_REGEX_LENGTH}",
                pattern.len()
            ),
        ));
    }
    // By itself, and as the sidecar wraps it to match whole strings: `(?x)a #b` would comment the wrapping out.
    for whole in [pattern, &format!("^(?:{pattern})$")] {
        let config = Regex::config().nfa_size_limit(Some(MAX_REGEX_SIZE));
        let Err(error) = Regex::builder().configure(config).build(whole) else {
            continue;
        };
        if error.size_limit().is_some() {
            let message = format!(
                "{pattern:?} compiles to more than {MAX_REGEX_SIZE} bytes: make it simpler"
            );
            return Err(Invalid::new(field, message));
        }
        let reason = error
            .syntax_error()
            .map_or_else(|| error.to_string(), ToString::to_string);
        let reason = reason
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let message = format!("{pattern:?} is not a regular expression: {reason}");
        return Err(Invalid::new(field, message));
    }
    Ok(pattern.into())
}

/// A duration of the Gateway API (GEP-2257).
pub(super) fn duration(field: impl Into<String>, text: &str) -> Result<Duration, Invalid> {
    gateway_api::Duration::from_str(text)
        .map(|duration| {
            Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        })
        .map_err(|_| {
            Invalid::new(
                field,
                format!("{text:?} is not a duration: write it like 500ms, 10s or 1m30s"),
            )
        })
}

/// When an object was made.
pub(super) fn created(metadata: &ObjectMeta) -> Created {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or_else(Created::default, |time| Created(time.0.as_microsecond()))
}
