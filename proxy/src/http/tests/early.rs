//! Answers that come before the request's body has ended.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::harness::*;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::upstream::LocalExecutor;

#[test]
fn an_early_answer_on_one_stream_of_http2_leaves_the_others_alone() {
    run(async {
        let app = app(Http2, |request: Request<Incoming>| async move {
            let mut response = Response::new(Full::new(Bytes::from_static(b"early")));
            if request.uri().path() == "/early" {
                *response.status_mut() = StatusCode::FORBIDDEN;
            } else {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                *response.body_mut() = Full::new(body);
            }
            response
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let io = TokioIo::new(sidecar.client(Http2));
        let (mut sender, connection) = http2::handshake(LocalExecutor, io).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut post = |path: &str| {
            let (body, pieces) = mpsc::unbounded_channel::<&'static str>();
            let pieces = futures_util::stream::unfold(pieces, |mut pieces| async {
                let piece = Bytes::from_static(pieces.recv().await?.as_bytes());
                Some((Ok::<_, hyper::Error>(Frame::data(piece)), pieces))
            });
            let uri = format!("http://reviews{path}");
            let request = Request::post(uri).body(StreamBody::new(Box::pin(pieces)));
            (body, sender.send_request(request.unwrap()))
        };
        let (slow, answer_to_slow) = post("/slow");
        slow.send("one ").unwrap();
        for _ in 0..3 {
            let (unfinished, answer) = post("/early");
            unfinished.send("some").unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "early", "whole, although the request is not");
        }
        slow.send("two").unwrap();
        drop(slow);
        let answer = answer_to_slow.await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "one two");
    });
}

#[test]
fn an_early_answer_of_http1_is_whole_and_its_connection_is_not_used_again() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            let head = read_head(&mut tcp).await;
            let answer: &[u8] = match head.split(' ').nth(1) {
                Some("/early") => b"HTTP/1.1 403 No\r\ncontent-length: 5\r\n\r\nearly",
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            let _ = tcp.write_all(answer).await;
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut io = sidecar.client(Http1);
        io.write_all(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nsome")
            .await
            .unwrap();
        let head = read_head(&mut io).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        let mut body = [0; 5];
        io.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"early");
        drop(io);
        assert_eq!(sidecar.worker.upstream.pooled(), 0);
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.body, "ok");
    });
}

#[test]
fn an_answer_made_here_to_head_has_no_body() {
    run(async {
        let sidecar = Sidecar::new(outbound(Vec::new(), Vec::new()));
        for version in [Http1, Http2] {
            let mut client = Client::new(sidecar.client(version), version).await;
            // h2's client takes a body for a broken stream.
            let answer = client.send(Method::HEAD, "/", "").await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{version:?}");
            assert!(answer.body.is_empty(), "{version:?}");
            let answer = client.get("/").await;
            assert!(!answer.body.is_empty(), "{version:?}");
        }
    });
}
