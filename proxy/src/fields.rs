//! Names of fields that a message may not say about itself: what only a proxy says, and what has no place in a trailer.
//!
//! The one list for heads and trailers of both versions. A name is looked at as an app could read it: to CGI, and what
//! came after it, `_` is `-`, and `X_Forwarded_For` is one with the field that a sidecar vouches for.

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_runtime::names::UNPROCESSED_HEADER;

/// Names the sidecar that answered instead of the app.
pub const FAILED_HOP: &str = "x-tulle-failed-hop";
/// Names a request in logs.
pub const REQUEST_ID: &str = "x-request-id";
/// Why a trailer is refused.
pub const REFUSED_TRAILER: &str = "a trailer that belongs into the head";

/// How fields begin by which proxies tell apps, and each other, what they have found out or want done ...
const PROXIES_BEGIN: [&str; 3] = ["x-forwarded-", "x-envoy-", "l5d-"];
/// ... and those that have a name of their own.
const PROXIES_SAY: [&str; 4] = ["forwarded", REQUEST_ID, UNPROCESSED_HEADER, FAILED_HOP];
/// What is about one hop, or about where a message ends.
const OF_A_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What changes how a request is processed, or who it is from, as a trailer without effect at best (RFC 9110, 6.5.1).
/// hyper drops these and two of those above by itself when it writes HTTP/1.
const OF_A_HEAD: [&str; 10] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "max-forwards",
    "proxy-authorization",
    "range",
    "set-cookie",
    "trailer",
];

/// What becomes of a trailer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    /// It is the app's business.
    Passes,
    /// It is left out: nobody may act upon it.
    Dropped,
    /// Apps may add trailers to the fields of the head, where this one would deceive them.
    Refused,
}

/// Whether only a proxy may say it, `_` for `-` or not.
#[must_use]
#[inline]
pub fn is_of_proxies(name: &[u8]) -> bool {
    // Most names are told from them by how they begin.
    match name {
        [b'x' | b'X', b'-' | b'_', ..] | [b'f' | b'F' | b'l' | b'L', ..] => proxies_say(name),
        _ => false,
    }
}

fn proxies_say(name: &[u8]) -> bool {
    let begins = |begin: &&str| {
        let beginning = name.get(..begin.len());
        beginning.is_some_and(|beginning| is(beginning, begin))
    };
    PROXIES_BEGIN.iter().any(begins) || is_one_of(name, &PROXIES_SAY)
}

/// What becomes of a trailer of a request, whoever sends it: a proxy says what it has to say in the head.
#[must_use]
pub fn trailer(name: &[u8]) -> Trailer {
    if is_one_of(name, &OF_A_HEAD) {
        Trailer::Dropped
    } else if is_of_proxies(name)
        || is_one_of(name, &OF_A_HOP)
        || is_one_of(name, &["cookie", "expect", "host"])
    {
        Trailer::Refused
    } else {
        Trailer::Passes
    }
}

/// Whether a trailer of an answer goes on: an app may say what it likes, but nothing about the hop, or of a sidecar. A `host`
/// is a request's: gRPC servers say theirs in metadata.
#[must_use]
pub fn answer_may_end_with(name: &[u8]) -> bool {
    !is_one_of(name, &OF_A_HOP) && !is_one_of(name, &[UNPROCESSED_HEADER, FAILED_HOP])
}

/// Takes away the blanks at both ends of values, which are no part of them (RFC 9110, 5.5). HTTP/1 knows none, and on HTTP/2
/// they make a message malformed (RFC 9113, 8.2.1), but many peers let them pass; nobody behind a sidecar gets to see them.
/// Allocates only for values that have some.
#[inline]
pub fn trim(fields: &mut HeaderMap) {
    for value in fields.values_mut() {
        if !is_trimmed(value.as_bytes()) {
            trim_value(value);
        }
    }
}

#[inline]
fn is_trimmed(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !blank(value.first()) && !blank(value.last())
}

#[cold]
fn trim_value(value: &mut HeaderValue) {
    // A part of a value is one.
    if let Ok(mut trimmed) = HeaderValue::from_bytes(value.as_bytes().trim_ascii()) {
        trimmed.set_sensitive(value.is_sensitive());
        *value = trimmed;
    }
}

/// Takes out the fields whose names are of a kind; allocates only if there are any.
pub fn remove(fields: &mut HeaderMap, of_kind: impl Fn(&str) -> bool) {
    let names = fields.keys().filter(|name| of_kind(name.as_str()));
    let names: Vec<HeaderName> = names.cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| is(name, known))
}

/// Whether an app could read a name as one that is known.
fn is(name: &[u8], known: &str) -> bool {
    let fold = |byte: &u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    name.len() == known.len() && name.iter().map(fold).eq(known.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_values_go_and_those_within_stay() {
        for (came, left) in [
            ("", ""),
            ("a", "a"),
            ("a b", "a b"),
            (" a", "a"),
            ("a\t", "a"),
            ("\t  a \t b\t ", "a \t b"),
            (" ", ""),
            ("\t\t", ""),
        ] {
            let mut value = HeaderValue::from_static(came);
            value.set_sensitive(true);
            let mut headers = HeaderMap::new();
            headers.append("x-other", HeaderValue::from_static("1"));
            headers.append("x-a", HeaderValue::from_static("1 "));
            headers.append("x-a", value);
            trim(&mut headers);
            assert_eq!(headers["x-other"], "1");
            let values: Vec<_> = headers.get_all("x-a").iter().collect();
            assert_eq!(values, ["1", left], "{came:?}");
            assert!(values[1].is_sensitive());
        }
    }

    #[test]
    fn what_only_proxies_say_is_found_however_it_is_written() {
        for (name, found) in [
            ("x-forwarded-client-cert", true),
            ("x_forwarded_client_cert", true),
            ("X-Forwarded_For", true),
            ("x-envoy-internal", true),
            ("x_envoy_", true),
            ("l5d_dst", true),
            ("Forwarded", true),
            ("x_request_id", true),
            ("x_tulle_failed_hop", true),
            ("x-tulle-unprocessed", true),
            ("x-forwarded", false),
            ("forwarded-by", false),
            ("x-my-forwarded-for", false),
            ("x-tulle-app-name", false),
            ("x_my_own", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(is_of_proxies(name.as_bytes()), found, "{name}");
        }
    }

    #[test]
    fn a_trailer_of_a_request_passes_is_dropped_or_is_refused() {
        use Trailer as T;
        for (name, becomes) in [
            ("x-sum", T::Passes),
            ("x-amz-trailer-signature", T::Passes),
            ("grpc-status", T::Passes),
            ("hosts", T::Passes),
            ("authorization", T::Dropped),
            ("Content_Type", T::Dropped),
            ("trailer", T::Dropped),
            ("host", T::Refused),
            ("Connection", T::Refused),
            ("content_length", T::Refused),
            ("cookie", T::Refused),
            ("expect", T::Refused),
            ("upgrade", T::Refused),
            ("x-tulle-failed-hop", T::Refused),
            ("x_forwarded_for", T::Refused),
            ("X-Request-Id", T::Refused),
        ] {
            assert_eq!(trailer(name.as_bytes()), becomes, "{name}");
        }
    }

    #[test]
    fn a_trailer_of_an_answer_passes_unless_it_is_about_the_hop_or_a_sidecar_s() {
        for (name, passes) in [
            ("grpc-status", true),
            ("x-request-id", true),
            ("x-envoy-upstream-service-time", true),
            ("host", true),
            ("connection", false),
            ("transfer-encoding", false),
            ("x-tulle-unprocessed", false),
            ("x_tulle_failed_hop", false),
        ] {
            assert_eq!(answer_may_end_with(name.as_bytes()), passes, "{name}");
        }
    }
}
