//! How connections end, in every order and at both ends: what is whole arrives whole, and nothing else looks whole.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::harness::*;
use super::inbound::pair;
use crate::config::cluster::UpstreamHttp;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::net::reset;

/// What an app does after it has read a request.
#[derive(Clone, Copy, Debug)]
struct Ending {
    says: &'static str,
    resets: bool,
    /// The body that the client has to get; `None`: an error, or an answer that says that there was one.
    whole: Option<&'static str>,
}

const fn ending(says: &'static str, resets: bool, whole: Option<&'static str>) -> Ending {
    Ending {
        says,
        resets,
        whole,
    }
}

const HALF_CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
const ENDINGS: [Ending; 13] = [
    ending("", false, None),
    ending("", true, None),
    ending("HTTP/1.1 200 OK\r\ncontent-le", false, None),
    ending("HTTP/1.1 200 OK\r\ncontent-le", true, None),
    ending(
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        false,
        None,
    ),
    ending(
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        true,
        None,
    ),
    ending("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", false, None),
    ending(HALF_CHUNKED, false, None),
    ending(HALF_CHUNKED, true, None),
    // Its end is the end of the connection: if that ends in peace.
    ending("HTTP/1.1 200 OK\r\n\r\nhalf", true, None),
    ending("HTTP/1.1 200 OK\r\n\r\nwhole", false, Some("whole")),
    ending(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole",
        false,
        Some("whole"),
    ),
    ending(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n",
        false,
        Some("whole"),
    ),
];

async fn ends(ending: Ending) -> SocketAddr {
    raw_app(move |mut tcp| async move {
        read_head(&mut tcp).await;
        let _ = tcp.write_all(ending.says.as_bytes()).await;
        if ending.resets {
            reset(&tcp);
        }
    })
    .await
}

/// Asks through a sidecar, and compares with what has to come.
async fn judge(sidecar: &Sidecar, ending: Ending, what: &str) {
    for version in [Http1, Http2] {
        let mut client = Client::new(sidecar.client(version), version).await;
        let request = client.build(Method::POST, "/");
        let answer = client.request(request.body(Full::default()).unwrap()).await;
        match (ending.whole, answer) {
            (Some(body), Ok(answer)) => assert_eq!(answer.body, body, "{what}: {ending:?}"),
            (Some(_), Err(error)) => panic!("{what}, {version:?}: {ending:?}: {error}"),
            (None, Ok(answer)) => {
                let failed = answer.status.is_server_error();
                assert!(failed, "{what}, {version:?}: {ending:?}: {answer:?}");
            }
            (None, Err(_)) => {}
        }
    }
}

#[test]
fn row_27_what_an_app_cuts_never_looks_whole() {
    run(async {
        for ending in ENDINGS {
            let app = ends(ending).await;
            let mut only = cluster("c", plain(&[app]));
            only.http = UpstreamHttp::Http1;
            let alone = Sidecar::new(outbound(vec![route_to("c")], vec![only]));
            judge(&alone, ending, "one sidecar").await;

            let (client, _server) = pair(app).await;
            let mut meshed = (**client.worker.config.load().cluster("c").unwrap()).clone();
            meshed.http = UpstreamHttp::Http1;
            client.change(|snapshot| {
                snapshot.clusters.insert("c".into(), Arc::new(meshed));
            });
            judge(&client, ending, "two sidecars").await;
        }
    });
}

#[test]
fn row_27_what_an_app_cuts_never_looks_whole_to_a_client_that_knows_no_chunks() {
    const WHOLE: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    run(async {
        for (says, whole) in [
            (HALF_CHUNKED, false),
            (WHOLE, true),
            ("HTTP/1.1 200 OK\r\n\r\nwhole", true),
        ] {
            let app = ends(ending(says, false, None)).await;
            let mut only = cluster("c", plain(&[app]));
            only.http = UpstreamHttp::Http1;
            let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![only]));
            let downstream = sidecar.downstream(SERVICE.into());
            let (mut client, _) = super::tunnels::connect(&sidecar, downstream).await;
            let request = b"GET / HTTP/1.0\r\nhost: a\r\n\r\n";
            client.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            let peace = client.read_to_end(&mut answer).await.is_ok();
            let answer = String::from_utf8(answer).unwrap();
            assert_eq!(peace, whole, "{says:?}: {answer:?}");
            assert!(!whole || answer.ends_with("\r\n\r\nwhole"), "{answer:?}");
        }
    });
}

#[test]
fn row_27_what_a_client_cuts_never_looks_whole() {
    run(async {
        for (begin, end, whole) in [
            ("content-length: 10\r\n\r\nhalf", "", false),
            ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "", false),
            ("transfer-encoding: chunked\r\n\r\n4\r\nha", "", false),
            ("content-length: 10\r\n\r\nhalf", " whole", true),
            (
                "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
                "6\r\n whole\r\n0\r\n\r\n",
                true,
            ),
        ] {
            let seen = Rc::new(RefCell::new(None));
            let saw = seen.clone();
            let app = raw_app(move |mut tcp| {
                let saw = saw.clone();
                async move {
                    let mut bytes = Vec::new();
                    let _ = read_head(&mut tcp).await;
                    while !bytes.ends_with(b"whole") && !bytes.ends_with(b"whole\r\n0\r\n\r\n") {
                        match tcp.read_u8().await {
                            Ok(byte) => bytes.push(byte),
                            Err(_) => break,
                        }
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    let _ = tcp.write_all(answer).await;
                    saw.replace(Some(bytes));
                }
            })
            .await;
            let (client, _server) = pair(app).await;
            let mut io = client.client(Http1);
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{begin}");
            io.write_all(head.as_bytes()).await.unwrap();
            while client.worker.requests.get() == 0 {
                tokio::task::yield_now().await;
            }
            io.write_all(end.as_bytes()).await.unwrap();
            if !whole {
                io.shutdown().await.unwrap();
            }
            let saw = loop {
                if let Some(seen) = seen.take() {
                    break String::from_utf8(seen).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let complete = saw.contains("whole");
            assert_eq!(complete, whole, "{begin:?}: the app saw {saw:?}");
            assert!(
                whole || !saw.contains("0\r\n\r\n"),
                "{begin:?}: the app saw {saw:?}"
            );
        }
    });
}

#[test]
fn row_29_a_tls_stream_that_is_cut_is_no_end_of_an_answer() {
    run(async {
        for says_goodbye in [true, false] {
            let ca = Ca::new();
            let identity = ca.identity("reviews");
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let peer = listener.local_addr().unwrap();
            tokio::task::spawn_local(async move {
                let (tcp, _) = listener.accept().await.unwrap();
                let config = identity.load().mesh_server().clone();
                let mut tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
                read_head(&mut tls).await;
                tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it?")
                    .await
                    .unwrap();
                tls.flush().await.unwrap();
                if says_goodbye {
                    tls.shutdown().await.unwrap();
                }
            });
            let endpoints = meshed(&[peer], "reviews");
            let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let sidecar = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            let request = client.build(Method::POST, "/");
            let answer = client.request(request.body(Full::default()).unwrap()).await;
            match answer {
                Ok(answer) => assert!(says_goodbye && answer.body == "all of it?"),
                Err(error) => assert!(!says_goodbye, "{error}"),
            }
        }
    });
}

/// An app of HTTP/2 that says half of an answer, and takes the stream back or is at its end.
async fn takes_back(reason: Option<h2::Reason>) -> SocketAddr {
    raw_app(move |tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((_, mut answer))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                let mut body = answer.send_response(Default::default(), false).unwrap();
                body.send_data("half".into(), reason.is_none()).unwrap();
                if let Some(reason) = reason {
                    // h2 forgets what it has not sent.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    body.send_reset(reason);
                }
            });
        }
    })
    .await
}

#[test]
fn row_27_an_answer_that_an_app_takes_back_never_looks_whole_whatever_it_calls_that() {
    run(async {
        for (reason, whole) in [
            (Some(h2::Reason::NO_ERROR), None),
            (Some(h2::Reason::CANCEL), None),
            (Some(h2::Reason::INTERNAL_ERROR), None),
            (None, Some("half")),
        ] {
            let ending = ending("half", reason.is_some(), whole);
            let app = takes_back(reason).await;
            let mut only = cluster("c", plain(&[app]));
            only.http = UpstreamHttp::Http2;
            let alone = Sidecar::new(outbound(vec![route_to("c")], vec![only]));
            judge(&alone, ending, &format!("one sidecar, {reason:?}")).await;
        }
    });
}

/// Streams of HTTP/2 that end at once: so many that the hop behind sends what it has of the first before it hears of the last.
const STREAMS: u8 = 20;

/// Frames with the same type, flags and body for each of the streams, one stream after the other.
fn frames(of_each: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut frames = Vec::new();
    for stream in 0..STREAMS {
        for &(kind, flags, body) in of_each {
            let length = u8::try_from(body.len()).unwrap();
            frames.extend_from_slice(&[0, 0, length, kind, flags, 0, 0, 0, 2 * stream + 1]);
            frames.extend_from_slice(body);
        }
    }
    frames
}

/// Of how many POSTs an app gets the end, if each is half a body and, a while later, these frames.
async fn get_whole(then: &[(u8, u8, &[u8])]) -> usize {
    let (got, whole) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (gets, ends) = (got.clone(), whole.clone());
    let app = raw_app(move |tcp| {
        let (gets, ends) = (gets.clone(), ends.clone());
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, answer))) = connection.accept().await {
                let (gets, ends) = (gets.clone(), ends.clone());
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    let end = loop {
                        match body.data().await {
                            Some(Ok(_)) => {}
                            Some(Err(_)) => break 0,
                            None => break 1,
                        }
                    };
                    drop(answer);
                    ends.set(ends.get() + end);
                    gets.set(gets.get() + 1);
                });
            }
        }
    })
    .await;
    let mut only = cluster("c", plain(&[app]));
    only.http = UpstreamHttp::Http2;
    let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![only]));
    let (mut read, mut write) = tokio::io::split(sidecar.client(Http2));
    tokio::task::spawn_local(async move {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    });
    let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // POST http://a/
    says.extend(frames(&[(1, 4, b"\x83\x86\x84\x41\x01a"), (0, 0, b"half")]));
    write.write_all(&says).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    write.write_all(&frames(then)).await.unwrap();
    while got.get() < STREAMS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    whole.get()
}

#[test]
fn row_27_a_request_that_a_client_takes_back_never_looks_whole_whatever_it_calls_that() {
    run(async {
        let all = get_whole(&[(0, 0, b"more"), (0, 1, b"rest")]).await;
        assert_eq!(all, usize::from(STREAMS));
        for reason in 0..14 {
            let whole = get_whole(&[(0, 0, b"more"), (3, 0, &[0, 0, 0, reason])]).await;
            assert_eq!(whole, 0, "reason {reason}");
        }
    });
}
