//! Header mutations.

use http::{HeaderName, HeaderValue, header};
use tulle_xds_proto::envoy::config::core::v3::HeaderValueOption;
use tulle_xds_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use super::error::{At, DecodeError, refuse};
use crate::config::route::HeaderChanges;

/// What is added, set and removed, from the two fields that carry it (`name`: such as `request_headers`).
pub(super) fn changes(
    name: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Result<HeaderChanges, DecodeError> {
    let mut changes = HeaderChanges::default();
    for (i, option) in add.iter().enumerate() {
        add_one(&mut changes, option).at_index(&format!("{name}_to_add"), i)?;
    }
    for (i, header) in remove.iter().enumerate() {
        let header = changed("", header).at_index(&format!("{name}_to_remove"), i)?;
        changes.remove.push(header);
    }
    Ok(changes)
}

#[expect(deprecated, reason = "foreign control planes still set `append`")]
fn add_one(changes: &mut HeaderChanges, option: &HeaderValueOption) -> Result<(), DecodeError> {
    let Some(header) = &option.header else {
        return Err(DecodeError::missing(
            "header",
            "name the header and its value",
        ));
    };
    refuse(
        !header.raw_value.is_empty(),
        "header.raw_value",
        "use value",
    )?;
    let name = changed("header.key", &header.key)?;
    let value = header_value("header.value", &header.value)?;
    // The deprecated field counts where it is set.
    let action = match &option.append {
        Some(append) if append.value => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(_) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => option.append_action(),
    };
    match action {
        HeaderAppendAction::AppendIfExistsOrAdd => changes.add.push((name, value)),
        HeaderAppendAction::OverwriteIfExistsOrAdd => changes.set.push((name, value)),
        HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists => {
            let remedy = "use APPEND_IF_EXISTS_OR_ADD or OVERWRITE_IF_EXISTS_OR_ADD";
            return Err(DecodeError::unsupported("append_action", remedy));
        }
    }
    Ok(())
}

/// Headers that say where a message ends, or belong to one connection.
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The name of a header that may be changed: with a false length, or a second one, the next message would begin amid
/// this one.
fn changed(field: &str, name: &str) -> Result<HeaderName, DecodeError> {
    let parsed = header_name(field, name)?;
    if FRAMING.contains(&parsed) {
        let remedy = "it belongs to the framing of messages: leave it alone";
        return Err(DecodeError::invalid(field, name, remedy));
    }
    Ok(parsed)
}

/// A header's name; pseudo-headers are none.
pub(super) fn header_name(field: &str, name: &str) -> Result<HeaderName, DecodeError> {
    name.parse()
        .map_err(|error| DecodeError::invalid(field, name, error))
}

/// A literal header value: `%%` is a per cent sign, and Envoy's `%COMMANDS%` are refused, for nobody evaluates them here.
/// Space around it is none of it, and HTTP/2 allows none there (RFC 9113, 8.2.1).
fn header_value(field: &str, value: &str) -> Result<HeaderValue, DecodeError> {
    let mut literal = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        literal.push('%');
        let name = after.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_');
        if name.len() < after.len() && name.starts_with(['(', '%', ':']) {
            let remedy = "command operators are not supported; write %% for a per cent sign";
            return Err(DecodeError::invalid(field, value, remedy));
        }
        rest = after.strip_prefix('%').unwrap_or(after);
    }
    literal.push_str(rest);
    literal
        .trim_matches([' ', '\t'])
        .parse()
        .map_err(|error| DecodeError::invalid(field, value, error))
}
