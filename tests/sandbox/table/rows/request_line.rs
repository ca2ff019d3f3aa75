//! The request line and the forms of its target: RFC 9112, 3.

use crate::table::row::{Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = targets();
    rows.extend(methods());
    rows.extend(refused());
    rows
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

fn targets() -> Vec<Row> {
    let passes = |name, target: &str| {
        row(name)
            .rfc("9112 3.2.1")
            .sends(line(&format!("GET {target} HTTP/1.1")))
            .sees(&format!("GET {target}\nhost: a"))
            .gets("200\n\nok")
    };
    vec![
        passes("a query", "/x?y=z&y=%20"),
        passes("an empty query", "/x?"),
        passes("two question marks", "/x?y?z"),
        passes("slashes that repeat", "//x///y"),
        passes("segments with dots", "/a/./b/../c"),
        passes("an encoded slash", "/a%2fb%2Fc"),
        passes("an encoded dot", "/%2e%2e/a"),
        passes("an encoded NUL", "/a%00b"),
        passes("an encoding that is none", "/a%zz%"),
        passes("a semicolon", "/a;b=c/d"),
        passes(
            "characters that a URI may not have, but often has",
            "/a|b^c{d}\"e\\f",
        ),
        passes("a colon in the first segment", "/a:b@c"),
        row("OPTIONS of the server itself")
            .rfc("9112 3.2.4")
            .sends(line("OPTIONS * HTTP/1.1"))
            .sees("OPTIONS *\nhost: a")
            .gets("200\n\nok"),
        row("a target in absolute form")
            .rfc("9112 3.2.2")
            .sends("GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /x?y\nhost: a")
            .gets("200\n\nok"),
        row("a target in absolute form without a path")
            .rfc("9112 3.2.1")
            .sends("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
        row("a target in absolute form with a query and no path")
            .rfc("9112 3.2.1")
            .sends("GET http://a?y HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /?y\nhost: a")
            .gets("200\n\nok"),
        // As Envoy and nginx do; the asterisk that RFC 9112, 3.2.4 asks for here is about forward proxies.
        row("OPTIONS in absolute form without a path")
            .rfc("9112 3.2.4")
            .sends("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("OPTIONS /\nhost: a")
            .gets("200\n\nok"),
    ]
}

fn methods() -> Vec<Row> {
    let passes = |name, method: &str| {
        row(name)
            .rfc("9110 9.1")
            .sends(line(&format!("{method} /x HTTP/1.1")))
            .sees(&format!("{method} /x"))
            .gets("200\n\nok")
    };
    vec![
        passes("a method of WebDAV", "PROPFIND"),
        passes("a method with a hyphen", "M-SEARCH"),
        passes("PATCH without a body", "PATCH"),
        passes("TRACE", "TRACE"),
    ]
}

fn refused() -> Vec<Row> {
    [
        ("two spaces after the method", "GET  / HTTP/1.1", "9112 3"),
        ("two spaces after the target", "GET /  HTTP/1.1", "9112 3"),
        ("a tab after the method", "GET\t/ HTTP/1.1", "9112 3"),
        ("a tab after the target", "GET /\tHTTP/1.1", "9112 3"),
        ("space before the method", " GET / HTTP/1.1", "9112 3"),
        ("space after the version", "GET / HTTP/1.1 ", "9112 3"),
        ("space in the target", "GET /a b HTTP/1.1", "9112 3.2"),
        ("no version", "GET /", "9112 3"),
        ("no target", "GET HTTP/1.1", "9112 3"),
        ("a fragment", "GET /a#b HTTP/1.1", "9112 3.2"),
        ("a relative target", "GET a HTTP/1.1", "9112 3.2"),
        ("an asterisk for GET", "GET * HTTP/1.1", "9112 3.2.4"),
        ("HTTP/0.9", "GET / HTTP/0.9", "9112 2.3"),
        ("HTTP/1.2", "GET / HTTP/1.2", "9112 2.3"),
        (
            "HTTP/2.0 on a connection of HTTP/1",
            "GET / HTTP/2.0",
            "9112 2.3",
        ),
        ("a version with more digits", "GET / HTTP/1.10", "9112 2.3"),
        ("a version in small letters", "GET / http/1.1", "9112 2.3"),
        ("another protocol", "GET / ICAP/1.0", "9112 2.3"),
        ("a method with a control", "G\x01ET / HTTP/1.1", "9110 9.1"),
        ("a method with a colon", "GET: / HTTP/1.1", "9110 9.1"),
        ("a control in the target", "GET /\x01 HTTP/1.1", "9112 3.2"),
        ("a delete in the target", "GET /\x7f HTTP/1.1", "9112 3.2"),
        (
            "a byte beyond ASCII in the target",
            "GET /\u{e9} HTTP/1.1",
            "9112 3.2",
        ),
        (
            "angle brackets in the target",
            "GET /<a> HTTP/1.1",
            "9112 3.2",
        ),
        ("a backtick in the target", "GET /`a HTTP/1.1", "9112 3.2"),
        ("a backslash for a target", "GET \\ HTTP/1.1", "9112 3.2"),
    ]
    .into_iter()
    .map(|(name, bytes, rfc)| row(name).class(4).rfc(rfc).sends(line(bytes)).refused(400))
    .collect()
}
