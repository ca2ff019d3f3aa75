//! Where messages begin and end: RFC 9112, 2.2 and 6.3.

use crate::table::row::{End, Row, row};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = whole();
    rows.extend(broken_lines());
    rows
}

fn whole() -> Vec<Row> {
    vec![
        row("a request")
            .rfc("9112 2.1")
            .sends(GET)
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
        row("a request in pieces")
            .rfc("9112 2.2")
            .sends("GE")
            .sends("T / HTTP/1.1\r")
            .sends("\nHost:")
            .sends(" a\r\n\r")
            .sends("\n")
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
        row("an empty line before a request")
            .rfc("9112 2.2")
            .sends(format!("\r\n{GET}"))
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
        row("an empty line after a body by length")
            .rfc("9112 2.2")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab\r\n")
            .sees("POST /\n\nab")
            .gets("200\n\nok"),
        row("a GET with a body by length")
            .rfc("9110 9.3.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            .sees("GET /\ncontent-length: 3\n\nabc")
            .gets("200\n\nok"),
        row("a DELETE with a body by length")
            .rfc("9110 9.3.5")
            .sends("DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            .sees("DELETE /\ncontent-length: 3\n\nabc")
            .gets("200\n\nok"),
        row("a POST without a length has no body")
            .rfc("9112 6.3")
            .sends("POST / HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("POST /")
            .gets("200\n\nok"),
        row("a body that looks like a request stays a body")
            .class(6)
            .rfc("9112 6.3")
            .sends(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{GET}",
                GET.len()
            ))
            .sees(&format!("POST /\n\n{GET}"))
            .gets("200\n\nok"),
        row("a body cut short by its client")
            .rfc("9112 8")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            .reaches(1)
            .finishes()
            .partly()
            .ends(End::Left),
        row("a head cut short by its client")
            .rfc("9112 8")
            .sends("GET / HTTP/1.1\r\nHost: a\r\n")
            .finishes()
            .ends(End::Left),
        row("HTTP/1.0 without anything")
            .rfc("9112 2.3")
            .sends("GET / HTTP/1.0\r\n\r\n")
            .sees("GET /\nhost: *")
            .gets("200\n\nok")
            .ends(End::Closed),
        row("HTTP/1.0 that wants to go on")
            .rfc("9112 C.2.2")
            .sends("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            .sees("GET /\nhost: a")
            .gets("200\nconnection: keep-alive\n\nok"),
        row("HTTP/1.0 with a body by length")
            .rfc("9112 6.3")
            .sends("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
            .sees("POST /\n\nab")
            .gets("200\n\nok")
            .ends(End::Closed),
    ]
}

/// Failure class 4: every line ends with CRLF and with nothing else.
fn broken_lines() -> Vec<Row> {
    let refused = |name, bytes: &str| row(name).class(4).rfc("9112 2.2").sends(bytes).refused(400);
    vec![
        refused(
            "a bare line feed after the request line",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
        ),
        refused(
            "a bare line feed after a field",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        ),
        refused(
            "a bare line feed at the end of the head",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
        ),
        refused("bare line feeds only", "GET / HTTP/1.1\nHost: a\n\n"),
        refused(
            "a bare carriage return in the request line",
            "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a bare carriage return in a field",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc: d\r\n\r\n",
        ),
        refused(
            "a bare carriage return for a line end",
            "GET / HTTP/1.1\rHost: a\r\r",
        ),
        refused(
            "two carriage returns before a line feed",
            "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        ),
        refused(
            "an empty line that is a bare line feed before a request",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a folded field",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        )
        .rfc("9112 5.2"),
        refused(
            "a field folded with a tab",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
        )
        .rfc("9112 5.2"),
        refused(
            "a folded line right after the request line",
            "GET / HTTP/1.1\r\n Host: b\r\nHost: a\r\n\r\n",
        )
        .rfc("9112 2.2"),
        refused(
            "space before a colon",
            "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        )
        .rfc("9112 5.1"),
        refused(
            "a tab before a colon",
            "GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n",
        )
        .rfc("9112 5.1"),
        refused(
            "space before a length's colon",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\nab",
        )
        .rfc("9112 5.1"),
        refused(
            "NUL in a field's value",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        )
        .rfc("9110 5.5"),
        refused(
            "NUL in a field's name",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
        )
        .rfc("9110 5.1"),
        refused("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n").rfc("9112 3.2"),
        refused(
            "an escape in a field's value",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[1m\r\n\r\n",
        )
        .rfc("9110 5.5"),
        refused(
            "a delete in a field's value",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
        )
        .rfc("9110 5.5"),
        refused(
            "a field without a name",
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        )
        .rfc("9112 5"),
        refused(
            "a field without a colon",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        )
        .rfc("9112 5"),
        refused(
            "a field's name with space in it",
            "GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n",
        )
        .rfc("9110 5.1"),
        refused(
            "a field's name with a parenthesis",
            "GET / HTTP/1.1\r\nHost: a\r\nX(Y: b\r\n\r\n",
        )
        .rfc("9110 5.1"),
    ]
}
