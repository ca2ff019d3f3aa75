//! Protocol detection.
//!
//! However many bytes come at a time, the answer is the same: more bytes never change one that has been given, and what
//! is waited for is at most a request line or a ClientHello. What is called HTTP begins as HTTP does.

#![no_main]

use tulle_proxy::conn::HttpVersion;
use tulle_proxy::detect::{Carries, asks_a_proxy, classify};

/// Bytes of a request line that are waited for; with more at once, more of it is looked at.
const REQUEST_LINE: usize = 8 * 1024;

tulle_fuzz::target!(|data: &[u8]| {
    let data = &data[..data.len().min(REQUEST_LINE - 1)];
    let answer = classify(data);
    // Every beginning of a short input, and some of a long one.
    for end in (0..data.len()).step_by(1 + data.len() / 128) {
        if let Some(early) = classify(&data[..end]) {
            assert_eq!(answer, Some(early), "after {end} of {} bytes", data.len());
        }
    }
    let text = data.strip_prefix(b"\r\n").unwrap_or(data);
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    match &answer {
        None => assert!(data.len() < REQUEST_LINE),
        Some(Carries::Http(HttpVersion::Http1)) => {
            let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            assert!(text.len() > line.len(), "the line has an end");
            let version = line.windows(6).any(|six| six == b" HTTP/");
            assert!(version && text[0].is_ascii_uppercase() || text[0] == b'-');
        }
        Some(Carries::Http(HttpVersion::Http2)) => {
            assert!(data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        }
        Some(Carries::Tls(_)) => assert_eq!(data[0], 22),
        Some(Carries::Opaque) => {}
        Some(Carries::Silence) => panic!("there are bytes"),
    }
    let _ = asks_a_proxy(data);
});
