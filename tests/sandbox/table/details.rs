//! Where the oracles make the same of a row as we do, and yet not in all details: what they do is a line as
//! [`super::outcome`] makes it of statuses, the end of the client's connection, and the fields of each request.

use super::deviations::Deviation;

/// So do both.
const FOR_PROXIES: Deviation = (
    "it forwards fields that it does not know, as RFC 9110, 5.1 asks (7239, 4 permits to take Forwarded out)",
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

const UNKNOWN_CODING: &str =
    "it answers 501 to a coding that it does not know, as RFC 9112, 6.1 asks; ours are all 400";
const NOT_CHUNKED: &str =
    "it answers 501 where the last coding is not chunked, for which RFC 9112, 6.3 wants 400";
const CHUNKED_WITH_MORE: &str = "it answers 501 to chunked twice or with a parameter, errors by RFC 9112, 6.1 and 7.1, and to empty elements, \
     which RFC 9110, 5.6.1.2 wants ignored; ours are all 400, so that no other reader can take them otherwise";
const TE: &str = "it forwards that trailers are wanted, or leaves it out, and does not name TE in Connection as RFC 9110, 10.1.4 wants";
const CONNECTS: &str = "it has another status for CONNECT, which RFC 9110, 9.3.6 leaves to each; ours is that of a method nobody has (15.6.2)";

pub(crate) const ENVOY: &[Deviation] = &[
    (
        "it says that there is no body where one would have a meaning, as RFC 9110, 8.6 asks; nothing means the same (9112, 6.3)",
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
                "a method of WebDAV",
                "200 open | host: a, content-length: 0",
            ),
            (
                "PATCH without a body",
                "200 open | host: a, content-length: 0",
            ),
        ],
    ),
    (
        "it says so of OPTIONS as well, for whose body RFC 9110, 9.3.7 has no use",
        &[
            (
                "OPTIONS in absolute form without a path",
                "200 open | host: a, content-length: 0",
            ),
            (
                "what a browser asks before gRPC-Web",
                "204 open | host: a, content-length: 0, access-control-request-headers, access-control-request-method, origin",
            ),
        ],
    ),
    (
        "it takes out a length that Connection names, as RFC 9110, 7.6.1 says, and frames the body anew; ours says the length itself (8.6)",
        &[(
            "a length named in connection stays",
            "200 open | host: a, transfer-encoding: chunked",
        )],
    ),
    (
        UNKNOWN_CODING,
        &[
            ("identity, then chunked", "501 closed"),
            ("gzip, then chunked", "501 closed"),
            ("identity and chunked on two lines", "501 closed"),
        ],
    ),
    (
        NOT_CHUNKED,
        &[
            ("an unknown encoding", "501 closed"),
            ("an encoding that is chunked with more", "501 closed"),
            ("identity", "501 closed"),
            ("chunked, then identity", "501 closed"),
            ("chunked, then gzip", "501 closed"),
            ("chunked and an unknown one on two lines", "501 closed"),
            ("an empty encoding", "501 closed"),
            ("chunked in quotes", "501 closed"),
            ("a byte beyond ASCII after chunked", "501 closed"),
        ],
    ),
    (
        CHUNKED_WITH_MORE,
        &[
            ("chunked twice in a list", "501 closed"),
            ("chunked twice", "501 closed"),
            ("chunked with a parameter", "501 closed"),
            ("a comma before chunked", "501 closed"),
            ("a comma after chunked", "501 closed"),
        ],
    ),
    FOR_PROXIES,
    (
        CONNECTS,
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
        "it passes an expectation that it does not know, and ours takes it out; RFC 9110, 10.1.1 permits 417 and asks for nothing",
        &[(
            "an expectation that is spelt oddly, and a body that looks like a request",
            "200 open | host: a, content-length: 35, expect",
        )],
    ),
    (
        "it answers 502 where an app breaks off in its answer's head, as RFC 9110, 15.6.3 has it; ours takes that for one that said nothing, to which both say 503",
        &[(
            "an end in an answer's head",
            "502 open | host: a, content-length: 1",
        )],
    ),
    (
        "it says 431 of a target that is too long, where RFC 9112, 3 wants 414, and of trailers, to which RFC 9110, 5.4 wants any 4xx",
        &[
            ("a target of 65 KB", "431 closed"),
            ("a target of a megabyte that never ends", "431 closed"),
            ("trailers of 70 KB", "431 closed"),
            ("two hundred trailers", "431 closed"),
        ],
    ),
    (
        TE,
        &[
            ("encodings that only the hop takes", "200 open | host: a"),
            (
                "a trailer of an answer that is declared and wanted",
                "200 open | host: a, te",
            ),
            (
                "a trailer of an answer that is wanted and not declared",
                "200 open | host: a, te",
            ),
        ],
    ),
];

pub(crate) const NGINX: &[Deviation] = &[
    (
        "it writes a length anew, which RFC 9110, 8.6 reads the same",
        &[(
            "a length with zeros before it",
            "200 open | host: a, content-length: 3",
        )],
    ),
    (
        "it drops fields whose names have underscores or odd characters, against RFC 9110, 5.1",
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
        UNKNOWN_CODING,
        &[
            ("identity, then chunked", "501 closed"),
            ("gzip, then chunked", "501 closed"),
        ],
    ),
    (
        NOT_CHUNKED,
        &[
            ("a length, then an unknown encoding", "501 closed"),
            ("a length, then an empty encoding", "501 closed"),
            ("a length, then identity", "501 closed"),
            ("an unknown encoding", "501 closed"),
            ("an encoding that is chunked with more", "501 closed"),
            ("identity", "501 closed"),
            ("chunked, then identity", "501 closed"),
            ("chunked, then gzip", "501 closed"),
            ("an empty encoding", "501 closed"),
            ("chunked in quotes", "501 closed"),
            ("a vertical tab before chunked", "501 closed"),
            ("a form feed before chunked", "501 closed"),
            ("a byte beyond ASCII after chunked", "501 closed"),
        ],
    ),
    (
        CHUNKED_WITH_MORE,
        &[
            ("chunked twice in a list", "501 closed"),
            ("chunked with a parameter", "501 closed"),
            ("a comma before chunked", "501 closed"),
            ("a comma after chunked", "501 closed"),
        ],
    ),
    (
        "it reads the whole body first, and says how long it is, as RFC 9112, 6.1 and 7.1.3 permit; trailers go with that (7.1.2)",
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
        "it says that it does not know the version, as RFC 9110, 6.2 and 15.6.6 permit",
        &[("HTTP/2.0 on a connection of HTTP/1", "505 closed")],
    ),
    (
        "it is told to send the Host that came, not that of the target, against RFC 9112, 3.2.2",
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
        "it takes out neither what Connection names, which RFC 9110, 7.6.1 wants, nor Proxy-Connection, for which it asks",
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
        "it passes no upgrade unless it is configured for that alone, as RFC 9110, 7.8 permits, but the switch that comes all the same",
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
        CONNECTS,
        &[
            ("CONNECT, and a request behind it", "400 closed"),
            (
                "CONNECT with a length, and a request behind it",
                "400 closed",
            ),
            ("CONNECT to a path", "405 closed"),
            ("CONNECT to a host without a port", "400 closed"),
            (
                "an answer made here to a request with a body that looks like a request",
                "400 closed",
            ),
        ],
    ),
    (
        "it answers 502 where an app breaks off before its answer, as RFC 9110, 15.6.3 has it if that counts as an answer; ours is 503",
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
        "it has another status for what is too large: RFC 9110, 5.4 wants any 4xx for fields, and 9112, 3 asks for 501 for a method",
        &[
            ("ten thousand fields", "400 closed"),
            ("a list of 80 KB", "400 closed"),
            ("a value of 70 KB", "400 closed"),
            ("a name of 70 KB", "400 closed"),
            ("a method of 70 KB", "414 closed"),
            ("a head that never ends", "400 closed"),
        ],
    ),
    (
        TE,
        &[
            ("encodings that only the hop takes", "200 open | host: a"),
            (
                "a trailer of an answer that is declared and wanted",
                "200 open | host: a",
            ),
            (
                "a trailer of an answer that is wanted and not declared",
                "200 open | host: a",
            ),
        ],
    ),
];
