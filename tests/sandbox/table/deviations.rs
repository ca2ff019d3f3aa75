//! Where the oracles deviate from the table, and why: what they do is a summary as [`super::outcome`] makes it.

use super::row::Row;

/// One reason, and the rows that it explains with what the oracle does there.
pub(crate) type Deviation = (&'static str, &'static [(&'static str, &'static str)]);

/// What an oracle does with a row, if it is not what the row says.
pub(crate) fn of(deviations: &[Deviation], name: &str) -> Option<&'static str> {
    let rows = deviations.iter().flat_map(|(_, rows)| *rows);
    let mut rows = rows.filter(|(row, _)| *row == name);
    rows.next().map(|(_, does)| *does)
}

/// What is said of rows that are not there.
pub(crate) fn unknown(deviations: &[Deviation], rows: &[Row]) -> Vec<String> {
    let said = deviations.iter().flat_map(|(_, rows)| *rows);
    said.filter(|(name, _)| !rows.iter().any(|row| row.name == *name))
        .map(|(name, _)| format!("there is no row {name:?}"))
        .collect()
}

pub(crate) const ENVOY: &[Deviation] = &[
    (
        "it ends lines at a bare line feed, as RFC 9112, 2.2 permits",
        &[
            ("a bare line feed after the request line", "200 | GET /"),
            ("a bare line feed after a field", "200 | GET /"),
            ("a bare line feed at the end of the head", "200 | GET /"),
            ("bare line feeds only", "200 | GET /"),
            (
                "an empty line that is a bare line feed before a request",
                "200 | GET /",
            ),
            ("a bare line feed after a chunk", "200 | POST / \"abc\""),
            (
                "a bare line feed at the end of the body",
                "200 | POST / \"abc\"",
            ),
        ],
    ),
    (
        "it replaces a bare carriage return by space, as RFC 9112, 2.2 permits, or waits for a line feed",
        &[
            ("a bare carriage return in a field", "200 | GET /"),
            ("a bare carriage return for a line end", ""),
            ("two carriage returns before a line feed", "200 | GET /"),
        ],
    ),
    (
        "it unfolds fields, as RFC 9112, 5.2 permits",
        &[
            ("a folded field", "200 | GET /"),
            ("a field folded with a tab", "200 | GET /"),
            ("an encoding that is folded", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it splits the request line at any space, as RFC 9112, 3 permits",
        &[
            ("two spaces after the method", "200 | GET /"),
            ("two spaces after the target", "200 | GET /"),
            ("a tab after the method", "200 | GET /"),
            ("a tab after the target", "200 | GET /"),
            ("space after the version", "200 | GET /"),
        ],
    ),
    (
        "it takes every version for 1.1; RFC 9110, 2.5 asks for that with a higher minor one, and for 505 with 2.0",
        &[
            ("HTTP/0.9", "200 | GET /"),
            ("HTTP/1.2", "200 | GET /"),
            ("HTTP/2.0 on a connection of HTTP/1", "200 | GET /"),
        ],
    ),
    (
        "it reads chunks leniently, against RFC 9112, 7.1",
        &[
            ("a size of 16 digits that is too large", ""),
            ("a size with space after it", "200 | POST / \"abc\""),
            ("a size smaller than its chunk", "200 | POST / \"ab\""),
            ("a last size with a digit after it", "200 | POST /"),
            ("NUL in an extension", "200 | POST / \"abc\""),
            ("words after a size", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it takes chunks in HTTP/1.0, which RFC 9112, 6.1 calls faulty framing",
        &[("chunks in HTTP/1.0", "200 | POST / \"abc\"")],
    ),
    (
        "it wants a host of HTTP/1.0 unless it is told a default",
        &[("HTTP/1.0 without anything", "refused")],
    ),
    (
        "it knows no asterisk form (RFC 9112, 3.2.4), no query right after an authority, and no method that is not registered",
        &[
            ("OPTIONS of the server itself", "refused"),
            (
                "a target in absolute form with a query and no path",
                "refused",
            ),
            ("a method with a hyphen", "refused"),
        ],
    ),
    (
        "it passes characters that no URI has (RFC 9112, 3.2 asks for 400)",
        &[
            ("angle brackets in the target", "200 | GET /<a>"),
            ("a backtick in the target", "200 | GET /`a"),
        ],
    ),
    (
        "it does not check a host's form or number, which RFC 9112, 3.2 asks for",
        &[
            ("two hosts", "200 | GET /"),
            ("one host twice", "200 | GET /"),
            ("no host with a target in absolute form", "200 | GET /"),
            ("two hosts in HTTP/1.0", "200 | GET /"),
            ("a host with a user", "200 | GET /"),
            ("a host with a port that is no number", "200 | GET /"),
            ("a host with two ports", "200 | GET /"),
            ("a bracket that is not closed", "200 | GET /"),
            ("a user in the target", "200 | GET /"),
        ],
    ),
    (
        "it refuses a connection header that names what belongs to the message, where RFC 9110, 7.6.1 forbids sending it",
        &[("a host named in connection stays", "refused")],
    ),
    (
        "it gives up a connection after an upgrade that was declined, and refuses one with a body",
        &[
            (
                "early data before an upgrade that is declined is another request",
                "200 | GET /chat",
            ),
            (
                "early data before an upgrade that is declined is looked at",
                "200 | GET /chat",
            ),
            ("an upgrade with a body that is declined", ""),
        ],
    ),
    (
        "it passes a switch that nobody asked for (RFC 9110, 15.2.2 forbids the backend to make it)",
        &[("a switch that nobody asked for", "101 | GET /")],
    ),
    (
        "it answers every expectation with 100, where RFC 9110, 10.1.1 forbids that to HTTP/1.0 and leaves it out without a body",
        &[
            (
                "a client of HTTP/1.0 gets no interim answer",
                "100,200 | POST / \"abc\"",
            ),
            ("an expectation without a body", "100,200 | GET /"),
            (
                "leave with a length of nothing, and a request behind it",
                "100,200,200 | POST / | GET /smuggled",
            ),
        ],
    ),
    (
        "it does not look at trailers' names or line ends, which RFC 9110, 6.5.1 forbids the client to send",
        &[
            (
                "a certificate of its own making as trailer",
                "200 | POST / \"abc\"",
            ),
            ("what Envoy tells an app as trailer", "200 | POST / \"abc\""),
            ("a length as trailer", "200 | POST / \"abc\""),
            ("an encoding as trailer", "200 | POST / \"abc\""),
            ("a host as trailer", "200 | POST / \"abc\""),
            ("a bare line feed after a trailer", "200 | POST / \"abc\""),
            ("a folded trailer", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it takes two hosts (RFC 9112, 3.2 asks for 400), behind another request as well",
        &[
            (
                "a bad request behind a good one",
                "200,200 | GET /1 | GET /2",
            ),
            (
                "a good request behind a bad one is not looked at",
                "200 | GET /1 | GET /2",
            ),
        ],
    ),
    (
        "it refuses an answer with two framings or with a body that may be none, where RFC 9112, 6.3 has a rule for each",
        &[
            ("a length and chunks in an answer", "failed | POST / \"x\""),
            ("204 with a body", "failed | POST / \"x\""),
            ("204 with chunks", "failed | POST / \"x\""),
        ],
    ),
    (
        "it reads answers as leniently as requests",
        &[
            (
                "a chunk longer than it says in an answer",
                "200 | POST / \"x\"",
            ),
            ("a version of HTTP/2 in an answer", "200 | POST / \"x\""),
            (
                "a bare carriage return in an answer's field",
                "200 | POST / \"x\"",
            ),
            ("a folded field in an answer", "200 | POST / \"x\""),
        ],
    ),
    (
        "it passes a status of four digits (RFC 9110, 15 has three), and no client reads it",
        &[("a status of four digits", " | POST / \"x\"")],
    ),
    (
        "it has no limit of its own for extensions (RFC 9112, 7.1.1 asks for one)",
        &[("an extension of 5 KB", "200 | POST / \"abc\"")],
    ),
];

pub(crate) const NGINX: &[Deviation] = &[
    (
        "it ends lines at a bare line feed, as RFC 9112, 2.2 permits",
        &[
            ("a bare line feed after the request line", "200 | GET /"),
            ("a bare line feed after a field", "200 | GET /"),
            ("a bare line feed at the end of the head", "200 | GET /"),
            ("bare line feeds only", "200 | GET /"),
            (
                "an empty line that is a bare line feed before a request",
                "200 | GET /",
            ),
            ("a bare line feed after a size", "200 | POST / \"abc\""),
            ("a bare line feed after a chunk", "200 | POST / \"abc\""),
            (
                "a bare line feed after the last size",
                "200 | POST / \"abc\"",
            ),
            (
                "a bare line feed at the end of the body",
                "200 | POST / \"abc\"",
            ),
        ],
    ),
    (
        "it passes controls in fields, and the backend refuses them (RFC 9110, 5.5)",
        &[
            ("an escape in a field's value", "failed"),
            ("a delete in a field's value", "failed"),
        ],
    ),
    (
        "it drops fields that are none, where RFC 9112, 5 asks for 400 or leaves it open",
        &[
            ("a field without a colon", "200 | GET /"),
            ("a field's name with a parenthesis", "200 | GET /"),
        ],
    ),
    (
        "it does not know that a tab is space around a value (RFC 9112, 5)",
        &[
            ("a length with space around it", "refused"),
            ("an encoding with tabs around it", "refused"),
        ],
    ),
    (
        "it reads chunks leniently, against RFC 9112, 7.1",
        &[
            ("a size with space after it", "200 | POST / \"abc\""),
            ("a last size with a digit after it", "200 | POST /"),
            ("NUL in an extension", "200 | POST / \"abc\""),
            ("words after a size", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it normalises paths before it looks at them, and refuses those that it cannot",
        &[
            ("an encoded dot", "refused"),
            ("an encoded NUL", "refused"),
            ("an encoding that is none", "refused"),
        ],
    ),
    (
        "it knows no asterisk form (RFC 9112, 3.2.4), and does not serve TRACE",
        &[
            ("OPTIONS of the server itself", "refused"),
            ("TRACE", "refused"),
        ],
    ),
    (
        "it splits the request line at any number of spaces, as RFC 9112, 3 permits",
        &[
            ("two spaces after the method", "200 | GET /"),
            ("two spaces after the target", "200 | GET /"),
            ("space after the version", "200 | GET /"),
        ],
    ),
    (
        "it speaks HTTP/0.9 to a client without a version",
        &[("no version", "")],
    ),
    (
        "it takes every minor version for 1.1, as RFC 9110, 2.5 asks",
        &[
            ("HTTP/1.2", "200 | GET /"),
            ("a version with more digits", "200 | GET /"),
        ],
    ),
    (
        "it passes fragments and bytes beyond ASCII, and the backend refuses the former (RFC 9112, 3.2 asks for 400)",
        &[
            ("a fragment", "failed"),
            ("a byte beyond ASCII in the target", "failed"),
            ("angle brackets in the target", "200 | GET /<a>"),
            ("a backtick in the target", "200 | GET /`a"),
        ],
    ),
    (
        "it passes the host of HTTP/1.0 as it is, and the backend refuses HTTP/1.1 without one",
        &[("HTTP/1.0 without anything", "failed")],
    ),
    (
        "it wants a host that is not empty, where RFC 9110, 7.2 does not",
        &[("an empty host", "refused")],
    ),
    (
        "it does not check a host's form or a target's scheme, which RFC 9112, 3.2 asks for",
        &[
            ("a host with a user", "200 | GET /"),
            ("a host with a port that is no number", "200 | GET /"),
            ("a host with two ports", "200 | GET /"),
            ("a host with a query", "200 | GET /"),
            ("a host with a fragment", "200 | GET /"),
            ("a host with a backslash", "200 | GET /"),
            ("a host beyond ASCII", "200 | GET /"),
            ("a bracket that is not closed", "200 | GET /"),
            ("a target of another scheme", "200 | GET /x"),
        ],
    ),
    (
        "it reads what is no answer of HTTP/1 as one of HTTP/0.9, and closes",
        &[
            ("no HTTP at all", " | POST / \"x\""),
            ("another protocol in an answer", " | POST / \"x\""),
            ("a status of two digits", " | POST / \"x\""),
            ("a status of four digits", " | POST / \"x\""),
            ("a status of letters", " | POST / \"x\""),
            (
                "an answer without a reason and the space before it",
                " | POST / \"x\"",
            ),
        ],
    ),
    (
        "it takes an interim answer for the answer, against RFC 9110, 15.2 (later versions do not)",
        &[
            ("a switch that nobody asked for", " | GET /"),
            ("100 that nobody asked for", " | POST / \"x\""),
            ("103", " | POST / \"x\""),
            ("three interim answers", " | POST / \"x\""),
        ],
    ),
    (
        "it answers every expectation with 100, which RFC 9110, 10.1.1 leaves out without a body",
        &[
            ("an expectation without a body", "100,200 | GET /"),
            (
                "leave with a length of nothing, and a request behind it",
                "100,200,200 | POST / | GET /smuggled",
            ),
        ],
    ),
    (
        "it sends the whole body although the answer has come, as RFC 9112, 9.5 permits",
        &[
            (
                "a refusal before the body, which then looks like a request",
                "refused | POST / \"GET /smuggled HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n\"",
            ),
            (
                "a refusal before the body, and the backend closes",
                "refused | POST / \"GET /smuggled HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n\"",
            ),
            (
                "a refusal before chunks, which then look like a request",
                "refused | POST / \"GET /smuggled HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n\"",
            ),
        ],
    ),
    (
        "it throws trailers away without a look",
        &[
            (
                "a certificate of its own making as trailer",
                "200 | POST / \"abc\"",
            ),
            ("what Envoy tells an app as trailer", "200 | POST / \"abc\""),
            ("a length as trailer", "200 | POST / \"abc\""),
            ("an encoding as trailer", "200 | POST / \"abc\""),
            ("a host as trailer", "200 | POST / \"abc\""),
            ("a trailer without a colon", "200 | POST / \"abc\""),
            ("space before a trailer's colon", "200 | POST / \"abc\""),
            ("a bare line feed after a trailer", "200 | POST / \"abc\""),
            ("a folded trailer", "200 | POST / \"abc\""),
            ("NUL in a trailer", "200 | POST / \"abc\""),
            ("trailers of 70 KB", "200 | POST / \"abc\""),
            ("two hundred trailers", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it takes an answer whose length it cannot read until its end, where RFC 9112, 6.3 asks for 502",
        &[
            ("a version of HTTP/2 in an answer", "200 | POST / \"x\""),
            ("a signed length in an answer", "200 | POST / \"x\""),
            (
                "a length in an answer that is no number",
                "200 | POST / \"x\"",
            ),
            ("two lengths in an answer", "200 | POST / \"x\""),
            ("a list of lengths in an answer", "200 | POST / \"x\""),
            ("a field without a colon in an answer", "200 | POST / \"x\""),
        ],
    ),
    (
        "it passes names that are none and codings that nobody asked for, and its client refuses them",
        &[
            ("a name that is no token in an answer", " | POST / \"x\""),
            (
                "chunked and another encoding in an answer",
                " | POST / \"x\"",
            ),
            ("an unknown encoding in an answer", " | POST / \"x\""),
        ],
    ),
    (
        "its limits are others: 8 KB a field, as many fields as there is room for, no limit for extensions",
        &[
            ("a hundred and one fields", "200 | GET /"),
            ("a list of 50 KB", "refused"),
            ("a value of 30 KB", "refused"),
            ("an extension of 5 KB", "200 | POST / \"abc\""),
            (
                "a hundred and one fields in an answer",
                "200 | POST / \"x\"",
            ),
            ("a value of 50 KB in an answer", "failed | POST / \"x\""),
        ],
    ),
];
