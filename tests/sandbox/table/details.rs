//! Where the oracles make the same of a row as we do, and yet not in all details: what they do is a line as
//! [`super::outcome`] makes it of statuses, the end of the client's connection, and the fields of each request.

use super::deviations::Deviation;

/// So do both.
const FOR_PROXIES: Deviation = (
    "it does not know what only other proxies may say",
    &[
        (
            "a way of its own making in the words of the standard",
            "200 open | host: a, forwarded",
        ),
        (
            "what Linkerd tells an app, and is told",
            "200 open | host: a, l5d-client-id, l5d-dst-override, l5d-retry-limit",
        ),
        (
            "the mark that a request was not processed",
            "200 open | host: a, x-tulle-unprocessed",
        ),
    ],
);

pub(crate) const ENVOY: &[Deviation] = &[
    (
        "it says of a body that there is none, as RFC 9110, 8.6 permits",
        &[
            (
                "a POST without a length has no body",
                "200 open | host: a, content-length: 0",
            ),
            (
                "a length under another name",
                "200 open | host: a, content-length: 0, content_length",
            ),
            (
                "an encoding under another name",
                "200 open | host: a, content-length: 0, transfer_encoding",
            ),
            (
                "OPTIONS in absolute form without a path",
                "200 open | host: a, content-length: 0",
            ),
            (
                "a method of WebDAV",
                "200 open | host: a, content-length: 0",
            ),
            (
                "PATCH without a body",
                "200 open | host: a, content-length: 0",
            ),
            (
                "what a browser asks before gRPC-Web",
                "204 open | host: a, content-length: 0, access-control-request-headers, access-control-request-method, origin",
            ),
        ],
    ),
    (
        "it takes a length that Connection names for one of the hop, and frames the body anew",
        &[(
            "a length named in connection stays",
            "200 open | host: a, transfer-encoding: chunked",
        )],
    ),
    (
        "it answers 501 to codings that it does not know, as RFC 9112, 6.1 permits; ours are all 400",
        &[
            ("an unknown encoding", "501 closed"),
            ("an encoding that is chunked with more", "501 closed"),
            ("identity", "501 closed"),
            ("chunked, then identity", "501 closed"),
            ("identity, then chunked", "501 closed"),
            ("gzip, then chunked", "501 closed"),
            ("chunked, then gzip", "501 closed"),
            ("chunked twice in a list", "501 closed"),
            ("chunked twice", "501 closed"),
            ("identity and chunked on two lines", "501 closed"),
            ("chunked and an unknown one on two lines", "501 closed"),
            ("an empty encoding", "501 closed"),
            ("chunked with a parameter", "501 closed"),
            ("chunked in quotes", "501 closed"),
            ("a comma before chunked", "501 closed"),
            ("a comma after chunked", "501 closed"),
            ("a byte beyond ASCII after chunked", "501 closed"),
        ],
    ),
    FOR_PROXIES,
    (
        "it knows another status for what it does not serve",
        &[
            ("CONNECT, and a request behind it", "404 closed"),
            (
                "CONNECT with a length, and a request behind it",
                "404 closed",
            ),
            ("CONNECT to a path", "400 closed"),
            ("CONNECT to a host without a port", "400 closed"),
            (
                "an answer made here to a request with a body that looks like a request",
                "400 closed",
            ),
        ],
    ),
    (
        "it passes an expectation that it does not know (RFC 9110, 10.1.1 has 417 for it)",
        &[(
            "an expectation that is spelt oddly, and a body that looks like a request",
            "200 open | host: a, content-length: 35, expect",
        )],
    ),
    (
        "it answers 502 where an app breaks off before its answer; ours is 503, which a client may take as a reason to come again",
        &[(
            "an end in an answer's head",
            "502 open | host: a, content-length: 1",
        )],
    ),
    (
        "it knows another status for what is too large",
        &[
            ("a target of 65 KB", "431 closed"),
            ("a target of a megabyte that never ends", "431 closed"),
            ("trailers of 70 KB", "431 closed"),
            ("two hundred trailers", "431 closed"),
        ],
    ),
];

pub(crate) const NGINX: &[Deviation] = &[
    (
        "it writes a length anew",
        &[(
            "a length with zeros before it",
            "200 open | host: a, content-length: 3",
        )],
    ),
    (
        "it drops fields whose names have underscores or odd characters",
        &[
            ("a length under another name", "200 open | host: a"),
            ("an encoding under another name", "200 open | host: a"),
            (
                "a name with every character of a token",
                "200 open | host: a",
            ),
            ("a name with an underscore", "200 open | host: a"),
        ],
    ),
    (
        "it answers 501 to codings that it does not know, as RFC 9112, 6.1 permits; ours are all 400",
        &[
            ("a length, then an unknown encoding", "501 closed"),
            ("a length, then an empty encoding", "501 closed"),
            ("a length, then identity", "501 closed"),
            ("an unknown encoding", "501 closed"),
            ("an encoding that is chunked with more", "501 closed"),
            ("identity", "501 closed"),
            ("chunked, then identity", "501 closed"),
            ("identity, then chunked", "501 closed"),
            ("gzip, then chunked", "501 closed"),
            ("chunked, then gzip", "501 closed"),
            ("chunked twice in a list", "501 closed"),
            ("an empty encoding", "501 closed"),
            ("chunked with a parameter", "501 closed"),
            ("chunked in quotes", "501 closed"),
            ("a comma before chunked", "501 closed"),
            ("a comma after chunked", "501 closed"),
            ("a vertical tab before chunked", "501 closed"),
            ("a form feed before chunked", "501 closed"),
            ("a byte beyond ASCII after chunked", "501 closed"),
        ],
    ),
    (
        "it reads the whole body first, and says how long it is (RFC 9112, 6.3 permits either)",
        &[
            ("a chunk", "200 open | host: a, content-length: 3"),
            ("two chunks", "200 open | host: a, content-length: 5"),
            ("no chunk", "200 open | host: a, content-length: 0"),
            (
                "a size in capitals and small letters",
                "200 open | host: a, content-length: 20",
            ),
            (
                "sizes with zeros before them",
                "200 open | host: a, content-length: 3",
            ),
            ("an extension", "200 open | host: a, content-length: 3"),
            (
                "an extension in quotes",
                "200 open | host: a, content-length: 3",
            ),
            (
                "space before an extension",
                "200 open | host: a, content-length: 3",
            ),
            (
                "a chunk that looks like chunks",
                "200 open | host: a, content-length: 7",
            ),
            (
                "an encoding in capitals",
                "200 open | host: a, content-length: 3",
            ),
            (
                "an encoding without space before it",
                "200 open | host: a, content-length: 3",
            ),
            (
                "an encoding named in connection",
                "200 open | host: a, content-length: 3",
            ),
            ("chunks in pieces", "200 open | host: a, content-length: 3"),
            ("a GET in chunks", "200 open | host: a, content-length: 3"),
            (
                "chunks, then a second request",
                "200,200 open | host: a, content-length: 3 | host: a",
            ),
            (
                "a body in chunks that waits for leave",
                "100,200 open | host: a, content-length: 3",
            ),
            (
                "a trailer that is declared",
                "200 open | host: a, content-length: 3, trailer",
            ),
            (
                "two trailers that are declared",
                "200 open | host: a, content-length: 3, trailer",
            ),
            (
                "a trailer that is not declared",
                "200 open | host: a, content-length: 3",
            ),
            (
                "a trailer that is declared and does not come",
                "200 open | host: a, content-length: 3, trailer",
            ),
            (
                "an authorization as trailer",
                "200 open | host: a, content-length: 3, trailer",
            ),
            (
                "chunks between requests",
                "200,200,200 open | host: a | host: a, content-length: 3 | host: a",
            ),
            (
                "a thousand small chunks",
                "200 open | host: a, content-length: 1000",
            ),
        ],
    ),
    (
        "it says that it does not know the version, as RFC 9110, 15.6.6 permits",
        &[("HTTP/2.0 on a connection of HTTP/1", "505 closed")],
    ),
    (
        "it sends the client's Host, not that of the target, against RFC 9112, 3.2.2",
        &[
            (
                "a target in absolute form for another host",
                "200 open | host: a",
            ),
            (
                "a target in absolute form with a port",
                "200 open | host: a",
            ),
        ],
    ),
    (
        "it does not take out what Connection names, nor other fields of a hop, against RFC 9110, 7.6.1",
        &[
            (
                "a field that connection names",
                "200 open | host: a, x-a, x-b",
            ),
            (
                "fields that connection names in a list",
                "200 open | host: a, x-a, x-b, x-c",
            ),
            (
                "fields that two connections name",
                "200 open | host: a, x-a, x-b",
            ),
            (
                "keep-alive of a proxy",
                "200 open | host: a, proxy-connection",
            ),
            (
                "an authorization named in connection",
                "200 open | host: a, authorization",
            ),
            (
                "an upgrade to h2c is not passed on",
                "200 open | host: a, http2-settings",
            ),
        ],
    ),
    FOR_PROXIES,
    (
        "it passes no upgrade unless it is configured for that alone",
        &[
            ("an upgrade", "101 | host: a"),
            ("early data before an upgrade waits for it", "101 | host: a"),
            (
                "early data before an upgrade that is declined is another request",
                "200,200 open | host: a | host: a",
            ),
            (
                "early data before an upgrade that is declined is looked at",
                "200,400 closed | host: a",
            ),
            (
                "an upgrade with a body that is declined",
                "200 open | host: a, content-length: 3",
            ),
        ],
    ),
    (
        "it knows another status for what it does not serve",
        &[
            ("CONNECT, and a request behind it", "400 closed"),
            (
                "CONNECT with a length, and a request behind it",
                "400 closed",
            ),
            ("CONNECT to a host without a port", "400 closed"),
            (
                "an answer made here to a request with a body that looks like a request",
                "400 closed",
            ),
        ],
    ),
    (
        "it answers 502 where an app breaks off before its answer; ours is 503, which a client may take as a reason to come again",
        &[
            (
                "an end instead of an answer",
                "502 open | host: a, content-length: 1",
            ),
            (
                "an end in an answer's head",
                "502 open | host: a, content-length: 1",
            ),
        ],
    ),
    (
        "it knows another status for what is too large",
        &[
            ("ten thousand fields", "400 closed"),
            ("a list of 80 KB", "400 closed"),
            ("a value of 70 KB", "400 closed"),
            ("a name of 70 KB", "400 closed"),
            ("a method of 70 KB", "414 closed"),
            ("a head that never ends", "400 closed"),
        ],
    ),
];
