//! Other protocols on the same connection, and bodies that wait for leave: RFC 9110, 7.8, 9.3.6 and 10.1.1. Failure
//! classes 5 and 6.

use crate::table::row::{End, Row, row};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = upgrades();
    rows.extend(connects());
    rows.extend(expectations());
    rows.extend(unread_bodies());
    rows
}

fn upgrades() -> Vec<Row> {
    vec![
        row("an upgrade")
            .class(5)
            .rfc("9110 7.8")
            .sends(UPGRADE)
            .answers(format!("{SWITCHED}hello"))
            .hears(1)
            .sends("bye")
            .sees("GET /chat\nupgrade: websocket\nconnection: upgrade")
            .gets("101\nupgrade: websocket\nconnection: upgrade")
            .ends(End::Tunnel { client: "hello", backend: "bye" }),
        row("early data before an upgrade waits for it")
            .class(5)
            .rfc("9110 7.8")
            .sends(format!("{UPGRADE}{SMUGGLED}"))
            .answers(format!("{SWITCHED}hello"))
            .sees("GET /chat")
            .gets("101")
            .ends(End::Tunnel { client: "hello", backend: SMUGGLED }),
        row("early data before an upgrade that is declined is another request")
            .class(5)
            .rfc("9110 7.8")
            .sends(format!("{UPGRADE}{SMUGGLED}"))
            .sees("GET /chat")
            .sees("GET /smuggled")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("early data before an upgrade that is declined is looked at")
            .class(5)
            .rfc("9110 7.8")
            .sends(format!("{UPGRADE}\x01\x02\x03\r\n\r\n"))
            .sees("GET /chat")
            .gets("200\n\nok")
            .refused(400),
        row("an upgrade with a body that is declined")
            .class(5)
            .rfc("9110 7.8")
            .sends("POST /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc")
            .sees("POST /chat\n\nabc")
            .gets("200\n\nok"),
        row("an upgrade that connection does not name")
            .class(5)
            .rfc("9110 7.8")
            .sends("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n")
            .sees("GET /chat\n!upgrade")
            .gets("200\n\nok"),
        row("an upgrade to h2c is not passed on")
            .class(5)
            .rfc("9113 3.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
            .sees("GET /\n!upgrade\n!http2-settings")
            .gets("200\n\nok"),
        row("a switch that nobody asked for")
            .class(5)
            .rfc("9110 7.8")
            .sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .answers(format!("{SWITCHED}hello"))
            .sees("GET /")
            .gets("502"),
    ]
}

fn connects() -> Vec<Row> {
    let refused = |name, bytes: &str| {
        row(name)
            .class(5)
            .rfc("9110 9.3.6")
            .sends(format!("{bytes}{SMUGGLED}"))
            .refused(501)
    };
    vec![
        refused(
            "CONNECT, and a request behind it",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "CONNECT with a length, and a request behind it",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        ),
        row("CONNECT to a path")
            .class(5)
            .rfc("9112 3.2.3")
            .sends("CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n")
            .refused(501),
        row("CONNECT to a host without a port")
            .class(5)
            .rfc("9112 3.2.3")
            .sends("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n")
            .refused(501),
    ]
}

fn expectations() -> Vec<Row> {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    vec![
        row("a body that waits for leave")
            .class(5)
            .rfc("9110 10.1.1")
            .sends(head)
            .hears(1)
            .sends("abc")
            .sees("POST /\n!expect\n\nabc")
            .gets("100")
            .gets("200\n\nok"),
        row("a body in chunks that waits for leave")
            .class(5)
            .rfc("9110 10.1.1")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n")
            .hears(1)
            .sends("3\r\nabc\r\n0\r\n\r\n")
            .sees("POST /\n!expect\n\nabc")
            .gets("100")
            .gets("200\n\nok"),
        row("a client of HTTP/1.0 gets no interim answer")
            .class(5)
            .rfc("9110 10.1.1")
            .sends("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
            .reaches(1)
            .sees("POST /\n!expect\n\nabc")
            .gets("200\n\nok")
            .ends(End::Closed),
        row("an expectation without a body")
            .class(5)
            .rfc("9110 10.1.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
            .reaches(1)
            .sees("GET /\n!expect")
            .gets("200\n\nok"),
        row("leave with a length of nothing, and a request behind it")
            .class(5)
            .rfc("9110 10.1.1")
            .sends(format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n{SMUGGLED}"))
            .sees("POST /\n!expect")
            .sees("GET /smuggled")
            .gets("200\n\nok")
            .gets("200\n\nok"),
        row("an expectation that is spelt oddly, and a body that looks like a request")
            .class(5)
            .rfc("9110 10.1.1")
            .sends(format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: y 100-continue\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()))
            .sees(&format!("POST /\n!expect\n\n{SMUGGLED}"))
            .gets("200\n\nok"),
    ]
}

/// The answer comes before the body has been read: what is left of it is never a request.
fn unread_bodies() -> Vec<Row> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        SMUGGLED.len()
    );
    vec![
        row("a refusal before the body, which then looks like a request")
            .class(6)
            .rfc("9112 9.3")
            .sends(&head)
            .answers("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
            .early()
            .hears(1)
            .sends(SMUGGLED)
            .partly()
            .gets("403\nconnection: close\n\nno")
            .ends(End::Closed),
        row("a refusal before the body, and the backend closes")
            .class(6)
            .rfc("9112 9.3")
            .sends(&head)
            .answers("HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            .early()
            .closes()
            .hears(1)
            .sends(SMUGGLED)
            .partly()
            .gets("403\n\nno")
            .ends(End::Left),
        row("a refusal before chunks, which then look like a request")
            .class(6)
            .rfc("9112 9.3")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            .answers("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
            .early()
            .hears(1)
            .sends(format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len()))
            .partly()
            .gets("403\nconnection: close\n\nno")
            .ends(End::Closed),
        row("an answer made here to a request with a body that looks like a request")
            .class(6)
            .rfc("9112 9.3")
            .sends(format!(
                "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
                SMUGGLED.len()
            ))
            .refused(501),
        row("HEAD with a body that looks like a request")
            .class(6)
            .rfc("9110 9.3.2")
            .head()
            .sends(format!(
                "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
                SMUGGLED.len()
            ))
            .answers("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
            .sees(&format!("HEAD /\n\n{SMUGGLED}"))
            .gets("200\ncontent-length: 9")
            .ends(End::Left),
    ]
}
