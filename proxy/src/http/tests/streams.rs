//! Streams beyond those that a client may have open: who is refused, who waits, and what is told.

use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, Semaphore};

use super::harness::*;
use super::inbound::mesh_peer;
use crate::conn::HttpVersion::Http2;
use crate::conn::{Direction, Security};
use crate::settings::Settings;
use crate::telemetry::Limit;

/// Streams that a client may have open here.
const MOST: u32 = 2;

/// An app that answers when it may, and a sidecar in front of it.
async fn hesitant() -> (std::net::SocketAddr, Rc<Semaphore>, Sidecar) {
    let may = Rc::new(Semaphore::new(0));
    let gate = may.clone();
    let app = app(Http2, move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(Full::default())
        }
    })
    .await;
    let mut settings = Settings::default();
    settings.http2.max_streams = MOST;
    (app, may, Sidecar::with_settings(inbound(true), settings))
}

fn refused(sidecar: &Sidecar) -> u64 {
    let limits = &sidecar.worker.limits;
    limits.count(Limit::H2Streams, Direction::Inbound)
}

/// Opens so many streams at once, whatever it is told; the streams that were refused before the connection ended.
async fn open_all(mut io: DuplexStream, streams: u8) -> Vec<u8> {
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    for stream in 0..streams {
        let head = [0, 0, 6, 1, 5, 0, 0, 0, 1 + 2 * stream];
        io.write_all(&head).await.unwrap();
        io.write_all(b"\x82\x86\x84\x41\x01a").await.unwrap();
    }
    // It is answered at the end, after everything else.
    io.write_all(b"\0\0\x08\x06\0\0\0\0\0--last--")
        .await
        .unwrap();
    let mut refused = Vec::new();
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        io.read_exact(&mut payload).await.unwrap();
        match head[3] {
            3 if payload == [0, 0, 0, 7] => refused.push(head[8]),
            6 if payload == *b"--last--" => return refused,
            _ => {}
        }
    }
}

#[test]
fn streams_beyond_those_that_may_be_open_are_refused_counted_and_told() {
    run(async {
        for security in [Security::Plaintext, mesh_peer()] {
            let (app, _may, sidecar) = hesitant().await;
            let few = sidecar.caller(app, security.clone(), Http2);
            assert_eq!(open_all(few, 2).await, [0; 0]);
            assert_eq!(refused(&sidecar), 0);
            let many = sidecar.caller(app, security, Http2);
            assert_eq!(open_all(many, 5).await, [5, 7, 9]);
            while refused(&sidecar) < 3 {
                tokio::task::yield_now().await;
            }
            assert_eq!(refused(&sidecar), 3);
        }
    });
}

#[test]
fn who_heeds_what_it_is_told_waits_and_is_answered() {
    run(async {
        let (app, may, sidecar) = hesitant().await;
        let mut client = Client::new(sidecar.caller(app, Security::Plaintext, Http2), Http2).await;
        // From now on it knows.
        may.add_permits(1);
        assert_eq!(client.get("/").await.status, StatusCode::OK);
        let Client::Http2(sender) = &client else {
            unreachable!()
        };
        let asking = (0..5).map(|_| {
            let mut client = Client::Http2(sender.clone());
            async move { client.get("/").await.status }
        });
        let (answered, ()) = tokio::join!(futures_util::future::join_all(asking), async {
            while sidecar.worker.requests.get() < MOST as usize {
                tokio::task::yield_now().await;
            }
            may.add_permits(5);
        });
        assert_eq!(answered, [StatusCode::OK; 5]);
        assert_eq!(refused(&sidecar), 0);
    });
}

#[test]
fn what_the_sidecar_refuses_because_the_app_never_got_it_is_not_taken_for_that() {
    run(async {
        let (_, _may, sidecar) = hesitant().await;
        let io = sidecar.caller(nobody().await, mesh_peer(), Http2);
        let reason = ask(io, &Notify::new()).await;
        assert_eq!(reason, Some(h2::Reason::REFUSED_STREAM));
        assert_eq!(refused(&sidecar), 0);
    });
}

/// Asks for something, and says when a part of the answer is there; what the stream was reset with.
async fn ask(io: DuplexStream, part: &Notify) -> Option<h2::Reason> {
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    let driven = tokio::task::spawn_local(connection);
    let request = Request::get("http://a/").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let reason = match answer.await {
        Err(error) => error.reason(),
        Ok(answer) => {
            let mut body = answer.into_body();
            loop {
                match body.data().await {
                    Some(Ok(_)) => part.notify_one(),
                    Some(Err(error)) => break error.reason(),
                    None => break None,
                }
            }
        }
    };
    drop(sender);
    // Whatever is told of the connection has been told then.
    let _ = driven.await;
    reason
}

#[test]
fn what_was_answered_in_part_is_not_told_as_refused() {
    run(async {
        for (said, told) in [
            (h2::Reason::REFUSED_STREAM, h2::Reason::INTERNAL_ERROR),
            (h2::Reason::CANCEL, h2::Reason::CANCEL),
        ] {
            let part = Rc::new(Notify::new());
            let got = part.clone();
            let app = raw_app(move |tcp| {
                let got = got.clone();
                async move {
                    let mut connection = h2::server::handshake(tcp).await.unwrap();
                    while let Some(Ok((_, mut answer))) = connection.accept().await {
                        let got = got.clone();
                        tokio::task::spawn_local(async move {
                            let mut body = answer.send_response(Response::new(()), false).unwrap();
                            body.send_data(Bytes::from_static(b"a part"), false)
                                .unwrap();
                            got.notified().await;
                            body.send_reset(said);
                        });
                    }
                }
            })
            .await;
            let (_, _may, sidecar) = hesitant().await;
            let io = sidecar.caller(app, mesh_peer(), Http2);
            assert_eq!(ask(io, &part).await, Some(told));
            assert_eq!(refused(&sidecar), 0);
        }
    });
}
