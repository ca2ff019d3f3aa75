//! Bodies whose length the head tells: RFC 9110, 8.6 and RFC 9112, 6.2. Failure classes 1 and 3.

use crate::table::row::{End, Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("a length of nothing")
            .rfc("9110 8.6")
            .sends(post("Content-Length: 0", ""))
            .sees("POST /")
            .gets("200\n\nok"),
        row("a length with zeros before it")
            .rfc("9110 8.6")
            .sends(post("Content-Length: 0003", "abc"))
            .sees("POST /\n\nabc")
            .gets("200\n\nok"),
        row("a length with space around it")
            .rfc("9112 5.1")
            .sends(post("Content-Length:  \t3 ", "abc"))
            .sees("POST /\ncontent-length: 3\n\nabc")
            .gets("200\n\nok"),
        row("a length in another case")
            .rfc("9110 5.1")
            .sends(post("cOnTeNt-LeNgTh: 3", "abc"))
            .sees("POST /\ncontent-length: 3\n\nabc")
            .gets("200\n\nok"),
        row("a length named in connection stays")
            .class(1)
            .rfc("9110 7.6.1")
            .sends(post(
                "Content-Length: 3\r\nConnection: content-length",
                "abc",
            ))
            .sees("POST /\ncontent-length: 3\n\nabc")
            .gets("200\n\nok"),
        row("a length under another name")
            .class(3)
            .rfc("9110 5.1")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n")
            .sees("POST /")
            .gets("200\n\nok"),
    ];
    rows.extend(no_numbers());
    rows.extend(with_transfer_encoding());
    rows
}

fn no_numbers() -> Vec<Row> {
    [
        ("a signed length", "Content-Length: +3"),
        ("a negative length", "Content-Length: -3"),
        ("a hexadecimal length", "Content-Length: 0x3"),
        ("a length with a fraction", "Content-Length: 3.0"),
        ("a length with words", "Content-Length: 3 bytes"),
        ("a length with space in it", "Content-Length: 1 0"),
        ("a length with an underscore", "Content-Length: 1_0"),
        ("an empty length", "Content-Length:"),
        ("a length that no 64 bits hold", "Content-Length: 18446744073709551619"),
        ("a length of hundred digits", "Content-Length: 0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000003x"),
        ("a list of one length twice", "Content-Length: 3, 3"),
        ("a list of two lengths", "Content-Length: 3,4"),
        ("a list with an empty length", "Content-Length: 3,"),
        ("one length twice", "Content-Length: 3\r\nContent-Length: 3"),
        ("two lengths", "Content-Length: 3\r\nContent-Length: 4"),
        ("two lengths, the first of nothing", "Content-Length: 0\r\nContent-Length: 3"),
        ("two lengths apart", "Content-Length: 3\r\nX: y\r\ncontent-length: 4"),
        ("a length in full-width digits", "Content-Length: \u{ff13}"),
        ("a length in quotes", "Content-Length: \"3\""),
    ]
    .into_iter()
    .map(|(name, length)| row(name).class(3).rfc("9110 8.6").sends(post(length, "abc")).refused(400))
    .collect()
}

fn with_transfer_encoding() -> Vec<Row> {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused = |name, fields: &str| {
        row(name)
            .class(1)
            .rfc("9112 6.3")
            .sends(post(fields, smuggled))
            .refused(400)
    };
    vec![
        refused("a length, then chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        refused("chunks, then a length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        refused("a length of nothing, then chunks", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
        refused("a length, then chunks named in connection", "Content-Length: 5\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked"),
        refused("a length named in connection, then chunks", "Connection: content-length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
        refused("a length, then an encoding in capitals", "Content-Length: 5\r\nTRANSFER-ENCODING: CHUNKED"),
        refused("a length, then an unknown encoding", "Content-Length: 5\r\nTransfer-Encoding: xchunked"),
        refused("a length, then an empty encoding", "Content-Length: 5\r\nTransfer-Encoding:"),
        refused("a length, then identity", "Content-Length: 5\r\nTransfer-Encoding: identity"),
        refused("a bad length, then chunks", "Content-Length: x\r\nTransfer-Encoding: chunked"),
        row("a length and chunks in HTTP/1.0")
            .class(1)
            .rfc("9112 6.1")
            .sends(format!("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"))
            .refused(400),
        row("a length that ends before a second request")
            .class(6)
            .rfc("9112 6.3")
            .sends(format!("{}GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", post("Content-Length: 3", "abc")))
            .sees("POST /\n\nabc")
            .sees("GET /2")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("a length that is too short: the rest is no request")
            .class(6)
            .rfc("9112 6.3")
            .sends(post("Content-Length: 3", "abcdef\r\n\r\n"))
            .sees("POST /\n\nabc")
            .gets("200\n\nok")
            .refused(400),
        row("a length that is too long waits")
            .class(6)
            .rfc("9112 6.3")
            .sends(post("Content-Length: 40", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"))
            .reaches(1)
            .partly()
            .finishes()
            .ends(End::Left),
    ]
}

pub(super) fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}
