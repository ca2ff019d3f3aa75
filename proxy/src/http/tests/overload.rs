//! What happens to requests when there is too much going on, and that what was going on before goes on.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

use super::harness::*;
use super::inbound::mesh_peer;
use crate::conn::Direction;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::overload::{Haste, Victim};
use crate::settings::Settings;
use crate::telemetry::Limit;

/// An app that answers after a moment.
async fn unhurried(version: HttpVersion) -> std::net::SocketAddr {
    app(version, |_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Response::new(Full::new(Bytes::from_static(b"done")))
    })
    .await
}

#[test]
fn requests_over_the_bound_are_refused_and_those_within_it_served() {
    run(async {
        for version in [Http1, Http2] {
            let mut settings = Settings::default();
            settings.bounds.requests = 2;
            let sidecar = Sidecar::with_settings(service(&[unhurried(version).await]), settings);
            let ask = || async {
                let mut client = Client::new(sidecar.client(version), version).await;
                client.get("/").await.status.as_u16()
            };
            let mut statuses: [u16; 5] = tokio::join!(ask(), ask(), ask(), ask(), ask()).into();
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 200, 503, 503, 503], "{version:?}");
            assert_eq!(ask().await, 200, "{version:?}: there is room again");
            let refused: Vec<_> = sidecar.records();
            let refused = refused.iter().filter(|it| it.flags.to_string() == "OM");
            assert_eq!(refused.count(), 3);
            assert_eq!(
                sidecar
                    .worker
                    .limits
                    .count(Limit::Requests, Direction::Outbound),
                3
            );
            assert_eq!(sidecar.worker.requests.get(), 0);
        }
    });
}

#[test]
fn while_memory_is_short_requests_are_refused_and_what_was_accepted_before_is_finished() {
    run(async {
        let sidecar = Sidecar::new(service(&[unhurried(Http1).await]));
        let mut before = Client::new(sidecar.client(Http1), Http1).await;
        let mut after = Client::new(sidecar.client(Http1), Http1).await;
        let shortage = async {
            while sidecar.worker.requests.get() == 0 {
                tokio::task::yield_now().await;
            }
            sidecar.worker.overload.use_memory(95);
            sidecar.worker.overload.give_up_in_vain();
            after.send(Method::POST, "/", "a body").await
        };
        let (finished, refused) = tokio::join!(before.get("/"), shortage);
        assert_eq!(
            (finished.status, &*finished.body),
            (StatusCode::OK, &b"done"[..])
        );
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.header("x-tulle-failed-hop"), "source");
        assert_eq!(
            sidecar
                .worker
                .limits
                .count(Limit::Memory, Direction::Outbound),
            1
        );
        let again = before.get("/").await.status;
        assert_eq!(again, StatusCode::OK, "it was there before");
        sidecar.worker.overload.use_memory(98);
        sidecar.worker.overload.has_given_up(true);
        let again = before.get("/").await.status;
        assert_eq!(again, StatusCode::OK, "there may be others who have to go");
        sidecar.worker.overload.give_up_in_vain();
        let again = before.get("/").await.status;
        assert_eq!(again, StatusCode::SERVICE_UNAVAILABLE);
        sidecar.worker.overload.use_memory(50);
        assert_eq!(after.get("/").await.status, StatusCode::OK);
    });
}

/// The app of this pod, connected as it is when connections are accepted: so that its connection can be given up.
pub(super) fn accepted(sidecar: &Sidecar, version: HttpVersion) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let worker = sidecar.worker.clone();
    let downstream = sidecar.downstream(SERVICE.into());
    let newest = worker.newest.clone();
    let place = newest.place();
    let task = tokio::task::spawn_local(async move {
        let _place = place;
        let _ = crate::http::serve(worker, downstream, theirs, version).await;
    });
    newest.serves(task.abort_handle(), Direction::Outbound, CLIENT.into());
    ours
}

/// Asks for much and takes none of it; once it has been given up, resolves to how much there was.
async fn takes_nothing(
    io: DuplexStream,
    version: HttpVersion,
    given_up: impl Future<Output = ()>,
) -> usize {
    if version == Http1 {
        let mut io = io;
        io.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        given_up.await;
        return io.read_to_end(&mut Vec::new()).await.unwrap();
    }
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    let request = http::Request::get("http://a/large").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    given_up.await;
    let mut read = 0;
    while let Some(Ok(data)) = body.data().await {
        read += data.len();
    }
    read
}

#[test]
fn when_memory_is_needed_answers_that_nobody_takes_are_given_up_and_nobody_else() {
    const LARGE: usize = 1 << 20;
    run(async {
        for version in [Http1, Http2] {
            let app = app(version, |request| async move {
                let size = if request.uri().path() == "/large" {
                    LARGE
                } else {
                    10
                };
                Response::new(Full::new(Bytes::from(vec![b'x'; size])))
            })
            .await;
            let sidecar = Sidecar::new(service(&[app]));
            let newest = &sidecar.worker.newest;
            let mut before = Client::new(accepted(&sidecar, version), version).await;
            before.get("/").await;
            let stuck = accepted(&sidecar, version);
            // Whoever came last would go if nobody else was to blame.
            let mut last = Client::new(accepted(&sidecar, version), version).await;
            let read = takes_nothing(stuck, version, async {
                while !newest.somebody_waits() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let (mut streams, mut connections) = (0, Vec::new());
                let any = newest.give_up_streams(Haste::Some, |_, _| streams += 1);
                let stuck = version == Http2;
                assert_eq!((any, streams), (stuck, u32::from(stuck)));
                newest.give_up_connections(any, |victim, _, _| connections.push(victim));
                let unread = [Victim::Unread].iter().filter(|_| version == Http1);
                assert!(connections.iter().eq(unread), "{connections:?}");
            });
            let read = read.await;
            assert!(read < LARGE, "{version:?}: {read} bytes were left");
            assert_eq!(before.get("/").await.status, StatusCode::OK, "{version:?}");
            assert_eq!(last.get("/").await.status, StatusCode::OK, "{version:?}");
        }
    });
}

#[test]
fn a_peer_is_told_that_its_request_was_not_processed_so_that_it_goes_elsewhere() {
    run(async {
        for version in [Http1, Http2] {
            let app = echo(version, "a").await;
            let ca = Ca::new();
            let full = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let free = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            full.worker.overload.use_memory(95);
            full.worker.overload.give_up_in_vain();
            let endpoints = meshed(&[full.listen(app).await, free.listen(app).await], "reviews");
            let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let client_side = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(client_side.client(version), version).await;
            for _ in 0..4 {
                let answer = client.send(Method::POST, "/", "once").await;
                assert_eq!(answer.status, StatusCode::OK, "{version:?}");
            }
            assert!(full.worker.limits.count(Limit::Memory, Direction::Inbound) > 0);
        }
    });
}

/// Sends half a request to an app, waits, and sends more of it: the status, and whether the answer says that the app never
/// got the request.
async fn upload(
    io: DuplexStream,
    version: HttpVersion,
    half: impl Future<Output = ()>,
) -> (u16, bool) {
    const PIECE: &[u8] = &[b'x'; 20_000];
    if version == Http1 {
        let mut io = io;
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
        io.write_all(head).await.unwrap();
        io.write_all(PIECE).await.unwrap();
        half.await;
        io.write_all(PIECE).await.unwrap();
        let head = read_head(&mut io).await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        return (status, head.contains("x-tulle-unprocessed"));
    }
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    let request = http::Request::post("http://a/").body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(PIECE.into(), false).unwrap();
    half.await;
    body.send_data(PIECE.into(), false).unwrap();
    match response.await {
        Ok(response) => (response.status().as_u16(), false),
        Err(error) => (0, error.reason() == Some(h2::Reason::REFUSED_STREAM)),
    }
}

#[test]
fn what_an_app_may_have_got_half_of_is_never_told_as_not_processed() {
    run(async {
        for version in [Http1, Http2] {
            let half = Rc::new(Notify::new());
            let got = half.clone();
            let app = app(version, move |request| {
                let got = got.clone();
                async move {
                    let (mut body, mut read) = (request.into_body(), 0);
                    while let Some(Ok(frame)) = body.frame().await {
                        read += frame.data_ref().map_or(0, Bytes::len);
                        if read == 20_000 {
                            got.notify_one();
                        }
                    }
                    Response::new(Full::default())
                }
            })
            .await;
            let sidecar = Sidecar::new(inbound(false));
            let caller = || sidecar.caller(app, mesh_peer(), version);
            let cut = upload(caller(), version, async {
                half.notified().await;
                sidecar.worker.overload.use_memory(92);
            });
            assert_eq!(cut.await, (503, false), "{version:?}");
            assert_eq!(sidecar.record().await.flags.to_string(), "OM");
            // What is refused at once is.
            sidecar.worker.overload.use_memory(98);
            sidecar.worker.overload.give_up_in_vain();
            let refused = upload(caller(), version, async {}).await;
            assert!(refused.1, "{version:?}: {refused:?}");
        }
    });
}

#[test]
fn while_memory_is_short_large_transfers_are_cut_and_small_ones_are_not() {
    run(async {
        // It says so much, waits for a word, and says so much again.
        let (words, _) = tokio::sync::broadcast::channel::<()>(1);
        let app = raw_app({
            let words = words.clone();
            move |mut tcp| {
                let mut word = words.subscribe();
                async move {
                    let head = read_head(&mut tcp).await;
                    let half: usize = if head.contains("/large") {
                        100_000
                    } else {
                        1_000
                    };
                    let length = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * half);
                    tcp.write_all(length.as_bytes()).await.unwrap();
                    tcp.write_all(&vec![b'x'; half]).await.unwrap();
                    let _ = word.recv().await;
                    let _ = tcp.write_all(&vec![b'x'; half]).await;
                }
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        for (path, half, whole) in [("/large", 100_000, false), ("/small", 1_000, true)] {
            sidecar.worker.overload.use_memory(50);
            let mut client = sidecar.client(Http1);
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            read_head(&mut client).await;
            client.read_exact(&mut vec![0; half]).await.unwrap();
            sidecar.worker.overload.use_memory(92);
            words.send(()).unwrap();
            let rest = client.read_exact(&mut vec![0; half]).await;
            assert_eq!(rest.is_ok(), whole, "{path}");
            let flags = sidecar.record().await.flags.to_string();
            assert_eq!(flags, if whole { "-" } else { "OM" }, "{path}");
        }
    });
}

#[test]
fn while_memory_is_short_a_large_upload_is_cut_with_503() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            // Everything is read, nothing is answered.
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut client = sidecar.client(Http1);
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
        client.write_all(head).await.unwrap();
        client.write_all(&[b'x'; 200_000]).await.unwrap();
        while sidecar.worker.requests.get() == 0 {
            tokio::task::yield_now().await;
        }
        sidecar.worker.overload.use_memory(92);
        client.write_all(&[b'x'; 200_000]).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        let record = sidecar.record().await;
        assert_eq!(
            (record.flags.to_string(), record.attempts),
            ("OM".to_owned(), 1)
        );
        assert_eq!(
            sidecar
                .worker
                .limits
                .count(Limit::Memory, Direction::Outbound),
            1
        );
    });
}
