//! What belongs to one hop, and how long a connection goes on: RFC 9110, 7.6 and RFC 9112, 9. Failure class 12 beside.

use crate::table::row::{End, Listener, Row, row};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = hop_by_hop();
    rows.extend(persistence());
    rows.extend(spoofed());
    rows
}

fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

fn hop_by_hop() -> Vec<Row> {
    let passes = |name, fields: &str, sees: &str| {
        row(name)
            .rfc("9110 7.6.1")
            .sends(with(fields))
            .sees(&format!("GET /\n{sees}"))
            .gets("200\n\nok")
    };
    vec![
        passes("a field that connection names", "Connection: x-a\r\nX-A: 1\r\nX-B: 2", "!x-a\n!connection\nx-b: 2"),
        passes("fields that connection names in a list", "Connection: x-a , X-B,,x-c\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3", "!x-a\n!x-b\n!x-c"),
        passes("fields that two connections name", "Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2", "!x-a\n!x-b"),
        passes("keep-alive", "Connection: keep-alive\r\nKeep-Alive: timeout=5", "!connection\n!keep-alive"),
        passes("keep-alive of a proxy", "Proxy-Connection: keep-alive", "!proxy-connection"),
        passes("encodings that only the hop takes", "TE: gzip, trailers;q=0.5\r\nConnection: TE", "te: trailers\nconnection: te"),
        passes("encodings without trailers", "TE: gzip\r\nConnection: TE", "!te\n!connection"),
        passes("an authorization named in connection", "Connection: authorization\r\nAuthorization: x", "!authorization"),
        passes("one name many times", "X-A: 1\r\nX-A: 2\r\nx-a: 3", "x-a: 1, 2, 3"),
        passes("an empty value", "X-A:\r\nX-B:   ", "x-a: \nx-b: "),
        passes("a name with every character of a token", "!#$%&'*+-.^_`|~aZ0: 1", "!#$%&'*+-.^_`|~aZ0: 1"),
        passes("a name with an underscore", "x_a: 1", "x_a: 1"),
        passes("bytes beyond ASCII in a value", "X-A: \u{e9}", "x-a: \u{e9}"),
        passes("quotes and commas in a value", "X-A: \"a, b\", c", "x-a: \"a, b\", c"),
        passes("a date", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT"),
        passes("two cookies", "Cookie: a=1\r\nCookie: b=2", "cookie: a=1, b=2"),
        row("a field of its hop in an answer")
            .rfc("9110 7.6.1")
            .sends(with("X-A: 1"))
            .answers("HTTP/1.1 200 OK\r\nConnection: x-a, keep-alive\r\nX-A: 1\r\nX-B: 2\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok")
            .sees("GET /\nx-a: 1")
            .gets("200\n!x-a\n!keep-alive\nx-b: 2\n\nok"),
        row("the backend that closes does not close the client's connection")
            .rfc("9112 9.6")
            .sends(with("X-A: 1"))
            .answers("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            .closes()
            .sees("GET /")
            .gets("200\n!connection\n\nok"),
    ]
}

fn persistence() -> Vec<Row> {
    vec![
        row("a client that closes")
            .rfc("9112 9.6")
            .sends(with("Connection: close"))
            .sees("GET /\n!connection")
            .gets("200\nconnection: close\n\nok")
            .ends(End::Closed),
        row("a client that closes, in capitals and in a list")
            .rfc("9110 7.6.1")
            .sends(with("Connection: x-a, CLOSE"))
            .sees("GET /\n!connection")
            .gets("200\nconnection: close\n\nok")
            .ends(End::Closed),
        row("what comes after close is nobody's")
            .rfc("9112 9.6")
            .sends(format!("{}{}", with("Connection: close"), with("X-A: 1")))
            .sees("GET /\n!x-a")
            .gets("200\n\nok")
            .ends(End::Closed),
        row("a client of HTTP/1.0 does not keep alive what it does not ask for")
            .rfc("9112 9.3")
            .sends("GET / HTTP/1.0\r\nHost: a\r\nConnection: x\r\n\r\nGET /2 HTTP/1.0\r\nHost: a\r\n\r\n")
            .sees("GET /")
            .gets("200\n\nok")
            .ends(End::Closed),
    ]
}

/// What only a proxy may say, said by a client without a certificate.
fn spoofed() -> Vec<Row> {
    let inbound = |name, field: &str, sees: &str| {
        row(name)
            .class(12)
            .rfc("7239 8.1")
            .only(Listener::Inbound)
            .sends(with(field))
            .sees(&format!("GET /\n{sees}"))
            .gets("200\n\nok")
    };
    vec![
        inbound(
            "a certificate of its own making",
            "X-Forwarded-Client-Cert: By=x;URI=spiffe://cluster.local/ns/a/sa/admin",
            "!x-forwarded-client-cert",
        ),
        inbound(
            "two certificates of its own making",
            "X-Forwarded-Client-Cert: a\r\nx-forwarded-client-cert: b",
            "!x-forwarded-client-cert",
        ),
        inbound(
            "a way of its own making",
            "X-Forwarded-For: 1.2.3.4",
            "x-forwarded-for: not 1.2.3.4",
        ),
        inbound(
            "a request id of its own making",
            "X-Request-Id: mine",
            "x-request-id: not mine",
        ),
        inbound(
            "a way of its own making in the words of the standard",
            "Forwarded: for=1.2.3.4;proto=https",
            "!forwarded",
        ),
        inbound(
            "how an ingress that nobody spoke of was reached",
            "X-Forwarded-Host: b\r\nX-Forwarded-Proto: https\r\nx-forwarded-port: 443\r\nX-FORWARDED-PREFIX: /a\r\nx-forwarded-scheme: https",
            "!x-forwarded-host\n!x-forwarded-proto\n!x-forwarded-port\n!x-forwarded-prefix\n!x-forwarded-scheme",
        ),
        inbound(
            "what else a proxy that is none says of the way",
            "X-Forwarded-Server: b\r\nx-forwarded-network: c",
            "!x-forwarded-server\n!x-forwarded-network",
        ),
        inbound(
            "what Envoy tells an app",
            "X-Envoy-Internal: true\r\nX-Envoy-External-Address: 10.0.0.1\r\nx-envoy-peer-metadata: x",
            "!x-envoy-internal\n!x-envoy-external-address\n!x-envoy-peer-metadata",
        ),
        inbound(
            "what Envoy is told to do",
            "x-envoy-max-retries: 100\r\nx-envoy-retry-on: 5xx\r\nx-envoy-upstream-rq-timeout-ms: 1\r\nx-envoy-original-dst-host: 10.0.0.1:1",
            "!x-envoy-max-retries\n!x-envoy-retry-on\n!x-envoy-upstream-rq-timeout-ms\n!x-envoy-original-dst-host",
        ),
        inbound(
            "what Linkerd tells an app, and is told",
            "l5d-client-id: a.b.serviceaccount.identity.linkerd.cluster.local\r\nL5d-Dst-Override: b:80\r\nl5d-retry-limit: 100",
            "!l5d-client-id\n!l5d-dst-override\n!l5d-retry-limit",
        ),
        inbound(
            "names that only look like a proxy's",
            "x-forwarded: 1\r\nx-envoys: 2\r\nl5dx: 3\r\nmy-x-envoy-internal: 4",
            "x-forwarded: 1\nx-envoys: 2\nl5dx: 3\nmy-x-envoy-internal: 4",
        ),
        row("an app that says that a sidecar has refused for it")
            .class(12)
            .rfc("9110 7.6.1")
            .only(Listener::Inbound)
            .sends(with("X-A: 1"))
            .answers(
                "HTTP/1.1 200 OK\r\nx-tulle-failed-hop: outbound\r\nContent-Length: 2\r\n\r\nok",
            )
            .sees("GET /")
            .gets("200\n!x-tulle-failed-hop\n\nok"),
        row("the mark that a request was not processed")
            .class(12)
            .rfc("9110 7.6.1")
            .sends(with("x-tulle-unprocessed: 1"))
            .sees("GET /\n!x-tulle-unprocessed")
            .gets("200\n\nok"),
        row("an app that says that its answer is none")
            .class(12)
            .rfc("9110 7.6.1")
            .sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
            .answers("HTTP/1.1 503 Busy\r\nx-tulle-unprocessed: 1\r\nContent-Length: 2\r\n\r\nno")
            .sees("POST /\n\nx")
            .gets("503\n!x-tulle-unprocessed\n\nno"),
    ]
}
