//! How large the parts of a request may be: RFC 9110, 5.4 and RFC 9112, 3. Failure class 21.

use super::content_length::post;
use crate::table::row::{End, Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = passes();
    rows.extend(refused());
    rows
}

/// A request with so many fields, `Host` included.
fn of_fields(count: usize) -> String {
    let fields: String = (1..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// A request with a list of fields of about so many bytes.
fn of_bytes(bytes: usize) -> String {
    let fields: String = (0..bytes / 1000)
        .map(|n| format!("x-{n}: {}\r\n", "v".repeat(1000)))
        .collect();
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

fn passes() -> Vec<Row> {
    let long = format!("/{}", "a".repeat(8_000));
    vec![
        row("a hundred fields")
            .class(21)
            .rfc("9110 5.4")
            .sends(of_fields(100))
            .sees("GET /\nx-99: 99")
            .gets("200\n\nok"),
        row("a list of 17 KB")
            .class(21)
            .rfc("9110 5.4")
            .sends(of_bytes(17_000))
            .sees("GET /")
            .gets("200\n\nok"),
        row("a list of 50 KB")
            .class(21)
            .rfc("9110 5.4")
            .sends(of_bytes(50_000))
            .sees("GET /")
            .gets("200\n\nok"),
        row("a target of 8,000 bytes")
            .class(21)
            .rfc("9112 3")
            .sends(format!("GET {long} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .sees(&format!("GET {long}"))
            .gets("200\n\nok"),
        row("a value of 30 KB")
            .class(21)
            .rfc("9110 5.4")
            .sends(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "v".repeat(30_000)
            ))
            .sees("GET /")
            .gets("200\n\nok"),
        row("the largest length that there is")
            .class(21)
            .rfc("9110 8.6")
            .sends(post("Content-Length: 9223372036854775807", "abc"))
            .reaches(1)
            .partly()
            .ends(End::Left),
        row("a body of a megabyte")
            .class(21)
            .rfc("9112 6.2")
            .sends(post("Content-Length: 1000000", &"b".repeat(1_000_000)))
            .sees(&format!("POST /\n\n{}", "b".repeat(1_000_000)))
            .gets("200\n\nok"),
        row("a thousand small chunks")
            .class(21)
            .rfc("9112 7.1")
            .sends(post(
                "Transfer-Encoding: chunked",
                &("1\r\nc\r\n".repeat(1_000) + "0\r\n\r\n"),
            ))
            .sees(&format!("POST /\n\n{}", "c".repeat(1_000)))
            .gets("200\n\nok"),
    ]
}

fn refused() -> Vec<Row> {
    vec![
        row("a hundred and one fields")
            .class(21)
            .rfc("6585 5")
            .sends(of_fields(101))
            .refused(431),
        row("ten thousand fields")
            .class(21)
            .rfc("6585 5")
            .sends(of_fields(10_000))
            .refused(431),
        row("a list of 80 KB")
            .class(21)
            .rfc("6585 5")
            .sends(of_bytes(80_000))
            .refused(431),
        row("a value of 70 KB")
            .class(21)
            .rfc("6585 5")
            .sends(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "v".repeat(70_000)
            ))
            .refused(431),
        row("a name of 70 KB")
            .class(21)
            .rfc("6585 5")
            .sends(format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}: v\r\n\r\n",
                "n".repeat(70_000)
            ))
            .refused(431),
        row("a target of 65 KB")
            .class(21)
            .rfc("9110 15.5.15")
            .sends(format!(
                "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
                "a".repeat(66_000)
            ))
            .refused(414),
        row("a target of a megabyte that never ends")
            .class(21)
            .rfc("9110 15.5.15")
            .sends(format!("GET /{}", "a".repeat(1_000_000)))
            .refused(414),
        row("a method of 70 KB")
            .class(21)
            .rfc("9112 3")
            .sends(format!(
                "{} / HTTP/1.1\r\nHost: a\r\n\r\n",
                "M".repeat(70_000)
            ))
            .refused(431),
        row("a head that never ends")
            .class(21)
            .rfc("6585 5")
            .sends(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}",
                "v".repeat(300_000)
            ))
            .refused(431),
        row("an extension of 5 KB")
            .class(21)
            .rfc("9112 7.1.1")
            .sends(post(
                "Transfer-Encoding: chunked",
                &format!("3;{}\r\nabc\r\n0\r\n\r\n", "e".repeat(5_000)),
            ))
            .partly()
            .refused(400),
        row("trailers of 70 KB")
            .class(21)
            .rfc("9112 7.1.2")
            .sends(post(
                "Transfer-Encoding: chunked",
                &format!("3\r\nabc\r\n0\r\nX: {}\r\n\r\n", "t".repeat(70_000)),
            ))
            .partly()
            .refused(400),
        row("two hundred trailers")
            .class(21)
            .rfc("9112 7.1.2")
            .sends(post(
                "Transfer-Encoding: chunked",
                &format!(
                    "3\r\nabc\r\n0\r\n{}\r\n",
                    (0..200)
                        .map(|n| format!("x-{n}: 1\r\n"))
                        .collect::<String>()
                ),
            ))
            .partly()
            .refused(400),
    ]
}
