//! Bodies in chunks: RFC 9112, 6.1 and 7.1. Failure classes 2, 3 and 4.

use super::content_length::post;
use crate::table::row::{Row, row};

const CHUNKED: &str = "Transfer-Encoding: chunked";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = good();
    rows.extend(other_encodings());
    rows.extend(bad_sizes());
    rows.extend(bad_chunks());
    rows
}

fn good() -> Vec<Row> {
    let passes = |name, fields: &str, body: &str, sees: &str| {
        let sees = format!("POST /\ntransfer-encoding: chunked\n!content-length\n\n{sees}");
        row(name)
            .rfc("9112 7.1")
            .sends(post(fields, body))
            .sees(&sees)
            .gets("200\n\nok")
    };
    vec![
        passes("a chunk", CHUNKED, "3\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("two chunks", CHUNKED, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"),
        passes("no chunk", CHUNKED, "0\r\n\r\n", ""),
        passes("a size in capitals and small letters", CHUNKED, "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        passes("sizes with zeros before them", CHUNKED, "0003\r\nabc\r\n000\r\n\r\n", "abc"),
        passes("an extension", CHUNKED, "3;x=y\r\nabc\r\n0;z\r\n\r\n", "abc"),
        passes("an extension in quotes", CHUNKED, "3;x=\"a;b\"\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("space before an extension", CHUNKED, "3 ;x\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("a chunk that looks like chunks", CHUNKED, "7\r\n0\r\n\r\nab\r\n0\r\n\r\n", "0\r\n\r\nab"),
        passes("an encoding in capitals", "TRANSFER-ENCODING: CHUNKED", "3\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("an encoding without space before it", "Transfer-Encoding:chunked", "3\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("an encoding with tabs around it", "Transfer-Encoding:\tchunked\t", "3\r\nabc\r\n0\r\n\r\n", "abc"),
        passes("an encoding named in connection", "Transfer-Encoding: chunked\r\nConnection: transfer-encoding", "3\r\nabc\r\n0\r\n\r\n", "abc"),
        row("chunks in pieces")
            .rfc("9112 7.1")
            .sends(post(CHUNKED, "3"))
            .reaches(1)
            .sends("\r")
            .sends("\nab")
            .sends("c\r\n0\r")
            .sends("\n\r")
            .sends("\n")
            .sees("POST /\n\nabc")
            .gets("200\n\nok"),
        row("a GET in chunks")
            .rfc("9110 9.3.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .sees("GET /\ntransfer-encoding: chunked\n\nabc")
            .gets("200\n\nok"),
        row("chunks, then a second request")
            .rfc("9112 9.3.2")
            .sends(post(CHUNKED, "3\r\nabc\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"))
            .sees("POST /\n\nabc")
            .sees("GET /2")
            .gets("200\n\nok")
            .gets("200\n\nok"),
    ]
}

fn other_encodings() -> Vec<Row> {
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let mut rows: Vec<_> = [
        ("an unknown encoding", "Transfer-Encoding: xchunked"),
        (
            "an encoding that is chunked with more",
            "Transfer-Encoding: chunkedx",
        ),
        ("identity", "Transfer-Encoding: identity"),
        (
            "chunked, then identity",
            "Transfer-Encoding: chunked, identity",
        ),
        (
            "identity, then chunked",
            "Transfer-Encoding: identity, chunked",
        ),
        ("gzip, then chunked", "Transfer-Encoding: gzip, chunked"),
        ("chunked, then gzip", "Transfer-Encoding: chunked, gzip"),
        (
            "chunked twice in a list",
            "Transfer-Encoding: chunked, chunked",
        ),
        (
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        (
            "identity and chunked on two lines",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        ),
        (
            "chunked and an unknown one on two lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        ),
        ("an empty encoding", "Transfer-Encoding:"),
        ("chunked with a parameter", "Transfer-Encoding: chunked;q=1"),
        ("chunked in quotes", "Transfer-Encoding: \"chunked\""),
        ("a comma before chunked", "Transfer-Encoding: , chunked"),
        ("a comma after chunked", "Transfer-Encoding: chunked,"),
        (
            "a vertical tab before chunked",
            "Transfer-Encoding: \x0bchunked",
        ),
        (
            "a form feed before chunked",
            "Transfer-Encoding:\x0cchunked",
        ),
        (
            "space before the encoding's colon",
            "Transfer-Encoding : chunked",
        ),
        (
            "an encoding that is folded",
            "Transfer-Encoding:\r\n chunked",
        ),
        (
            "a byte beyond ASCII after chunked",
            "Transfer-Encoding: chunked\u{a0}",
        ),
    ]
    .into_iter()
    .map(|(name, field)| {
        row(name)
            .class(2)
            .rfc("9112 6.1")
            .sends(post(field, body))
            .refused(400)
    })
    .collect();
    rows.push(
        row("chunks in HTTP/1.0")
            .class(2)
            .rfc("9112 6.1")
            .sends(format!(
                "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
            ))
            .refused(400),
    );
    rows.push(
        row("an encoding under another name")
            .class(2)
            .rfc("9110 5.1")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n")
            .sees("POST /")
            .gets("200\n\nok"),
    );
    rows
}

/// What is refused in a body may follow the head of its request to the backend, never its end.
fn refused(class: u8, name: &'static str, body: &str) -> Row {
    row(name)
        .class(class)
        .rfc("9112 7.1")
        .sends(post(CHUNKED, body))
        .partly()
        .refused(400)
}

fn bad_sizes() -> Vec<Row> {
    [
        ("an empty size", "\r\nabc\r\n0\r\n\r\n"),
        ("a size that is no number", "x\r\nabc\r\n0\r\n\r\n"),
        ("a hexadecimal prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("a signed size", "+3\r\nabc\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\nabc\r\n0\r\n\r\n"),
        (
            "a size of 17 digits",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "a size of 16 digits that is too large",
            "ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ),
        ("a size with space before it", " 3\r\nabc\r\n0\r\n\r\n"),
        ("a size with space after it", "3 \r\nabc\r\n0\r\n\r\n"),
        ("a size with an underscore", "1_0\r\nabc\r\n0\r\n\r\n"),
        ("a size with a comma", "3,3\r\nabc\r\n0\r\n\r\n"),
        ("a size smaller than its chunk", "2\r\nabc\r\n0\r\n\r\n"),
        ("a last size with a digit after it", "0 1\r\n\r\n"),
    ]
    .into_iter()
    .map(|(name, body)| refused(3, name, body))
    .collect()
}

fn bad_chunks() -> Vec<Row> {
    [
        ("a bare line feed after a size", "3\nabc\r\n0\r\n\r\n"),
        ("a bare line feed after a chunk", "3\r\nabc\n0\r\n\r\n"),
        (
            "a bare line feed after the last size",
            "3\r\nabc\r\n0\n\r\n",
        ),
        (
            "a bare line feed at the end of the body",
            "3\r\nabc\r\n0\r\n\n",
        ),
        ("a bare carriage return after a size", "3\rabc\r\n0\r\n\r\n"),
        ("a line feed in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        (
            "a carriage return in an extension",
            "3;a\rb\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "a carriage return at an extension's end",
            "3;a\r\r\nabc\r\n0\r\n\r\n",
        ),
        ("NUL in an extension", "3;a=\0\r\nabc\r\n0\r\n\r\n"),
        ("words after a size", "3 abc\r\nabc\r\n0\r\n\r\n"),
    ]
    .into_iter()
    .map(|(name, body)| refused(4, name, body))
    .collect()
}
