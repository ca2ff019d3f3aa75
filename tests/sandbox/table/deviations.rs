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
            ("a bare line feed after a trailer", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it takes a bare carriage return out, where RFC 9112, 2.2 wants it refused or replaced by space",
        &[
            ("a bare carriage return in a field", "200 | GET /"),
            (
                "a bare carriage return in an answer's field",
                "200 | POST / \"x\"",
            ),
        ],
    ),
    (
        "it waits for the line feed that RFC 9112, 2.2 wants",
        &[("a bare carriage return for a line end", "")],
    ),
    (
        "it unfolds fields, as RFC 9112, 5.2 permits",
        &[
            ("a folded field", "200 | GET /"),
            ("a field folded with a tab", "200 | GET /"),
            ("an encoding that is folded", "200 | POST / \"abc\""),
            ("a folded trailer", "200 | POST / \"abc\""),
            ("a folded field in an answer", "200 | POST / \"x\""),
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
            ("two carriage returns before a line feed", "200 | GET /"),
        ],
    ),
    (
        "it takes every other version for 1.0; RFC 9110, 6.2 asks to take 1.2 for 1.1, but our parser knows no other than 1.0 and 1.1",
        &[("HTTP/1.2", "200 | GET /")],
    ),
    (
        "it takes another major version for its own, though that means another syntax (RFC 9110, 2.5; 6.2 permits 505)",
        &[
            ("HTTP/0.9", "200 | GET /"),
            ("HTTP/2.0 on a connection of HTTP/1", "200 | GET /"),
            ("a version of HTTP/2 in an answer", "200 | POST / \"x\""),
        ],
    ),
    (
        "it waits for the chunk, which is one by RFC 9112, 7.1; ours counts no further than a signed number does",
        &[("a size of 16 digits that is too large", "")],
    ),
    (
        "it reads chunks leniently, against RFC 9112, 7.1: what 2.2 says of a bare line feed is for the first line and fields",
        &[
            ("a bare line feed after a chunk", "200 | POST / \"abc\""),
            (
                "a bare line feed at the end of the body",
                "200 | POST / \"abc\"",
            ),
            ("a size with space after it", "200 | POST / \"abc\""),
            ("a size smaller than its chunk", "200 | POST / \"ab\""),
            ("a last size with a digit after it", "200 | POST /"),
            ("NUL in an extension", "200 | POST / \"abc\""),
            ("words after a size", "200 | POST / \"abc\""),
            (
                "a chunk longer than it says in an answer",
                "200 | POST / \"x\"",
            ),
        ],
    ),
    (
        "it takes chunks in HTTP/1.0 and closes, as RFC 9112, 6.1 permits, which calls that faulty framing",
        &[("chunks in HTTP/1.0", "200 | POST / \"abc\"")],
    ),
    (
        "it wants a host of HTTP/1.0 as well unless it is told a default, as RFC 9112, 3.3 permits",
        &[("HTTP/1.0 without anything", "refused")],
    ),
    (
        "its route for / has no asterisk (RFC 9112, 3.2.4), and it knows no query right after an authority, where 3.2.2 wants every absolute form",
        &[
            ("OPTIONS of the server itself", "refused"),
            (
                "a target in absolute form with a query and no path",
                "refused",
            ),
        ],
    ),
    (
        "it knows a list of methods, where RFC 9110, 7.6 expects an intermediary to forward those that it does not know",
        &[("a method with a hyphen", "refused")],
    ),
    (
        "it passes characters that no URI has (RFC 9112, 3.2 asks for 400 or a redirect; ours passes some others that are in use)",
        &[
            ("angle brackets in the target", "200 | GET /<a>"),
            ("a backtick in the target", "200 | GET /`a"),
        ],
    ),
    (
        "it does not check the form or the number of hosts, where RFC 9112, 3.2 wants 400",
        &[
            ("two hosts", "200 | GET /"),
            ("one host twice", "200 | GET /"),
            ("no host with a target in absolute form", "200 | GET /"),
            ("two hosts in HTTP/1.0", "200 | GET /"),
            ("a host with a user", "200 | GET /"),
            ("a host with a port that is no number", "200 | GET /"),
            ("a host with two ports", "200 | GET /"),
            ("a bracket that is not closed", "200 | GET /"),
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
        "it does not look for a user in a target, which RFC 9110, 4.2.4 asks to treat as an error",
        &[("a user in the target", "200 | GET /")],
    ),
    (
        "it refuses a connection header that names what belongs to the message, which RFC 9110, 7.6.1 forbids to send; ours sends a host as 9112, 3.2 wants it",
        &[("a host named in connection stays", "refused")],
    ),
    (
        "it gives up a connection after an upgrade that was declined, as RFC 9112, 9.5 permits at any time",
        &[
            (
                "early data before an upgrade that is declined is another request",
                "200 | GET /chat",
            ),
            (
                "early data before an upgrade that is declined is looked at",
                "200 | GET /chat",
            ),
        ],
    ),
    (
        "it holds back the body of a request for an upgrade, which RFC 9110, 7.8 wants sent first, until an answer comes",
        &[("an upgrade with a body that is declined", "")],
    ),
    (
        "it passes a switch that nobody asked for, which RFC 9110, 7.8 forbids the backend to make",
        &[("a switch that nobody asked for", "101 | GET /")],
    ),
    (
        "it answers an expectation of HTTP/1.0 with 100, against RFC 9110, 10.1.1 and 15.2",
        &[(
            "a client of HTTP/1.0 gets no interim answer",
            "100,200 | POST / \"abc\"",
        )],
    ),
    (
        "it says 100 where no body comes, which RFC 9110, 10.1.1 permits to leave out",
        &[
            ("an expectation without a body", "100,200 | GET /"),
            (
                "leave with a length of nothing, and a request behind it",
                "100,200,200 | POST / | GET /smuggled",
            ),
        ],
    ),
    (
        "it passes trailers that RFC 9110, 6.5.1 forbids a client to send; ours refuses what an app could take for a field of the head",
        &[
            (
                "a certificate of its own making as trailer",
                "200 | POST / \"abc\"",
            ),
            ("what Envoy tells an app as trailer", "200 | POST / \"abc\""),
            ("a length as trailer", "200 | POST / \"abc\""),
            ("an encoding as trailer", "200 | POST / \"abc\""),
            ("a host as trailer", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it refuses an answer with two framings, as RFC 9112, 6.3 would have it, and 204 with what RFC 9110, 8.6 and 9112, 6.1 forbid; ours reads each by the rules of 6.3",
        &[
            ("a length and chunks in an answer", "failed | POST / \"x\""),
            ("204 with a body", "failed | POST / \"x\""),
            ("204 with chunks", "failed | POST / \"x\""),
        ],
    ),
    (
        "it passes a status of four digits (RFC 9112, 4 has three), and no client reads it",
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
            ("a bare line feed after a trailer", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it passes controls in fields, which RFC 9110, 5.5 calls invalid, and the backend refuses them",
        &[
            ("an escape in a field's value", "failed"),
            ("a delete in a field's value", "failed"),
        ],
    ),
    (
        "it drops fields that are none, where RFC 9112, 2.2 asks for 400",
        &[
            ("a field without a colon", "200 | GET /"),
            ("a field's name with a parenthesis", "200 | GET /"),
        ],
    ),
    (
        "it does not know that a tab is space around a value (RFC 9112, 5.1 and 9110, 5.6.3)",
        &[
            ("a length with space around it", "refused"),
            ("an encoding with tabs around it", "refused"),
        ],
    ),
    (
        "it reads chunks leniently, against RFC 9112, 7.1: what 2.2 says of a bare line feed is for the first line and fields",
        &[
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
            ("a size with space after it", "200 | POST / \"abc\""),
            ("a last size with a digit after it", "200 | POST /"),
            ("NUL in an extension", "200 | POST / \"abc\""),
            ("words after a size", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it normalises paths before it looks at them, as RFC 9110, 4.2.3 permits, and refuses those that lead nowhere",
        &[("an encoded dot", "refused"), ("an encoded NUL", "refused")],
    ),
    (
        "it refuses what is no URI, as RFC 9112, 3.2 asks; ours passes it, because apps take it",
        &[("an encoding that is none", "refused")],
    ),
    (
        "it knows no asterisk form (RFC 9112, 3.2.4)",
        &[("OPTIONS of the server itself", "refused")],
    ),
    (
        "it serves no TRACE, as RFC 9110, 9.1 permits to every server",
        &[("TRACE", "refused")],
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
        "it speaks HTTP/0.9 to a client without a version, which RFC 9112, 3 does not have any more",
        &[("no version", "")],
    ),
    (
        "it takes a higher minor version for 1.1, as RFC 9110, 6.2 asks; our parser knows 1.0 and 1.1 only",
        &[("HTTP/1.2", "200 | GET /")],
    ),
    (
        "it takes a minor version of two digits, where RFC 9112, 2.3 has one",
        &[("a version with more digits", "200 | GET /")],
    ),
    (
        "it passes what no target has (RFC 9112, 3.2 asks for 400 or a redirect), and the backend refuses the first two",
        &[
            ("a fragment", "failed"),
            ("a byte beyond ASCII in the target", "failed"),
            ("angle brackets in the target", "200 | GET /<a>"),
            ("a backtick in the target", "200 | GET /`a"),
        ],
    ),
    (
        "it is told to pass the host as it comes, and the backend refuses HTTP/1.1 without one, as RFC 9112, 3.2 wants",
        &[("HTTP/1.0 without anything", "failed")],
    ),
    (
        "it wants a host that is not empty, as RFC 9112, 3.3 permits",
        &[("an empty host", "refused")],
    ),
    (
        "it does not check a host's form, where RFC 9112, 3.2 wants 400",
        &[
            ("a host with a user", "200 | GET /"),
            ("a host with a port that is no number", "200 | GET /"),
            ("a host with two ports", "200 | GET /"),
            ("a host with a query", "200 | GET /"),
            ("a host with a fragment", "200 | GET /"),
            ("a host with a backslash", "200 | GET /"),
            ("a host beyond ASCII", "200 | GET /"),
            ("a bracket that is not closed", "200 | GET /"),
        ],
    ),
    (
        "it serves every scheme as its own, where RFC 9110, 7.4 wants a request refused that does not meet its scheme's rules",
        &[("a target of another scheme", "200 | GET /x")],
    ),
    (
        "it reads what RFC 9112, 4 calls no first line as an answer of HTTP/0.9, and passes it all",
        &[
            ("no HTTP at all", " | POST / \"x\""),
            ("another protocol in an answer", " | POST / \"x\""),
            ("a status of two digits", " | POST / \"x\""),
            ("a status of four digits", " | POST / \"x\""),
            ("a status of letters", " | POST / \"x\""),
        ],
    ),
    (
        "it passes the first line of an answer as it came, without the space that RFC 9112, 4 wants, and its client refuses it",
        &[(
            "an answer without a reason and the space before it",
            " | POST / \"x\"",
        )],
    ),
    (
        "it waits after a switch that nobody asked for, which RFC 9110, 7.8 forbids the backend to make",
        &[("a switch that nobody asked for", " | GET /")],
    ),
    (
        "it gives its client nothing once an interim answer has come, against RFC 9110, 15.2 (later versions know them)",
        &[
            ("100 that nobody asked for", " | POST / \"x\""),
            ("103", " | POST / \"x\""),
            ("three interim answers", " | POST / \"x\""),
        ],
    ),
    (
        "it says 100 where no body comes, which RFC 9110, 10.1.1 permits to leave out",
        &[
            ("an expectation without a body", "100,200 | GET /"),
            (
                "leave with a length of nothing, and a request behind it",
                "100,200,200 | POST / | GET /smuggled",
            ),
        ],
    ),
    (
        "it forwards nothing before it has the whole body, as RFC 9110, 7.6 permits",
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
        "it throws trailers away, as RFC 9112, 7.1.2 permits, without a look at what 2.2 and 5.1 would have it refuse",
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
            ("a folded trailer", "200 | POST / \"abc\""),
            ("NUL in a trailer", "200 | POST / \"abc\""),
            ("trailers of 70 KB", "200 | POST / \"abc\""),
            ("two hundred trailers", "200 | POST / \"abc\""),
        ],
    ),
    (
        "it takes an answer whose length it cannot read until its end, where RFC 9112, 6.3 wants 502",
        &[
            ("a signed length in an answer", "200 | POST / \"x\""),
            (
                "a length in an answer that is no number",
                "200 | POST / \"x\"",
            ),
            ("two lengths in an answer", "200 | POST / \"x\""),
            ("a list of lengths in an answer", "200 | POST / \"x\""),
        ],
    ),
    (
        "it takes an answer of another major version, and drops a field that is none: RFC 9110, 15.6.3 has 502 for answers that are not valid",
        &[
            ("a version of HTTP/2 in an answer", "200 | POST / \"x\""),
            ("a field without a colon in an answer", "200 | POST / \"x\""),
        ],
    ),
    (
        "it passes a name that is none (RFC 9110, 5.1), and its client refuses it",
        &[("a name that is no token in an answer", " | POST / \"x\"")],
    ),
    (
        "it breaks off at codings that nobody asked for (RFC 9112, 7.4), where 9110, 15.6.3 has 502",
        &[
            (
                "chunked and another encoding in an answer",
                " | POST / \"x\"",
            ),
            ("an unknown encoding in an answer", " | POST / \"x\""),
        ],
    ),
    (
        "its limits are others (RFC 9110, 5.4 and 9112, 7.1.1 leave them to each): 8 KB a field, as many fields as there is room for, none for extensions",
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
