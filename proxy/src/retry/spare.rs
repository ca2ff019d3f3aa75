//! A copy of a request's head, made before the head is given away, for the case that it is needed again.
//!
//! Few requests are, and hyper does not give back what it has sent. So the copy is cheap to make and dear to use: the
//! fields are one piece of bytes, where a map would be several allocations and two counters to touch for each field.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::upstream::Head;

/// What most heads fit into.
const CAPACITY: usize = 1024;
/// Marks a value, in its length, that must not be compressed.
const SENSITIVE: u32 = 1 << 31;

/// A copy of a head: pairs of texts, each after their lengths. First comes the method with the target, then each field's
/// name with its value.
#[derive(Debug)]
pub struct Spare(Vec<u8>);

impl Spare {
    /// Copies a head.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        let mut spare = Self(Vec::with_capacity(CAPACITY));
        let (uri, path) = (&head.uri, head.uri.path_and_query());
        let target = [
            uri.scheme_str().unwrap_or_default(),
            if uri.scheme().is_some() { "://" } else { "" },
            uri.authority().map_or("", Authority::as_str),
            path.map_or("", PathAndQuery::as_str),
        ];
        let target_len = target.iter().map(|part| part.len()).sum();
        spare.begin(head.method.as_str(), target_len, 0);
        for part in target {
            spare.0.extend_from_slice(part.as_bytes());
        }
        for (name, value) in &head.headers {
            let sensitive = if value.is_sensitive() { SENSITIVE } else { 0 };
            spare.begin(name.as_str(), value.len(), sensitive);
            spare.0.extend_from_slice(value.as_bytes());
        }
        spare
    }

    /// Writes the lengths of a pair, and its first text. Limits on heads keep lengths far below what fits.
    fn begin(&mut self, first: &str, of_second: usize, flag: u32) {
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX >> 1);
        self.0.extend_from_slice(&length(first.len()).to_ne_bytes());
        let of_second = length(of_second) | flag;
        self.0.extend_from_slice(&of_second.to_ne_bytes());
        self.0.extend_from_slice(first.as_bytes());
    }

    /// The head that was copied.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        let (method, target, _, mut left) = pair(&self.0)?;
        let mut headers = HeaderMap::new();
        while let Some((name, value, sensitive, rest)) = pair(left) {
            let mut value = HeaderValue::from_bytes(value).ok()?;
            value.set_sensitive(sensitive);
            headers.append(HeaderName::from_bytes(name).ok()?, value);
            left = rest;
        }
        Some(Head {
            method: Method::from_bytes(method).ok()?,
            uri: Uri::try_from(target).ok()?,
            headers,
        })
    }
}

/// The first pair, its flag, and what follows.
fn pair(bytes: &[u8]) -> Option<(&[u8], &[u8], bool, &[u8])> {
    let (of_first, rest) = bytes.split_first_chunk()?;
    let (of_second, rest) = rest.split_first_chunk()?;
    let of_second = u32::from_ne_bytes(*of_second);
    let (first, rest) = rest.split_at_checked(u32::from_ne_bytes(*of_first) as usize)?;
    let (second, rest) = rest.split_at_checked((of_second & !SENSITIVE) as usize)?;
    Some((first, second, of_second & SENSITIVE != 0, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_head_is_the_head() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("Bearer abc");
        secret.set_sensitive(true);
        headers.insert("authorization", secret);
        for value in [&b"one"[..], b"", b"\xff\xfe", b"one"] {
            headers.append("x-many", HeaderValue::from_bytes(value).expect("valid"));
        }
        headers.insert(
            "x-long",
            HeaderValue::from_bytes(&[b'a'; 5_000]).expect("valid"),
        );
        let head = Head {
            method: Method::PATCH,
            uri: Uri::from_static("http://reviews/a?b=c"),
            headers,
        };
        let spare = Spare::of(&head);
        for _ in 0..2 {
            let again = spare.head().expect("it is whole");
            assert_eq!(again.method, head.method);
            assert_eq!(again.uri, head.uri);
            assert_eq!(again.headers, head.headers);
            assert!(again.headers["authorization"].is_sensitive());
            let values: Vec<_> = again.headers.get_all("x-many").iter().collect();
            assert_eq!(
                values,
                head.headers.get_all("x-many").iter().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn targets_of_every_form_are_kept_and_a_head_may_have_no_fields() {
        for target in [
            "/",
            "/a/b?c=d&e=%20",
            "*",
            "http://reviews/",
            "http://[::1]:80/a?b",
            "reviews:80",
        ] {
            let head = Head {
                method: Method::from_bytes(b"PURGE").expect("valid"),
                uri: target.parse().expect(target),
                headers: HeaderMap::new(),
            };
            let again = Spare::of(&head).head().expect("it is whole");
            assert_eq!(again.uri, head.uri);
            assert_eq!(again.method, head.method);
            assert!(again.headers.is_empty());
        }
    }
}
