//! JSON for log lines: one flat object, written straight into a byte buffer.
//!
//! Values come from strangers. Control characters (C0, DEL, C1), line separators and what is not UTF-8 are escaped or
//! replaced, so that a line stays one line and a terminal stays as it was; long values are cut.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Longest value in bytes.
const MAX_VALUE: usize = 2_048;
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The name of a field as it stands in an object. Made by [`key!`] alone, so that it is one piece of memory to copy.
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str);

/// A field's name; it has nothing in it that would have to be escaped.
macro_rules! key {
    ($name:literal) => {
        $crate::telemetry::json::Key(concat!(",\"", $name, "\":"))
    };
}
pub(super) use key;

/// An object that is being written. Each field begins with a comma, the first of which becomes the brace.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start }
    }

    pub(super) fn end(self) {
        match self.out.get_mut(self.start) {
            Some(first) => *first = b'{',
            None => self.out.push(b'{'),
        }
        self.out.extend_from_slice(b"}\n");
    }

    pub(super) fn null(&mut self, key: Key) {
        self.key(key);
        self.out.extend_from_slice(b"null");
    }

    /// A string of any bytes, or null.
    #[inline]
    pub(super) fn text(&mut self, key: Key, value: Option<&[u8]>) {
        let Some(value) = value else {
            return self.null(key);
        };
        self.key(key);
        self.out.push(b'"');
        escape(self.out, value);
        self.out.push(b'"');
    }

    /// A string in which there is nothing to escape.
    pub(super) fn plain(&mut self, key: Key, value: &'static str) {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(b'"');
    }

    pub(super) fn number(&mut self, key: Key, value: u64) {
        self.key(key);
        self.digits(value);
    }

    /// A number as a string, or null.
    pub(super) fn number_text(&mut self, key: Key, value: Option<u64>) {
        let Some(value) = value else {
            return self.null(key);
        };
        self.key(key);
        self.out.push(b'"');
        self.digits(value);
        self.out.push(b'"');
    }

    /// Address and port as a string, or null.
    pub(super) fn address(&mut self, key: Key, value: Option<SocketAddr>) {
        let Some(value) = value else {
            return self.null(key);
        };
        self.key(key);
        self.out.push(b'"');
        match value.ip() {
            IpAddr::V4(ip) => {
                for octet in ip.octets() {
                    self.digits(octet.into());
                    self.out.push(b'.');
                }
                self.out.pop();
                self.out.push(b':');
                self.digits(value.port().into());
            }
            // Writing to a Vec does not fail.
            IpAddr::V6(_) => drop(write!(self.out, "{value}")),
        }
        self.out.push(b'"');
    }

    fn digits(&mut self, value: u64) {
        let mut buffer = itoa::Buffer::new();
        self.out.extend_from_slice(buffer.format(value).as_bytes());
    }

    #[inline]
    fn key(&mut self, key: Key) {
        self.out.extend_from_slice(key.0.as_bytes());
    }
}

fn escape(out: &mut Vec<u8>, value: &[u8]) {
    // Without a way out in the middle, so that it looks at many bytes at a time.
    let plain = value.iter().fold(true, |all, byte| all & is_plain(*byte));
    if plain && value.len() <= MAX_VALUE {
        return out.extend_from_slice(value);
    }
    let cut = value.len() > MAX_VALUE;
    for chunk in value[..value.len().min(MAX_VALUE)].utf8_chunks() {
        for character in chunk.valid().chars() {
            escape_char(out, character);
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(REPLACEMENT);
        }
    }
    if cut {
        out.extend_from_slice(b"...");
    }
}

/// Whether a byte, for itself, stands for itself.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn escape_char(out: &mut Vec<u8>, character: char) {
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\u{2028}' | '\u{2029}' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        _ if character.is_control() => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &[u8]) -> String {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        object.text(key!("k"), Some(value));
        object.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn row_60_values_cannot_leave_their_string_or_their_line() {
        let rows: &[(&[u8], &str)] = &[
            (b"plain", r#"{"k":"plain"}"#),
            (b"a\"b\\c", r#"{"k":"a\"b\\c"}"#),
            (b"a\nb\rc\td", r#"{"k":"a\nb\rc\td"}"#),
            (b"\x1b[31mred\x7f\0", r#"{"k":"\u001b[31mred\u007f\u0000"}"#),
            ("\u{9b}31m\u{2028}".as_bytes(), r#"{"k":"\u009b31m\u2028"}"#),
            ("gr\u{fc}n".as_bytes(), "{\"k\":\"gr\u{fc}n\"}"),
            (b"\xff\xfe", "{\"k\":\"\u{fffd}\u{fffd}\"}"),
        ];
        for (value, expected) in rows {
            let got = line(value);
            assert_eq!(got.trim_end_matches('\n'), *expected);
            assert!(
                serde_json::from_str::<serde_json::Value>(&got).is_ok(),
                "{got}"
            );
        }
    }

    #[test]
    fn what_needs_no_escape_is_written_as_it_displays() {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        object.address(key!("v4"), "10.0.200.31:8080".parse().ok());
        object.address(key!("v6"), "[fd00::1]:80".parse().ok());
        object.address(key!("none"), None);
        object.number(key!("n"), u64::MAX);
        object.number_text(key!("t"), Some(0));
        object.number_text(key!("no"), None);
        object.plain(key!("p"), "HTTP/2");
        object.end();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"v4\":\"10.0.200.31:8080\",\"v6\":\"[fd00::1]:80\",\"none\":null,\
             \"n\":18446744073709551615,\"t\":\"0\",\"no\":null,\"p\":\"HTTP/2\"}\n"
        );
    }

    #[test]
    fn an_object_may_be_empty_and_follow_another() {
        let mut out = b"x\n".to_vec();
        Object::begin(&mut out).end();
        assert_eq!(out, b"x\n{}\n");
    }

    #[test]
    fn long_values_are_cut() {
        let got = line(&vec![b'a'; 10_000]);
        assert_eq!(got.len(), MAX_VALUE + r#"{"k":"..."}"#.len() + 1);
    }
}
