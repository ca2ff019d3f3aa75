//! Several requests on one connection, sent before the answers: RFC 9112, 9.3.2.

use crate::table::row::{End, Row, row};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn post(target: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn answer(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn rows() -> Vec<Row> {
    vec![
        row("three requests in one piece are answered in order")
            .rfc("9112 9.3.2")
            .sends(format!("{}{}{}", get("/1"), post("/2", "two"), get("/3")))
            .answers(answer("one"))
            .answers(answer("two"))
            .answers(answer("three"))
            .sees("GET /1")
            .sees("POST /2\n\ntwo")
            .sees("GET /3")
            .gets("200\n\none")
            .gets("200\n\ntwo")
            .gets("200\n\nthree"),
        row("chunks between requests")
            .rfc("9112 9.3.2")
            .sends(format!("{}POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n{}", get("/1"), get("/3")))
            .sees("GET /1")
            .sees("POST /2\n\ntwo")
            .sees("GET /3")
            .gets("200\n\nok")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("empty lines between requests")
            .rfc("9112 2.2")
            .sends(format!("{}\r\n{}", get("/1"), get("/2")))
            .sees("GET /1")
            .sees("GET /2")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("a request in pieces behind another")
            .rfc("9112 9.3.2")
            .sends(format!("{}GET /2 HT", get("/1")))
            .hears(1)
            .sends("TP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /1")
            .sees("GET /2")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("a bad request behind a good one")
            .rfc("9112 9.3.2")
            .sends(format!("{}GET /2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", get("/1")))
            .sees("GET /1")
            .gets("200\n\nok")
            .refused(400),
        row("a good request behind a bad one is not looked at")
            .rfc("9112 9.3.2")
            .sends(format!("GET /1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{}", get("/2")))
            .refused(400),
        row("a good request behind a bad chunk is not looked at")
            .class(6)
            .rfc("9112 9.3.2")
            .sends(format!("POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{}", get("/2")))
            .partly()
            .refused(400),
        row("the last of several closes")
            .rfc("9112 9.6")
            .sends(format!("{}GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{}", get("/1"), get("/3")))
            .sees("GET /1")
            .sees("GET /2")
            .gets("200\n\nok")
            .gets("200\n\nok")
            .ends(End::Closed),
        row("a slow answer does not let a quick one overtake it")
            .rfc("9112 9.3.2")
            .sends(format!("{}{}", post("/1", "x"), get("/2")))
            .answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
            .answers(answer("two"))
            .sees("POST /1\n\nx")
            .sees("GET /2")
            .gets("200\n\nab")
            .gets("200\n\ntwo"),
    ]
}
