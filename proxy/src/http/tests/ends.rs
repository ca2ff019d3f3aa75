//! How connections end, in every order and at both ends: what is whole arrives whole, and nothing else looks whole.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

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
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
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
