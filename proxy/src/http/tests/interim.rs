//! Interim answers (1xx) before the answer: a few are nothing, and for endless ones their own request gets 502.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::{Method, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tulle_runtime::limits::MAX_INTERIM;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::telemetry::{Limit, ResponseFlag};

const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// More than anybody means; a server that is not stopped does not hang for it.
const ENDLESS: u32 = 100_000;

/// A server that sends so many interim answers before each answer. How many it could send in all is counted.
async fn server(version: HttpVersion, interim: u32) -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Rc::new(Cell::new(0));
    let counted = sent.clone();
    tokio::task::spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::task::spawn_local(async move {
                // Its connection may end at any time.
                let _ = match version {
                    Http1 => serve_http1(tcp, interim, &counted).await,
                    Http2 => serve_http2(tcp, interim, &counted).await,
                };
            });
        }
    });
    (address, sent)
}

async fn serve_http1(mut tcp: TcpStream, interim: u32, sent: &Cell<u32>) -> std::io::Result<()> {
    let mut seen = Vec::new();
    while tcp.read_buf(&mut seen).await? > 0 {
        if !seen.ends_with(b"\r\n\r\n") {
            continue;
        }
        seen.clear();
        for _ in 0..interim {
            tcp.write_all(HINT).await?;
            sent.set(sent.get() + 1);
        }
        tcp.write_all(OK).await?;
    }
    Ok(())
}

async fn serve_http2(mut tcp: TcpStream, interim: u32, sent: &Cell<u32>) -> std::io::Result<()> {
    tcp.read_exact(&mut [0; 24]).await?;
    tcp.write_all(&frame(4, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tcp.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] != 1 {
            continue;
        }
        // `:status: 103`, and `:status: 201` with a body, both in full.
        for _ in 0..interim {
            tcp.write_all(&frame(1, 4, head[8], b"\x08\x03103")).await?;
            sent.set(sent.get() + 1);
        }
        tcp.write_all(&frame(1, 4, head[8], b"\x08\x03201")).await?;
        tcp.write_all(&frame(0, 1, head[8], b"ok")).await?;
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
    [&head[..], payload].concat()
}

/// A sidecar in front of such a server.
fn sidecar(version: HttpVersion, address: SocketAddr) -> Sidecar {
    let mut to = cluster("c", plain(&[address]));
    to.http = match version {
        Http1 => UpstreamHttp::Http1,
        Http2 => UpstreamHttp::Http2,
    };
    Sidecar::new(outbound(vec![route_to("c")], vec![to]))
}

async fn ask(client: &mut Client) -> StatusCode {
    let request = client.build(Method::GET, "/").body(Full::default());
    client.request(request.unwrap()).await.unwrap().status
}

#[test]
fn as_many_interim_answers_as_there_may_be_are_nothing_to_each_request() {
    run(async {
        for (version, status) in [(Http1, StatusCode::OK), (Http2, StatusCode::CREATED)] {
            let (address, sent) = server(version, MAX_INTERIM).await;
            let sidecar = sidecar(version, address);
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            for _ in 0..20 {
                assert_eq!(ask(&mut client).await, status, "{version:?}");
            }
            assert_eq!(sent.get(), 20 * MAX_INTERIM);
            let limits = &sidecar.worker.limits;
            assert_eq!(limits.count(Limit::Interim, Direction::Outbound), 0);
        }
    });
}

#[test]
fn for_endless_interim_answers_the_request_gets_502_and_its_server_is_stopped() {
    run(async {
        for version in [Http1, Http2] {
            for client in [Http1, Http2] {
                let (address, sent) = server(version, ENDLESS).await;
                let sidecar = sidecar(version, address);
                let mut client = Client::new(sidecar.client(client), client).await;
                assert_eq!(ask(&mut client).await, StatusCode::BAD_GATEWAY);
                let record = &sidecar.records()[0];
                assert_eq!(
                    record.details,
                    "the upstream sent too many interim responses"
                );
                let limits = &sidecar.worker.limits;
                assert_eq!(limits.count(Limit::Interim, Direction::Outbound), 1);
                // What its socket takes in before it hears of it.
                assert!(sent.get() < ENDLESS, "{version:?}: {}", sent.get());
            }
        }
    });
}

/// A server with which a first request waits while the second one gets so many interim answers; then the first is answered.
async fn one_of_two(interim: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        // Only one connection is taken: on another nobody would be answered.
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; 24]).await.unwrap();
        tcp.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        let mut head = [0; 9];
        while tcp.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            tcp.read_exact(&mut vec![0; length as usize]).await.unwrap();
            if head[3] == 1 && head[8] == 3 {
                let hints = frame(1, 4, 3, b"\x08\x03103").repeat(interim);
                let answer = frame(1, 5, 1, b"\x08\x03201");
                tcp.write_all(&[hints, answer].concat()).await.unwrap();
            } else if head[3] == 1 && head[8] > 3 {
                let answer = frame(1, 5, head[8], b"\x88");
                tcp.write_all(&answer).await.unwrap();
            }
        }
    });
    address
}

#[test]
fn on_a_connection_that_requests_share_only_the_one_with_endless_interim_answers_fails() {
    run(async {
        let sidecar = sidecar(Http2, one_of_two(1_000).await);
        let mut other = Client::new(sidecar.client(Http2), Http2).await;
        let other = tokio::task::spawn_local(async move { (ask(&mut other).await, other) });
        tokio::task::yield_now().await;
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        assert_eq!(ask(&mut client).await, StatusCode::BAD_GATEWAY);
        let (answered, mut other) = other.await.unwrap();
        assert_eq!(answered, StatusCode::CREATED);
        for client in [&mut client, &mut other] {
            assert_eq!(ask(client).await, StatusCode::OK);
        }
        let limits = &sidecar.worker.limits;
        assert_eq!(limits.count(Limit::Interim, Direction::Outbound), 1);
        let failed = sidecar.records().into_iter();
        let failed: Vec<_> = failed.filter(|it| it.status.is_server_error()).collect();
        let [failed] = &failed[..] else {
            panic!("{failed:?}");
        };
        assert!(failed.flags.contains(ResponseFlag::UpstreamProtocolError));
        assert_eq!(failed.attempts, 1);
    });
}

#[test]
fn one_too_many_is_too_many() {
    run(async {
        let (address, _) = server(Http1, MAX_INTERIM + 1).await;
        let sidecar = sidecar(Http1, address);
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(ask(&mut client).await, StatusCode::BAD_GATEWAY);
        let (address, _) = server(Http2, MAX_INTERIM + 2).await;
        let sidecar = self::sidecar(Http2, address);
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(ask(&mut client).await, StatusCode::BAD_GATEWAY);
    });
}

#[test]
fn an_answer_whose_head_is_one_too_many_is_cut_and_that_is_counted() {
    run(async {
        let (address, _) = server(Http2, MAX_INTERIM + 1).await;
        let sidecar = sidecar(Http2, address);
        for times in 1..=3 {
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            let request = client.build(Method::GET, "/").body(Full::default());
            let answer = client.request(request.unwrap()).await;
            assert!(answer.is_err(), "it is cut");
            let limits = &sidecar.worker.limits;
            let counted = limits.count(Limit::Interim, Direction::Outbound);
            assert_eq!(counted, times);
            let record = &sidecar.records()[0];
            let details = "the upstream sent too many interim responses";
            assert_eq!(record.details, details);
            assert!(record.flags.contains(ResponseFlag::UpstreamProtocolError));
        }
    });
}
