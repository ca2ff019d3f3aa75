//! What passes and what is refused, in whatever pieces it comes, and what a client of hyper gets to see.

use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::scan::BAD_HOST;
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Why a stream that comes in pieces of `size` bytes is refused, if it is.
fn refused(stream: &[u8], size: usize) -> Option<&'static str> {
    let mut scanner = Scanner::new(64 * 1024, 100);
    for mut piece in stream.chunks(size) {
        loop {
            match scanner.scan(piece) {
                Scan::Pass => break,
                Scan::Refuse { why, .. } => return Some(why),
                Scan::Wait { at } => piece = &piece[at..],
            }
        }
    }
    None
}

#[test]
fn only_messages_that_leave_no_doubt_pass() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let table: &[(&str, String, Option<&str>)] = &[
        ("a request", GET.into(), None),
        ("two requests", GET.repeat(2), None),
        ("an empty line before a request", format!("\r\n{GET}"), None),
        ("HTTP/1.0 without a host", "GET / HTTP/1.0\r\n\r\n".into(), None),
        ("a body", format!("POST / HTTP/1.1\r\nhost:a\r\nContent-Length: 3\r\n\r\n\n\r\n{GET}"), None),
        ("an upgrade", format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n{GET}"), None),
        ("chunks", format!("{chunked}3\r\na\n\r\r\n0a ;x=\"\t\"\r\n0123456789\r\n0\r\n\r\n{GET}"), None),
        ("trailers", format!("{chunked}0\r\nx-sum: 1\r\n\r\n{GET}"), None),
        ("no host", "GET / HTTP/1.1\r\nAccept: a\r\n\r\n".into(), Some("no host")),
        ("no host in the second request", format!("{GET}GET / HTTP/1.1\r\n\r\n"), Some("no host")),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n".into(), Some("more than one host")),
        (
            "both lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Some("content-length with transfer-encoding"),
        ),
        (
            "a length twice",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n".into(),
            Some("more than one content-length"),
        ),
        (
            "a list of lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n".into(),
            Some("a content-length that is no number"),
        ),
        (
            "a signed length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n".into(),
            Some("a content-length that is no number"),
        ),
        (
            "a length that no number holds",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".into(),
            Some("a content-length that is no number"),
        ),
        (
            "identity, then chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Some("a transfer-encoding other than chunked"),
        ),
        (
            "gzip, chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(),
            Some("a transfer-encoding other than chunked"),
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Some("more than one transfer-encoding"),
        ),
        (
            "chunked in HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Some("transfer-encoding in HTTP/1.0"),
        ),
        ("a bare line feed", "GET / HTTP/1.1\nHost: a\r\n\r\n".into(), Some("bare line feed")),
        ("a bare line feed at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n".into(), Some("bare line feed")),
        ("a bare carriage return", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".into(), Some("bare carriage return")),
        ("two carriage returns", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n".into(), Some("bare carriage return")),
        ("a fragment", "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some("a fragment in the target")),
        (
            "a folded field",
            "GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n".into(),
            Some("a field without a name, or with space around it"),
        ),
        (
            "space before a colon",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n".into(),
            Some("a field without a name, or with space around it"),
        ),
        ("no colon", "GET / HTTP/1.1\r\nHost\r\n\r\n".into(), Some("a field without a colon")),
        ("a chunk without a size", format!("{chunked}\r\n"), Some("a chunk without a size")),
        ("space after a chunk's size", format!("{chunked}1 \r\n"), Some("a chunk without a size")),
        ("a hexadecimal prefix", format!("{chunked}0x1\r\n"), Some("a chunk without a size")),
        ("a chunk that no number holds", format!("{chunked}11111111111111111\r\n"), Some("a chunk without a size")),
        ("a chunk that goes on", format!("{chunked}1\r\nab\r\n"), Some("chunk longer than it says")),
        ("NUL in an extension", format!("{chunked}1;a=\0\r\n"), Some("a control character in a chunk extension")),
        ("a line feed in an extension", format!("{chunked}1;a\n"), Some("bare line feed")),
        ("a chunk that no signed number holds", format!("{chunked}ffffffffffffffff\r\n"), Some("a chunk without a size")),
        ("OPTIONS of the server itself", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), None),
        ("an asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some("a target that is no path")),
        ("a relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some("a target that is no path")),
        ("an absolute target", "GET HTTPS://a.b:1/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), None),
        ("an absolute target without a host", "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some("a target without a host")),
        ("a user in the target", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some(BAD_HOST)),
        ("a target beyond ASCII", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some("a target with characters that are not encoded")),
        ("an address as host", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".into(), None),
        ("no address in brackets", "GET / HTTP/1.1\r\nHost: [a]\r\n\r\n".into(), Some(BAD_HOST)),
        ("a port that is too large", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n".into(), Some(BAD_HOST)),
        ("the largest port", "GET / HTTP/1.1\r\nHost: [::1]:65535\r\n\r\n".into(), None),
        ("two ports", "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n".into(), Some(BAD_HOST)),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), Some(BAD_HOST)),
        ("the guard's own method", "TULLE-REFUSED / HTTP/1.1\r\nHost: -\r\n\r\n".into(), Some("a method that is reserved")),
        ("a cookie as trailer", format!("{chunked}0\r\nCookie: 1\r\n\r\n"), Some("a trailer that belongs into the head")),
        ("an underscore in a trailer's name", format!("{chunked}0\r\nX_Forwarded_For: 1\r\n\r\n"), Some("a trailer that belongs into the head")),
        ("an authorization as trailer", format!("{chunked}0\r\nAuthorization: 1\r\n\r\n{GET}"), None),
        ("a length as trailer", format!("{chunked}0\r\nContent-Length: 1\r\n\r\n"), Some("a trailer that belongs into the head")),
    ];
    for (name, stream, expected) in table {
        for size in [1, 2, 3, 7, usize::MAX] {
            assert_eq!(
                refused(stream.as_bytes(), size),
                *expected,
                "{name}, {size} bytes at a time"
            );
        }
    }
}

fn heads(longest: usize) -> Heads {
    Heads {
        patience: PATIENCE,
        longest,
        most: 100,
        answer: |why| {
            let status = status(why);
            format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nwhy")
                .into()
        },
    }
}

fn status(why: Refusal) -> u16 {
    match why {
        Refusal::Malformed(_) => 400,
        Refusal::TargetTooLong => 414,
        Refusal::HeadTooLarge | Refusal::TooManyFields => 431,
    }
}

/// Serves what a client sends, `size` bytes at a time, and returns what it gets back.
async fn exchange(stream: &[u8], size: usize) -> String {
    exchange_up_to(stream, size, 64 * 1024).await
}

/// The same with heads of `longest` bytes at most.
async fn exchange_up_to(stream: &[u8], size: usize, longest: usize) -> String {
    let (mut client, server) = duplex(64 * 1024);
    let (guard, gate) = Guard::new(server, heads(longest));
    let service = service_fn(move |request: Request<Incoming>| {
        let gate = gate.clone();
        async move {
            if request.method().as_str() == REFUSED {
                let response = Response::builder()
                    .status(status(gate.refused().unwrap().why))
                    .header("connection", "close");
                return Ok(response.body("why".to_owned()).unwrap());
            }
            if request.headers().contains_key("upgrade") {
                gate.answered(false);
            }
            let body = http_body_util::BodyExt::collect(request.into_body()).await;
            let length = body.map_err(io::Error::other)?.to_bytes().len();
            io::Result::Ok(Response::new(format!("[{length}]")))
        }
    });
    let serving = http1::Builder::new()
        .half_close(true)
        .max_buf_size(longest + Heads::MORE)
        .serve_connection(TokioIo::new(guard), service);
    let talking = async {
        for piece in stream.chunks(size) {
            // The server may have refused already.
            let _ = client.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let _ = client.shutdown().await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (_, answer) = tokio::join!(serving, talking);
    answer
}

/// The statuses of the answers, and the bodies that hyper got.
fn seen(answer: &str) -> (Vec<&str>, Vec<&str>) {
    let statuses = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    let bodies = answer
        .match_indices('[')
        .map(|(at, _)| &answer[at..=at + answer[at..].find(']').unwrap()])
        .collect();
    (statuses, bodies)
}

#[tokio::test]
async fn a_refused_request_gets_400_after_the_answers_before_it() {
    let smuggled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let bad = [
        smuggled,
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\rHost: a\r\n\r\n",
    ];
    for bad in bad {
        for size in [1, 5, usize::MAX] {
            let answer = exchange(format!("{GET}{bad}{GET}").as_bytes(), size).await;
            let expected = (vec!["200", "400"], vec!["[0]"]);
            assert_eq!(
                seen(&answer),
                expected,
                "{bad:?}, {size} bytes at a time: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so_however_it_comes() {
    const LONGEST: usize = 8_192;
    let value = |bytes| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "v".repeat(bytes - 32)
        )
    };
    let target = |bytes| {
        format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "t".repeat(bytes - 27)
        )
    };
    let fields = |count| {
        let fields: String = (1..count).map(|n| format!("x-{n}: v\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    };
    for (head, status) in [
        (value(LONGEST), "200"),
        (value(LONGEST + 1), "431"),
        (value(100_000), "431"),
        (target(LONGEST), "200"),
        (target(LONGEST + 100), "414"),
        (target(100_000), "414"),
        ("x".repeat(10_000), "431"),
        (fields(100), "200"),
        (fields(101), "431"),
        (fields(1_000), "431"),
    ] {
        for size in [5, 4_000, usize::MAX] {
            let answer = exchange_up_to(format!("{GET}{head}").as_bytes(), size, LONGEST).await;
            let begin = &head[..head.len().min(40)];
            let what = format!(
                "{begin} of {} bytes, {size} at a time: {answer}",
                head.len()
            );
            assert_eq!(seen(&answer).0, ["200", status], "{what}");
            assert_eq!(status != "200", answer.ends_with("\r\n\r\nwhy"), "{what}");
        }
    }
}

#[tokio::test]
async fn nothing_after_a_refused_chunk_is_taken_for_a_request() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunk in [
        "1;a=\0\r\nb\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1;a\nb\r\n0\r\n\r\n",
        "0\r\nHost: a\r\n\r\n",
    ] {
        for size in [1, 5, usize::MAX] {
            let answer = exchange(format!("{chunked}{chunk}{GET}").as_bytes(), size).await;
            assert!(
                !answer.contains("200"),
                "{chunk:?}, {size} bytes at a time: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_declined_upgrade_is_followed_by_ordinary_requests_that_are_looked_at() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    for size in [1, 5, usize::MAX] {
        let answer = exchange(
            format!("{upgrade}{GET}{upgrade}GET / HTTP/1.1\r\n\r\n").as_bytes(),
            size,
        )
        .await;
        assert_eq!(
            seen(&answer).0,
            ["200", "200", "200", "400"],
            "{size} bytes at a time"
        );
    }
}

#[tokio::test]
async fn after_a_switch_every_byte_passes() {
    let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
    let (mut client, server) = duplex(1024);
    let (mut guard, gate) = Guard::new(server, heads(64 * 1024));
    client.write_all(upgrade).await.unwrap();
    client.write_all(b"\x81\0\n\n").await.unwrap();
    let mut head = vec![0; upgrade.len()];
    guard.read_exact(&mut head).await.unwrap();
    let mut rest = [0; 6];
    let answering = async {
        tokio::task::yield_now().await;
        gate.answered(true);
        client.write_all(b"\r\r").await.unwrap();
    };
    let (read, ()) = tokio::join!(guard.read_exact(&mut rest), answering);
    read.unwrap();
    assert_eq!(&rest, b"\x81\0\n\n\r\r");
}

/// Writes pieces of a stream with pauses between them to a server behind a guard. Returns what came back within a day,
/// and how long that took.
async fn paced(pieces: &[(&str, u64)]) -> (String, Duration) {
    let (mut client, server) = duplex(1024);
    let (guard, gate) = Guard::new(server, heads(64 * 1024));
    let echo = service_fn(|request: Request<Incoming>| async {
        Ok::<_, hyper::Error>(Response::new(request.into_body()))
    });
    let serving = async {
        let served = http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(guard), echo)
            .await;
        assert_eq!(served.is_err(), gate.is_late());
    };
    let begun = tokio::time::Instant::now();
    let talking = async move {
        for (piece, pause) in pieces {
            if client.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(*pause)).await;
        }
        let _ = client.shutdown().await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let ended = async {
        serving.await;
        begun.elapsed()
    };
    let (answer, took) = tokio::join!(talking, ended);
    (answer, took)
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_answered_408() {
    let slow = GET
        .split_inclusive('\n')
        .map(|line| (line, 14))
        .collect::<Vec<_>>();
    let (answer, took) = paced(&slow).await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "28 seconds are fine: {answer}"
    );
    let dripped: Vec<_> = (0..GET.len()).map(|at| (&GET[at..=at], 2)).collect();
    let (answer, took_dripped) = paced(&dripped).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(took_dripped, PATIENCE, "however often a byte comes");
    assert!(took > PATIENCE);
    let second = [(GET, 100), ("GET / HT", 100)];
    let (answer, took) = paced(&second).await;
    assert_eq!(seen(&answer).0, ["200", "408"]);
    assert_eq!(
        took,
        Duration::from_secs(100) + PATIENCE,
        "from its own first byte"
    );
}

#[tokio::test(start_paused = true)]
async fn idle_connections_and_slow_bodies_may_take_their_time() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    let idle = [(GET, 3_600), (GET, 3_600), ("", 0)];
    let body = [(head, 3_600), ("ab", 3_600), ("cd", 0)];
    for (pieces, answers) in [(&idle, 2), (&body, 1)] {
        let (answer, _) = paced(pieces).await;
        assert_eq!(seen(&answer).0, vec!["200"; answers], "{answer}");
    }
}

proptest! {
    #[test]
    fn the_verdict_does_not_depend_on_the_pieces(
        stream in "(GET / HTTP/1.1\r\nHost: a\r\n\r\n)?POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ?(chunked|x)\r\n\r\n(2\r\nab\r\n|1;[a\0\n]\r\na\r\n|[0-9a-f]\r\n){0,4}(0\r\n\r\n)?(\r\n|\n|\r|G)?",
        size in 1_usize..40,
    ) {
        prop_assert_eq!(refused(stream.as_bytes(), size), refused(stream.as_bytes(), usize::MAX));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), size in 1_usize..64) {
        let _ = refused(&bytes, size);
    }
}
