//! Backends that answer oddly: RFC 9112, 4 and 6.3. What no reader can trust becomes 502, and its connection is not used
//! again.

use crate::table::row::{End, Row, row};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = good();
    rows.extend(without_body());
    rows.extend(cut());
    rows.extend(more());
    rows.extend(interim());
    rows.extend(garbage());
    rows.extend(large());
    rows
}

/// A POST, which is not repeated whatever becomes of it, and what is answered to it.
fn answered(name: &'static str, answer: &str) -> Row {
    row(name)
        .rfc("9112 6.3")
        .sends(POST)
        .answers(answer)
        .sees("POST /\n\nx")
}

fn good() -> Vec<Row> {
    vec![
        answered("an answer in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .gets("200\ntransfer-encoding: chunked\n!content-length\n\nok"),
        answered("an answer until the connection ends", "HTTP/1.1 200 OK\r\n\r\nok").closes().gets("200\n\nok"),
        answered("an answer of HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok").closes().gets("200\n\nok"),
        answered("an answer without a reason", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok").gets("200\n\nok"),
        answered("an answer without a reason and the space before it", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok").gets("200\n\nok"),
        answered("an answer with a reason of its own", "HTTP/1.1 200 All fine, you see\r\nContent-Length: 2\r\n\r\nok").gets("200\n\nok"),
        answered("a status that nobody knows", "HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok").gets("299\n\nok"),
        answered("a status beyond the known classes", "HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nok").gets("799\n\nok"),
        answered("two fields of one name in an answer", "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok")
            .gets("200\nset-cookie: a, b\n\nok"),
        answered("bytes beyond ASCII in an answer's field", "HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 2\r\n\r\nok").gets("200\nx: \u{e9}\n\nok"),
        row("a client of HTTP/1.0 gets no chunks")
            .rfc("9112 6.1")
            .sends("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            .answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .sees("GET /")
            .gets("200\n!transfer-encoding\n\nok")
            .ends(End::Closed),
        answered("a length and chunks in an answer", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .gets("200\n!content-length\n\nok"),
    ]
}

fn without_body() -> Vec<Row> {
    let to_head = |name, answer: &str| {
        row(name)
            .rfc("9110 9.3.2")
            .head()
            .sends("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            .answers(answer)
            .sees("HEAD /")
            .ends(End::Left)
    };
    vec![
        answered("204", "HTTP/1.1 204 None\r\n\r\n")
            .gets("204\n!content-length\n!transfer-encoding\n\n"),
        answered(
            "204 with a length",
            "HTTP/1.1 204 None\r\nContent-Length: 0\r\n\r\n",
        )
        .gets("204\n!content-length\n\n"),
        answered(
            "204 with a body",
            "HTTP/1.1 204 None\r\nContent-Length: 2\r\n\r\nok",
        )
        .gets("204\n!content-length\n\n"),
        answered(
            "204 with chunks",
            "HTTP/1.1 204 None\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        )
        .gets("204\n!transfer-encoding\n\n"),
        answered(
            "304 with a length",
            "HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n",
        )
        .gets("304\n\n"),
        answered(
            "304 with a body",
            "HTTP/1.1 304 Same\r\nContent-Length: 2\r\n\r\nok",
        )
        .gets("304\n\n"),
        answered(
            "an answer of nothing",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        .gets("200\ncontent-length: 0\n\n"),
        to_head(
            "HEAD with a length",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        )
        .gets("200\ncontent-length: 9\n\n"),
        to_head(
            "HEAD with chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .gets("200\n\n"),
        to_head(
            "HEAD with a body all the same",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsomething",
        )
        .gets("200\ncontent-length: 9\n\n"),
    ]
}

/// A body that is cut short must not look whole.
fn cut() -> Vec<Row> {
    let cut = |name, answer: &str| answered(name, answer).closes().ends(End::Cut);
    vec![
        cut(
            "a body by length that is cut short",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        ),
        cut(
            "chunks that are cut short in a chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
        ),
        cut(
            "chunks that are cut short after a chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        ),
        cut(
            "chunks that are cut short before their end",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        ),
        cut(
            "a chunk without a size in an answer",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nx\r\n\r\n",
        ),
        cut(
            "a chunk longer than it says in an answer",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n0\r\n\r\n",
        ),
    ]
}

/// What follows an answer is nobody's: least of all the next client's.
fn more() -> Vec<Row> {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    vec![
        answered("bytes after an answer", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore").gets("200\n\nok"),
        answered("two answers to one request", &format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{smuggled}")).gets("200\n\nok"),
        answered("an answer in chunks and another one", &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{smuggled}"))
            .gets("200\n\nok"),
        answered("another answer after 204", &format!("HTTP/1.1 204 None\r\n\r\n{smuggled}")).gets("204"),
        row("another answer after one to HEAD")
            .rfc("9110 9.3.2")
            .head()
            .sends("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            .answers(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{smuggled}"))
            .sees("HEAD /")
            .gets("200")
            .ends(End::Left),
    ]
}

/// Ours drops interim answers but 100 and 101, and sends 100 itself.
fn interim() -> Vec<Row> {
    vec![
        answered("100 that nobody asked for", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").gets("200\n\nok"),
        answered("103", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").gets("200\n!link\n\nok"),
        answered("three interim answers", "HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .gets("200\n\nok"),
    ]
}

fn garbage() -> Vec<Row> {
    let bad = |name, answer: &str| answered(name, answer).closes().gets("502");
    let with = |name, field: &str| bad(name, &format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\nok"));
    vec![
        bad("no HTTP at all", "hello\r\n\r\n"),
        bad(
            "another protocol in an answer",
            "ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        bad(
            "a version of HTTP/2 in an answer",
            "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        bad(
            "a status of two digits",
            "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        bad(
            "a status of four digits",
            "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        bad(
            "a status of letters",
            "HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        with("a signed length in an answer", "Content-Length: +2"),
        with(
            "a length in an answer that is no number",
            "Content-Length: two",
        ),
        with(
            "two lengths in an answer",
            "Content-Length: 2\r\nContent-Length: 1",
        ),
        with("a list of lengths in an answer", "Content-Length: 2, 1"),
        with("space before a colon in an answer", "Content-Length : 2"),
        with("a field without a colon in an answer", "Content-Length"),
        with("NUL in an answer's field", "X: a\0b\r\nContent-Length: 2"),
        with(
            "a bare carriage return in an answer's field",
            "X: a\rb\r\nContent-Length: 2",
        ),
        with(
            "a folded field in an answer",
            "X: a\r\n b\r\nContent-Length: 2",
        ),
        with(
            "a name that is no token in an answer",
            "X(: a\r\nContent-Length: 2",
        ),
        with(
            "chunked and another encoding in an answer",
            "Transfer-Encoding: chunked, gzip",
        ),
        with(
            "an unknown encoding in an answer",
            "Transfer-Encoding: xchunked",
        ),
        row("an end instead of an answer")
            .rfc("9112 8")
            .sends(POST)
            .answers("")
            .closes()
            .sees("POST /\n\nx")
            .gets("503"),
        row("an end in an answer's head")
            .rfc("9112 8")
            .sends(POST)
            .answers("HTTP/1.1 200 OK\r\nX: ")
            .closes()
            .sees("POST /\n\nx")
            .gets("503"),
        row("a bare line feed in an answer")
            .rfc("9112 2.2")
            .sends(GET)
            .answers("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
            .sees("GET /")
            .gets("200\n\nok"),
    ]
}

fn large() -> Vec<Row> {
    let of_fields = |count: usize| -> String {
        let fields: String = (1..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok")
    };
    vec![
        answered("a hundred fields in an answer", &of_fields(100))
            .class(21)
            .gets("200\nx-99: 99\n\nok"),
        answered("a hundred and one fields in an answer", &of_fields(101))
            .class(21)
            .closes()
            .gets("502"),
        answered(
            "a value of 50 KB in an answer",
            &format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: {}\r\n\r\nok",
                "v".repeat(50_000)
            ),
        )
        .class(21)
        .gets("200\n\nok"),
        answered(
            "a value of 600 KB in an answer",
            &format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: {}\r\n\r\nok",
                "v".repeat(600_000)
            ),
        )
        .class(21)
        .closes()
        .gets("502"),
        answered(
            "a body of a megabyte in an answer",
            &format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
                "b".repeat(1_000_000)
            ),
        )
        .class(21)
        .gets(&format!("200\n\n{}", "b".repeat(1_000_000))),
    ]
}
