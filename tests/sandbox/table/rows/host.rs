//! Whom a request is for: RFC 9110, 7.2 and RFC 9112, 3.2. Failure class 8.

use crate::table::row::{Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = good();
    rows.extend(refused());
    rows
}

fn host(value: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost:{value}\r\n\r\n")
}

fn good() -> Vec<Row> {
    let passes = |name, value: &str| {
        row(name)
            .class(8)
            .rfc("9110 7.2")
            .sends(host(&format!(" {value}")))
            .sees(&format!("GET /\nhost: {value}"))
            .gets("200\n\nok")
    };
    vec![
        passes("a host with a port", "a.b:8080"),
        passes("a host with an empty port", "a:"),
        passes("a host in capitals", "A.Example"),
        passes("a host with an underscore", "a_b.c"),
        passes("an address of IPv4", "10.1.2.3:80"),
        passes("an address of IPv6", "[::1]:8080"),
        passes("a host that ends with a dot", "a.b."),
        row("a host without space before it")
            .class(8)
            .rfc("9112 5.1")
            .sends(host("a"))
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
        row("an empty host")
            .class(8)
            .rfc("9112 3.2")
            .sends(host(""))
            .sees("GET /")
            .gets("200\n\nok"),
        row("a target in absolute form for another host")
            .class(8)
            .rfc("9112 3.2.2")
            .sends("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /x\nhost: b")
            .gets("200\n\nok"),
        row("a target in absolute form with a scheme in capitals")
            .class(8)
            .rfc("9110 4.2.3")
            .sends("GET HTTP://a/x HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /x\nhost: a")
            .gets("200\n\nok"),
        row("a target in absolute form with a port")
            .class(8)
            .rfc("9112 3.2.2")
            .sends("GET http://a:81/x HTTP/1.1\r\nHost: a\r\n\r\n")
            .sees("GET /x\nhost: a:81")
            .gets("200\n\nok"),
        row("a host named in connection stays")
            .class(8)
            .rfc("9110 7.6.1")
            .sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n")
            .sees("GET /\nhost: a")
            .gets("200\n\nok"),
    ]
}

fn refused() -> Vec<Row> {
    [
        ("no host", "GET / HTTP/1.1\r\n\r\n", "9112 3.2"),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "9112 3.2",
        ),
        (
            "one host twice",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            "9112 3.2",
        ),
        (
            "no host with a target in absolute form",
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "9112 3.2",
        ),
        (
            "two hosts in HTTP/1.0",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            "9112 3.2",
        ),
        (
            "a host with a user",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a path",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a scheme",
            "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with space in it",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a list of hosts",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a port that is no number",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with two ports",
            "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a query",
            "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a fragment",
            "GET / HTTP/1.1\r\nHost: a#b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host with a backslash",
            "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a host beyond ASCII",
            "GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a bracket that is not closed",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "9110 7.2",
        ),
        (
            "a user in the target",
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "9110 4.2.4",
        ),
        (
            "a target in absolute form without a host",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
            "9110 4.2.1",
        ),
        (
            "a target of another scheme",
            "GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "9110 7.4",
        ),
    ]
    .into_iter()
    .map(|(name, bytes, rfc)| row(name).class(8).rfc(rfc).sends(bytes).refused(400))
    .collect()
}
