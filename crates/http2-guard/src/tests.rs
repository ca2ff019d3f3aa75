//! Whom the layer over an HTTP/2 connection stops, and whom it lets go on.

mod interim;

use std::convert::Infallible;
use std::sync::atomic::AtomicU32;
use std::task::Waker;

use http_body_util::Empty;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::LocalSet;

use super::codes::REFUSED;
use super::*;

const LIMIT: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(60);
/// `ENHANCE_YOUR_CALM`.
const CALM: u32 = 11;
/// The largest head.
const HEADER_LIST: u32 = 4_096;

fn bounds(control_frames: u32) -> FrameBounds {
    FrameBounds {
        control_frames,
        header_list: HEADER_LIST,
        patience: PATIENCE,
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [
        length[1], length[2], length[3], kind, flags, 0, 0, 0, stream,
    ];
    [&head[..], payload].concat()
}

/// `GET http://a/`, and a header of that length.
fn get(length: u8) -> Vec<u8> {
    let value = vec![b'x'; length.into()];
    [&b"\x82\x86\x84\x41\x01a\x00\x01x"[..], &[length], &value].concat()
}

/// Runs what hyper starts where its connection runs.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// A server behind the layer, and a client that has said hello.
struct Pair {
    client: DuplexStream,
    calm: Calm,
    served: tokio::task::JoinHandle<Result<(), hyper::Error>>,
}

impl Pair {
    async fn new(build: impl FnOnce(&mut Builder<LocalExecutor>)) -> Self {
        Self::of(LIMIT, build).await
    }

    async fn of(limit: u32, build: impl FnOnce(&mut Builder<LocalExecutor>)) -> Self {
        let (mut client, server) = duplex(16 * 1024);
        let (io, calm) = Frames::new(server, Whose::Client, bounds(limit));
        let mut builder = Builder::new(LocalExecutor);
        build(&mut builder);
        let service = service_fn(|_| async {
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
        });
        let served = builder.serve_connection(TokioIo::new(io), service);
        let served = tokio::task::spawn_local(served);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        client.write_all(preface).await.unwrap();
        let hello = [frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat();
        client.write_all(&hello).await.unwrap();
        Self {
            client,
            calm,
            served,
        }
    }

    /// Sends this again and again, and reads what comes back. The code of the GOAWAY frame at the end; `None`: there is
    /// none, although so many were sent.
    async fn flood(self, piece: &[u8], times: usize) -> (Option<u32>, Option<Ended>) {
        let (mut reader, mut writer) = tokio::io::split(self.client);
        let sending = async {
            for _ in 0..times {
                if writer.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        let mut answered = Vec::new();
        let reading = reader.read_to_end(&mut answered);
        let _ = tokio::join!(sending, reading);
        let _ = self.served.await.unwrap();
        (goaway(&answered), self.calm.ended())
    }
}

fn goaway(answered: &[u8]) -> Option<u32> {
    let (mut scanner, mut at) = (Scanner::after(0), 0);
    let mut code = None;
    while let Some((frame, next)) = scanner.next(answered, at) {
        if frame.kind == GOAWAY {
            let bytes = answered[next + 4..next + 8].try_into().unwrap();
            code = Some(u32::from_be_bytes(bytes)).filter(|code| *code != 0);
        }
        at = next;
    }
    code
}

#[tokio::test]
async fn control_frames_beyond_the_limit_end_the_connection() {
    let floods = [
        ("PING", frame(6, 0, 0, &[0; 8])),
        ("PING answers", frame(6, 1, 0, &[0; 8])),
        ("SETTINGS", frame(4, 0, 0, &[])),
        ("PRIORITY", frame(2, 0, 3, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
        ("unknown", frame(200, 7, 5, b"what is this")),
    ];
    for (name, piece) in floods {
        let flooding = async { Pair::new(|_| ()).await.flood(&piece, 1_000).await };
        let (code, ended) = LocalSet::new().run_until(flooding).await;
        assert_eq!(code, Some(CALM), "{name}");
        assert_eq!(ended, Some(Ended::ControlFrames), "{name}");
        let few = async { Pair::new(|_| ()).await.flood(&piece, 90).await };
        let (code, ended) = LocalSet::new().run_until(few).await;
        assert_eq!((code, ended), (None, None), "few of {name}");
    }
}

#[tokio::test]
async fn a_flood_is_stopped_however_it_is_cut() {
    let pings = frame(6, 0, 0, &[0; 8]).repeat(10);
    for cut in 1..pings.len() {
        let flooding = async {
            let mut pair = Pair::new(|_| ()).await;
            pair.client.write_all(&pings[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            let turned = [&pings[cut..], &pings[..cut]].concat();
            pair.flood(&turned, 100).await
        };
        let (code, _) = LocalSet::new().run_until(flooding).await;
        assert_eq!(code, Some(CALM), "cut at {cut}");
    }
}

#[tokio::test]
async fn whoever_serves_a_connection_can_end_it() {
    let asked = async {
        let pair = Pair::new(|_| ()).await;
        pair.calm.ask();
        pair.flood(&frame(6, 0, 0, &[0; 8]), 1).await
    };
    let (code, ended) = LocalSet::new().run_until(asked).await;
    assert_eq!((code, ended), (Some(CALM), Some(Ended::Asked)));
}

#[tokio::test]
async fn what_the_library_says_is_known() {
    let open = frame(HEADERS, scan::END_HEADERS, 1, &get(1));
    let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
    // It depends on itself.
    let priority = [&[0, 0, 0, 1, 0][..], &get(1)].concat();
    let pieces = frame(9, 0, 1, &[]).repeat(20);
    let empty = frame(0, 0, 1, &[]).repeat(200);
    let large = get(120);
    let header = &large[6..];
    let large = [&large[..], &header.repeat(8)].concat();
    let cases: [(&str, Vec<u8>); 5] = [
        ("too_many_resets", [&open[..], &reset].concat()),
        (
            "too_many_internal_resets",
            frame(HEADERS, scan::END_HEADERS | 0x20, 1, &priority),
        ),
        (
            "too_many_continuations",
            [frame(HEADERS, 0, 1, &get(1)), pieces].concat(),
        ),
        (
            "header_list_way_too_large",
            frame(HEADERS, scan::END_HEADERS, 1, &large),
        ),
        ("too_many_data_frames", [open, empty].concat()),
    ];
    for (reason, frames) in cases {
        let run = async {
            let pair = Pair::new(|builder| {
                builder.max_pending_accept_reset_streams(0);
                builder.max_local_error_reset_streams(0);
                builder.max_header_list_size(300);
            });
            pair.await.flood(&frames, 1).await
        };
        let (code, ended) = LocalSet::new().run_until(run).await;
        assert_eq!((code, ended), (Some(CALM), Some(Ended::Said(reason))));
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Reads up to a frame of this kind.
async fn read_until(client: &mut DuplexStream, kind: u8, flags: u8) {
    loop {
        let mut head = [0; HEAD];
        client.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        client.read_exact(&mut vec![0; length]).await.unwrap();
        if (head[3], head[4]) == (kind, flags) {
            return;
        }
    }
}

#[tokio::test]
async fn whoever_asks_is_woken_once_the_peer_s_settings_count() {
    let run = async {
        let mut pair = Pair::new(|_| ()).await;
        let client = &mut pair.client;
        read_until(client, SETTINGS, ACK).await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        pair.calm.on_settings(&waker);
        client.write_all(&frame(6, 0, 0, &[0; 8])).await.unwrap();
        read_until(client, 6, ACK).await;
        let mut times = vec![woken.0.load(Relaxed)];
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
        for _ in 0..2 {
            client.write_all(&settings).await.unwrap();
            read_until(client, SETTINGS, ACK).await;
            times.push(woken.0.load(Relaxed));
            pair.calm.on_settings(&waker);
        }
        times
    };
    assert_eq!(LocalSet::new().run_until(run).await, [0, 1, 2]);
}

/// What is refused of five streams where two may be open, by a server that has refused so many itself.
async fn refused(own: u32, most: u32) -> (Vec<u32>, u32, u32) {
    let mut pair = Pair::new(|builder| {
        builder.max_concurrent_streams(most);
    })
    .await;
    for _ in 0..own {
        pair.calm.refuse();
    }
    let streams = [1, 3, 5, 7, 9].map(|id| frame(HEADERS, scan::END_HEADERS, id, &get(1)));
    pair.client.write_all(&streams.concat()).await.unwrap();
    let calm = pair.calm.clone();
    let mut told = 0;
    let listening = async {
        while told < 5_u32.saturating_sub(most) - own {
            calm.pieces().stop().await;
            told += calm.take_refused_streams();
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), listening).await;
    pair.client.shutdown().await.unwrap();
    let mut answered = Vec::new();
    let _ = pair.client.read_to_end(&mut answered).await;
    told += calm.take_refused_streams();
    (resets(&answered, REFUSED), told, calm.faults())
}

/// The streams that were reset with this code.
fn resets(answered: &[u8], code: &[u8]) -> Vec<u32> {
    let (mut scanner, mut at) = (Scanner::after(0), 0);
    let mut streams = Vec::new();
    while let Some((frame, next)) = scanner.next(answered, at) {
        if frame.kind == RST_STREAM && answered[next..].starts_with(code) {
            streams.push(frame.stream);
        }
        at = next;
    }
    streams
}

#[tokio::test]
async fn streams_that_the_library_refuses_are_told_and_those_that_the_server_refuses_are_not() {
    for (own, most, expected) in [
        (0, 5, (vec![], 0, 0)),
        (0, 2, (vec![5, 7, 9], 3, 3)),
        (1, 2, (vec![5, 7, 9], 2, 2)),
        (3, 2, (vec![5, 7, 9], 0, 0)),
    ] {
        let seen = LocalSet::new().run_until(refused(own, most)).await;
        assert_eq!(seen, expected, "{own} of its own, {most} may be open");
    }
}

#[tokio::test]
async fn a_head_far_larger_than_it_may_be_ends_the_connection_before_it_is_held() {
    let begins = frame(HEADERS, 0, 1, &get(1));
    let room = ABUSE * HEADER_LIST as usize - begins.len();
    let run = async |last: u8, length: usize| {
        let goes_on = frame(CONTINUATION, last, 1, &vec![0; length]);
        let mut pair = Pair::new(|_| ()).await;
        pair.client.write_all(&begins).await.unwrap();
        pair.flood(&goes_on, 1).await
    };
    for last in [0, scan::END_HEADERS] {
        let (code, ended) = LocalSet::new().run_until(run(last, room + HEAD + 1)).await;
        let why = Ended::Said(CONTINUATIONS);
        assert_eq!((code, ended), (Some(CALM), Some(why)), "{last}");
    }
    // Whatever else is wrong with it.
    let (_, ended) = LocalSet::new().run_until(run(0, room)).await;
    assert_eq!(ended, None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let stalled = async {
        let mut pair = Pair::of(u32::MAX, |_| ()).await;
        let begun = tokio::time::Instant::now();
        // Answers fill what lies between; then nothing more is read either.
        let pings = frame(6, 0, 0, &[0; 8]).repeat(50);
        let second = Duration::from_secs(1);
        while let Ok(sent) = tokio::time::timeout(second, pair.client.write_all(&pings)).await {
            sent.unwrap();
        }
        let served = pair.served.await.unwrap();
        (served.is_err(), pair.calm.ended(), begun.elapsed())
    };
    let (failed, ended, took) = LocalSet::new().run_until(stalled).await;
    assert_eq!((failed, ended), (true, Some(Ended::Stalled)));
    assert!(
        (PATIENCE..PATIENCE + Duration::from_secs(1)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_client_is_guarded_like_a_server() {
    let run = async {
        let (mut server, client) = duplex(64 * 1024);
        let (io, calm) = Frames::new(client, Whose::Server, bounds(LIMIT));
        let (_sender, connection) = hyper::client::conn::http2::Builder::new(LocalExecutor)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(io))
            .await
            .unwrap();
        let driven = tokio::task::spawn_local(connection);
        server.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        let pings = frame(6, 0, 0, &[0; 8]).repeat(1_000);
        server.write_all(&pings).await.unwrap();
        let mut answered = Vec::new();
        server.read_to_end(&mut answered).await.unwrap();
        let _ = driven.await.unwrap();
        (goaway(&answered[PREFACE..]), calm.ended())
    };
    let (code, ended) = LocalSet::new().run_until(run).await;
    assert_eq!((code, ended), (Some(CALM), Some(Ended::ControlFrames)));
}

/// Whoever waits for each answer knows that what is sent is read by itself.
#[tokio::test]
async fn a_flood_is_stopped_though_no_head_comes_in_one_piece() {
    let ping = frame(6, 0, 0, &[0; 8]);
    for cut in 1..HEAD {
        let flooding = async {
            let mut pair = Pair::new(|_| ()).await;
            pair.client.write_all(&ping[..cut]).await.unwrap();
            let turned = [&ping[cut..], &ping[..cut]].concat();
            let (mut answered, mut sent) = (Vec::new(), 0);
            while goaway(&answered).is_none() && sent < 1_000 {
                pair.client.write_all(&turned).await.unwrap();
                sent += 1;
                let before = answered.len();
                while answered.len() < before + ping.len() {
                    let read = pair.client.read_buf(&mut answered).await.unwrap();
                    assert!(read > 0, "closed without a word");
                }
            }
            (goaway(&answered), sent, pair.calm.ended())
        };
        let (code, sent, ended) = LocalSet::new().run_until(flooding).await;
        assert_eq!(
            (code, ended),
            (Some(CALM), Some(Ended::ControlFrames)),
            "{cut}"
        );
        assert!(sent < 3 * LIMIT, "{sent} cut at {cut}");
    }
}

/// Sends an upload of padded frames to a server that takes them at once. What it took, and why the connection ended.
async fn padded_upload(times: usize, data: usize, padding: u8) -> (usize, bool, Option<Ended>) {
    let (mut client, server) = duplex(8 * 1024);
    let (io, calm) = Frames::new(server, Whose::Client, bounds(LIMIT));
    calm.pieces().watch(1 << 20);
    let (taken, pieces) = (std::rc::Rc::new(std::cell::Cell::new(0)), calm.clone());
    let counted = taken.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (counted, pieces) = (counted.clone(), pieces.clone());
        async move {
            let mut body = request.into_body();
            while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
                let length = frame.unwrap().data_ref().map_or(0, Bytes::len);
                counted.set(counted.get() + length);
                pieces.pieces().taken(length);
            }
            Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut builder = Builder::new(LocalExecutor);
    builder.initial_connection_window_size(1 << 20);
    let served = builder.serve_connection(TokioIo::new(io), service);
    let served = tokio::task::spawn_local(served);
    let hello = [frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat();
    let post = [0x83, 0x86, 0x84, 0x41, 1, b'a'];
    let head = frame(HEADERS, scan::END_HEADERS, 1, &post);
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &hello, &head].concat();
    client.write_all(&begin).await.unwrap();
    let payload = [&[padding][..], &vec![b'x'; data], &vec![0; padding.into()]].concat();
    let piece = frame(DATA, PADDED, 1, &payload);
    let (mut reader, mut writer) = tokio::io::split(client);
    // It stays within its window: as much as that is sent, and then what is taken.
    let window = 60_000 / payload.len();
    for sent in 0..times {
        while taken.get() + window * data < sent * data {
            if calm.pieces().are_too_many() || calm.ended().is_some() {
                return (taken.get(), true, calm.ended());
            }
            tokio::task::yield_now().await;
        }
        writer.write_all(&piece).await.unwrap();
        drain(&mut reader).await;
    }
    writer
        .write_all(&frame(DATA, END_STREAM, 1, &[]))
        .await
        .unwrap();
    writer.shutdown().await.unwrap();
    let _ = reader.read_to_end(&mut Vec::new()).await;
    let _ = served.await.unwrap();
    (taken.get(), calm.pieces().are_too_many(), calm.ended())
}

/// Takes what is there, and waits for nothing.
async fn drain(reader: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    while let Some(Ok(1..)) = futures_util::FutureExt::now_or_never(reader.read(&mut buffer)) {}
}

#[tokio::test]
async fn an_upload_of_padded_pieces_that_are_taken_goes_on_as_long_as_it_likes() {
    for (times, data, padding) in [
        (40_000, 300, 10),
        (4_000, 300, 0),
        (4_000, 100, 155),
        (4_000, 1, 255),
        (4_000, 255, 1),
    ] {
        let uploading = padded_upload(times, data, padding);
        let seen = LocalSet::new().run_until(uploading).await;
        assert_eq!(seen, (times * data, false, None), "{data} and {padding}");
    }
}

#[test]
fn padding_is_known_however_its_frame_is_cut() {
    let frames = [
        frame(DATA, PADDED, 1, &[10; 311]),
        frame(DATA, PADDED, 1, &[200; 301]),
        frame(DATA, PADDED, 1, &[9; 10]),
        frame(DATA, PADDED, 1, &[]),
        frame(DATA, 0, 1, &[10; 56]),
    ]
    .concat();
    for cut in 1..frames.len() {
        let (mut io, calm) = Frames::new((), Whose::Server, bounds(LIMIT));
        calm.pieces().watch(4 * (156 + 200) - 4);
        let mut buffer = vec![0; frames.len()];
        for part in frames.chunks(cut) {
            let mut buf = ReadBuf::new(&mut buffer);
            buf.put_slice(part);
            io.follow(&mut buf, 0);
        }
        // 300, 100, 0 and 56 bytes of bodies: one byte less of one of them would not stop it.
        assert!(calm.pieces().are_too_many(), "cut at {cut}");
        calm.pieces().taken(100);
        calm.pieces().taken(56);
        assert!(calm.pieces().go_on());
    }
}

/// How many malformed streams are told of by a server that has passed so many resets on, and which were reset for a fault.
async fn malformed(passed_on: u32, sent: &[Vec<u8>]) -> (u32, Vec<u32>) {
    const LAST: &[u8; 8] = b"--last--";
    let mut pair = Pair::new(|builder| {
        builder.max_header_list_size(300);
    })
    .await;
    for _ in 0..passed_on {
        pair.calm.passes_on();
    }
    pair.client.write_all(&sent.concat()).await.unwrap();
    // It is answered after everything else.
    let last = frame(6, 0, 0, LAST);
    pair.client.write_all(&last).await.unwrap();
    let mut answered = Vec::new();
    while !answered.ends_with(LAST)
        && let Ok(byte) = pair.client.read_u8().await
    {
        answered.push(byte);
    }
    let _ = pair.client.shutdown().await;
    let _ = pair.client.read_to_end(&mut answered).await;
    (pair.calm.take_malformed(), resets(&answered, &[0, 0, 0, 1]))
}

#[tokio::test]
async fn streams_that_are_reset_for_what_came_on_them_are_told_of() {
    let head = |flags, more: &[u8]| {
        let flags = scan::END_HEADERS | flags;
        frame(HEADERS, flags, 1, &[&get(1)[..], more].concat())
    };
    let open = || head(0, &[]);
    let trailers = |fields: &[u8]| frame(HEADERS, scan::END_HEADERS | END_STREAM, 1, fields);
    let large = || head(0, &get(120)[6..].repeat(3));
    let fault = (1, vec![1]);
    let none = (0, vec![]);
    for (name, passed_on, sent, expected) in [
        (
            "a good request",
            0,
            vec![open(), trailers(b"")],
            none.clone(),
        ),
        (
            "connection",
            0,
            vec![head(1, b"\0\x0aconnection\x01x")],
            fault.clone(),
        ),
        (
            "a length that is not the body's",
            0,
            vec![head(1, b"\x0f\x0d\x019")],
            fault.clone(),
        ),
        (
            "another's fault",
            1,
            vec![head(1, b"\x0f\x0d\x019")],
            (0, vec![1]),
        ),
        (
            "trailers",
            0,
            vec![open(), trailers(b"\0\x01x\x01y")],
            none.clone(),
        ),
        (
            "a path in trailers",
            0,
            vec![open(), trailers(b"\x84")],
            fault,
        ),
        (
            "another request on a stream that has ended",
            0,
            vec![head(1, b""), head(1, b"")],
            none.clone(),
        ),
        ("a head that is too large", 0, vec![large()], (0, vec![1])),
        (
            "a stream that is given up",
            0,
            vec![open(), frame(3, 0, 1, &[0, 0, 0, 8])],
            none,
        ),
    ] {
        let seen = LocalSet::new().run_until(malformed(passed_on, &sent)).await;
        assert_eq!(seen, expected, "{name}");
    }
}
