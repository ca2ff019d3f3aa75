//! JSON for log lines: one flat object, written straight into a byte buffer.
//!
//! Values come from strangers. Control characters (C0, DEL, C1), line separators and what is not UTF-8 are escaped or
//! replaced, so that a line stays one line and a terminal stays as it was; long values are cut.

use std::fmt;
use std::io::Write as _;

/// Longest value in bytes.
const MAX_VALUE: usize = 2_048;
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// An object that is being written.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    /// A string of any bytes, or null.
    pub(super) fn text(&mut self, key: &str, value: Option<&[u8]>) {
        self.key(key);
        match value {
            None => self.out.extend_from_slice(b"null"),
            Some(value) => {
                self.out.push(b'"');
                escape(self.out, value);
                self.out.push(b'"');
            }
        }
    }

    /// What displays without anything to escape (numbers as text, addresses, flags), quoted, or null.
    pub(super) fn shown(&mut self, key: &str, value: Option<impl fmt::Display>) {
        self.key(key);
        // Writing to a Vec does not fail.
        let _ = match value {
            None => write!(self.out, "null"),
            Some(value) => write!(self.out, "\"{value}\""),
        };
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

fn escape(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() <= MAX_VALUE && value.iter().all(|byte| is_plain(*byte)) {
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
        object.text("k", Some(value));
        object.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_cannot_leave_their_string_or_their_line() {
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
    fn long_values_are_cut() {
        let got = line(&vec![b'a'; 10_000]);
        assert_eq!(got.len(), MAX_VALUE + r#"{"k":"..."}"#.len() + 1);
    }
}
