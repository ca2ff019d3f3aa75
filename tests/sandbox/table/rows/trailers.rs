//! Fields after the body: RFC 9110, 6.5 and RFC 9112, 7.1.2.

use crate::table::row::{Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = of_requests();
    rows.extend(of_responses());
    rows
}

fn post(fields: &str, trailers: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{fields}\r\n3\r\nabc\r\n0\r\n{trailers}\r\n"
    )
}

fn of_requests() -> Vec<Row> {
    let refused = |name, trailers: &str| {
        row(name)
            .class(1)
            .rfc("9110 6.5.1")
            .sends(post("", trailers))
            .partly()
            .refused(400)
    };
    vec![
        row("a trailer that is declared")
            .rfc("9110 6.6.2")
            .sends(post("Trailer: x-sum\r\n", "X-Sum: 7\r\n"))
            .sees("POST /\ntrailer: x-sum\n\nabc")
            .sees_trailer("x-sum: 7")
            .gets("200\n\nok"),
        row("two trailers that are declared")
            .rfc("9110 6.6.2")
            .sends(post(
                "Trailer: x-sum, x-more\r\n",
                "X-Sum: 7\r\nX-More: 8\r\n",
            ))
            .sees("POST /\n\nabc")
            .sees_trailer("x-sum: 7")
            .sees_trailer("x-more: 8")
            .gets("200\n\nok"),
        row("a trailer that is not declared")
            .rfc("9110 6.5.1")
            .sends(post("", "X-Sum: 7\r\n"))
            .sees("POST /\n\nabc")
            .gets("200\n\nok"),
        row("a trailer that is declared and does not come")
            .rfc("9110 6.6.2")
            .sends(post("Trailer: x-sum\r\n", ""))
            .sees("POST /\n\nabc")
            .gets("200\n\nok"),
        row("an authorization as trailer")
            .class(12)
            .rfc("9110 6.5.1")
            .sends(post("Trailer: authorization\r\n", "Authorization: x\r\n"))
            .sees("POST /\n!authorization\n\nabc")
            .gets("200\n\nok"),
        row("a certificate of its own making as trailer")
            .class(12)
            .rfc("9110 6.5.1")
            .sends(post(
                "Trailer: x-forwarded-client-cert\r\n",
                "X-Forwarded-Client-Cert: x\r\n",
            ))
            .partly()
            .refused(400),
        refused(
            "what Envoy tells an app as trailer",
            "X-Envoy-Internal: true\r\n",
        )
        .class(12),
        refused("a length as trailer", "Content-Length: 3\r\n"),
        refused("an encoding as trailer", "Transfer-Encoding: chunked\r\n"),
        refused("a host as trailer", "Host: b\r\n"),
        refused("a trailer without a colon", "X\r\n").class(4),
        refused("space before a trailer's colon", "X : 1\r\n").class(4),
        refused("a bare line feed after a trailer", "X: 1\n").class(4),
        refused("a folded trailer", "X: 1\r\n 2\r\n").class(4),
        refused("NUL in a trailer", "X: \0\r\n").class(4),
    ]
}

fn of_responses() -> Vec<Row> {
    let answer = |fields: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{fields}\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
        )
    };
    let asks = "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n";
    vec![
        row("a trailer of an answer that is declared and wanted")
            .rfc("9110 6.5")
            .sends(asks)
            .answers(answer("Trailer: x-sum\r\n"))
            .sees("GET /")
            .gets("200\ntrailer: x-sum\n\nok")
            .gets_trailer("x-sum: 7"),
        row("a trailer of an answer that is wanted and not declared")
            .rfc("9110 6.5.1")
            .sends(asks)
            .answers(answer(""))
            .sees("GET /")
            .gets("200\n\nok"),
        row("a trailer of an answer that nobody wants")
            .rfc("9110 6.5.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .answers(answer("Trailer: x-sum\r\n"))
            .sees("GET /")
            .gets("200\n\nok"),
    ]
}
