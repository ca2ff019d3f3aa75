//! A stream with too many interim answers is reset by itself, however its frames come.

use hyper::client::conn::http2;
use tulle_runtime::limits::MAX_INTERIM;

use super::*;

/// Heads that may come on a stream: one is that of the answer.
const MOST: usize = MAX_INTERIM as usize + 1;
/// `:status: 200`, and the same with a table entry.
const OK: &[u8] = b"\x88";

/// `:status: 103`, and a field that comes to HPACK's table, in one frame or in several.
fn hint(stream: u8, pieces: bool) -> Vec<u8> {
    let fields = b"\x08\x03103\x40\x01h\x01v";
    if !pieces {
        return frame(HEADERS, 4, stream, fields);
    }
    let (first, second) = fields.split_at(3);
    let parts = [
        frame(HEADERS, 0, stream, first),
        frame(CONTINUATION, 0, stream, b""),
        frame(CONTINUATION, 4, stream, second),
    ];
    parts.concat()
}

/// Whether a client has sent the head of that stream.
fn is_asked(sent: &[u8], stream: u32) -> bool {
    let (mut scanner, mut at) = (Scanner::after(PREFACE), 0);
    while let Some((frame, next)) = scanner.next(sent, at) {
        if frame.kind == HEADERS && frame.stream == stream {
            return true;
        }
        at = next;
    }
    false
}

/// Two requests are answered by these bytes, which come in pieces of that size. The status of each answer, or whether its
/// stream was reset from here; which streams were, and with what code; how many are told of, and why the connection ended.
async fn answered(
    answer: &[u8],
    piece: usize,
) -> ([Result<u16, bool>; 2], Vec<u32>, u32, Option<Ended>) {
    let (mut server, client) = duplex(64 * 1024);
    let (io, calm) = Frames::new(client, Whose::Server, bounds(LIMIT));
    let (mut sender, connection) = http2::Builder::new(LocalExecutor)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(io))
        .await
        .unwrap();
    let driven = tokio::task::spawn_local(connection);
    let mut ask = || {
        let request = http::Request::get("http://a/").body(Empty::new()).unwrap();
        let answer = sender.send_request(request);
        tokio::task::spawn_local(async { answer.await.map(|answer| answer.status().as_u16()) })
    };
    let asked = [ask(), ask()];
    drop(sender);
    server.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut sent = Vec::new();
    while !is_asked(&sent, 3) {
        server.read_buf(&mut sent).await.unwrap();
    }
    let (mut reader, mut writer) = tokio::io::split(server);
    let reading = async {
        let _ = reader.read_to_end(&mut sent).await;
        sent
    };
    let writing = async {
        for piece in answer.chunks(piece) {
            // It may have ended.
            let _ = writer.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let mut answers = Vec::new();
        for answer in asked {
            let answer = answer.await.unwrap();
            answers.push(
                answer.map_err(|error| format!("{error:?}").contains("PROTOCOL_ERROR, Library")),
            );
        }
        let _ = writer.shutdown().await;
        answers
    };
    let (answers, sent) = tokio::join!(writing, async { tokio::join!(reading, driven).0 });
    let told = (0..10).take_while(|_| calm.take_interim()).count();
    let reset = resets(&sent[PREFACE..], &[0, 0, 0, 1]);
    let told = u32::try_from(told).unwrap();
    (answers.try_into().unwrap(), reset, told, calm.ended())
}

#[tokio::test]
async fn a_stream_with_too_many_interim_answers_is_reset_and_others_go_on() {
    let run = async {
        for pieces in [false, true] {
            let [first, other] = [hint(1, pieces), hint(3, pieces)];
            // The table is in step: what comes last is named by number.
            let last = frame(HEADERS, 5, 3, b"\x88\xbe");
            let late = first.repeat(50);
            let fine = other.repeat(MOST - 1);
            for (name, answer, first, reset, told) in [
                (
                    "enough",
                    [&first.repeat(MOST - 1)[..], &frame(HEADERS, 5, 1, OK)].concat(),
                    Ok(200),
                    vec![],
                    0,
                ),
                ("too many", first.repeat(MOST + 1), Err(true), vec![1], 1),
                (
                    "and late",
                    [first.repeat(MOST + 1), late].concat(),
                    Err(true),
                    vec![1],
                    1,
                ),
            ] {
                let answer = [&answer[..], &fine, &last].concat();
                for piece in (1..=60).chain([answer.len()]) {
                    let (answers, resets, telling, ended) = answered(&answer, piece).await;
                    let name = format!("{name} in pieces of {piece}, {pieces}");
                    assert_eq!(answers, [first, Ok(200)], "{name}");
                    assert_eq!((resets, telling), (reset.clone(), told), "{name}");
                    assert_eq!(ended, None, "{name}");
                }
            }
        }
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn many_streams_may_be_reset_at_once() {
    let run = async {
        let both = [hint(1, false), hint(3, false)].concat();
        for piece in [1, 13, 1_000, 100_000] {
            let (answers, resets, told, ended) = answered(&both.repeat(100), piece).await;
            assert_eq!(answers, [Err(true), Err(true)]);
            assert_eq!((resets, told, ended), (vec![1, 3], 2, None));
        }
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_server_that_does_not_stop_loses_the_connection() {
    let run = async {
        // A value of 3000 bytes.
        let fields = [b"\x08\x03103\0\x01x\x7f\xb9\x16", &[b'x'; 3_000][..]].concat();
        let endless = frame(HEADERS, 4, 1, &fields).repeat(6_000);
        let (answers, resets, told, ended) = answered(&endless, 100_000).await;
        assert_eq!(answers, [Err(true), Err(false)]);
        assert_eq!((resets, told), (vec![1], 1));
        assert_eq!(ended, Some(Ended::Interim));
    };
    LocalSet::new().run_until(run).await;
}
