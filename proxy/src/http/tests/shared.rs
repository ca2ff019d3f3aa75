//! How many requests share an HTTP/2 connection upstream: no more than its peer allows, nor than have room in its window.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use http::{Method, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::Http2;
use crate::settings::Settings;
use crate::telemetry::Limit;
use crate::upstream::LocalExecutor;

/// Requests that are sent at once.
const ALL: usize = 6;

/// What each connection carries, in the order in which they came.
type Carried = Rc<RefCell<Vec<usize>>>;

/// An app that allows so many streams on a connection, and answers when it may.
async fn app(allows: u32, may: Rc<Semaphore>, carried: Carried) -> SocketAddr {
    raw_app(move |tcp| {
        let (may, carried) = (may.clone(), carried.clone());
        let number = carried.borrow().len();
        carried.borrow_mut().push(0);
        let service = hyper::service::service_fn(move |_| {
            let (may, carried) = (may.clone(), carried.clone());
            carried.borrow_mut()[number] += 1;
            async move {
                may.acquire().await.unwrap().forget();
                carried.borrow_mut()[number] -= 1;
                Ok::<_, hyper::Error>(http::Response::new(Full::<bytes::Bytes>::default()))
            }
        });
        async move {
            let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                .max_concurrent_streams(allows)
                .serve_connection(hyper_util::rt::TokioIo::new(tcp), service)
                .await;
        }
    })
    .await
}

fn sidecar(app: SocketAddr, settings: Settings) -> Sidecar {
    let mut cluster = cluster("c", plain(&[app]));
    cluster.http = UpstreamHttp::Http2;
    Sidecar::with_settings(outbound(vec![route_to("c")], vec![cluster]), settings)
}

#[test]
fn row_18_a_connection_carries_no_more_than_its_peer_allows_nor_than_has_room() {
    let mut narrow = Settings::default();
    narrow.http2.stream_window = 1 << 16;
    narrow.http2.connection_window = 2 << 16;
    run(async {
        for (allows, settings, expected) in [
            (100, Settings::default(), &[ALL][..]),
            (2, Settings::default(), &[2, 2, 2]),
            (100, narrow, &[2, 2, 2]),
        ] {
            let (may, carried) = (Rc::new(Semaphore::new(1)), Carried::default());
            let app = app(allows, may.clone(), carried.clone()).await;
            let sidecar = sidecar(app, settings);
            let get = || async {
                let mut client = Client::new(sidecar.client(Http2), Http2).await;
                client.get("/").await.status
            };
            // From now on there is a connection, and it is known what its peer allows.
            assert_eq!(get().await, StatusCode::OK);
            let (answered, ()) = tokio::join!(
                futures_util::future::join_all((0..ALL).map(|_| get())),
                async {
                    while carried.borrow().iter().sum::<usize>() < ALL {
                        tokio::task::yield_now().await;
                    }
                    assert_eq!(*carried.borrow(), expected, "{allows}");
                    may.add_permits(ALL);
                }
            );
            assert_eq!(answered, [StatusCode::OK; ALL]);
        }
    });
}

/// Streams of one connection upstream as an app sees them that answers each one once it has been reset; the first one
/// when all others have been.
async fn answers_late(mut tcp: TcpStream, heads: Rc<Cell<usize>>) -> std::io::Result<()> {
    let answer = |stream: [u8; 4]| [&[0, 0, 1, 1, 5][..], &stream, &[0x88]].concat();
    tcp.read_exact(&mut [0; 24]).await?;
    tcp.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1, 0])
        .await?;
    let mut resets = 0;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        tcp.read_exact(&mut vec![0; length]).await?;
        let stream = [head[5], head[6], head[7], head[8]];
        match (head[3], head[4]) {
            (1, _) => heads.set(heads.get() + 1),
            (3, _) => {
                tcp.write_all(&answer(stream)).await?;
                resets += 1;
                if resets == GIVEN_UP {
                    tcp.write_all(&answer([0, 0, 0, 1])).await?;
                }
            }
            (4, 0) => tcp.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
            _ => {}
        }
    }
}

/// More than h2 bears of frames for streams that it has forgotten.
const GIVEN_UP: usize = 1_200;
const AT_ONCE: usize = 100;

#[test]
fn row_28_late_answers_to_requests_that_were_given_up_end_no_other() {
    run(async {
        let heads = Rc::new(Cell::new(0));
        let seen = heads.clone();
        let app = raw_app(move |tcp| {
            let seen = seen.clone();
            async move {
                let _ = answers_late(tcp, seen).await;
            }
        })
        .await;
        let mut settings = Settings::default();
        settings.http2.given_up = 1_000_000;
        let sidecar = sidecar(app, settings);
        let (mut sender, connection) = h2::client::handshake(sidecar.client(Http2)).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut ask = || {
            let request = http::Request::get("http://reviews/").body(()).unwrap();
            sender.send_request(request, true).unwrap().0
        };
        let stays = ask();
        for turn in 0..GIVEN_UP / AT_ONCE {
            let asked: Vec<_> = (0..AT_ONCE).map(|_| ask()).collect();
            while heads.get() < 1 + (turn + 1) * AT_ONCE {
                tokio::task::yield_now().await;
            }
            drop(asked);
        }
        assert_eq!(stays.await.unwrap().status(), StatusCode::OK);
    });
}

/// Answers requests with a byte more than they announce, for which h2 resets their streams; the first one, if it has to
/// wait, is answered well once it may be.
async fn answers_too_much(tcp: TcpStream, may: Option<Rc<Semaphore>>) -> std::io::Result<()> {
    let (mut reader, mut writer) = tcp.into_split();
    reader.read_exact(&mut [0; 24]).await?;
    writer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    let writer = Rc::new(tokio::sync::Mutex::new(writer));
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await?;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        reader.read_exact(&mut vec![0; length]).await?;
        let stream = head[8];
        match (head[3], head[4], &may) {
            (1, _, Some(may)) if stream == 1 => {
                let (writer, may) = (writer.clone(), may.clone());
                tokio::task::spawn_local(async move {
                    may.acquire().await.unwrap().forget();
                    let good = [0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88];
                    // Its connection may have ended.
                    let _ = writer.lock().await.write_all(&good).await;
                });
            }
            (1, ..) => {
                let announces = [0, 0, 5, 1, 4, 0, 0, 0, stream, 0x88, 15, 13, 1, b'1'];
                let says = [0, 0, 2, 0, 1, 0, 0, 0, stream, b'x', b'x'];
                let all = [&announces[..], &says].concat();
                writer.lock().await.write_all(&all).await?;
            }
            (4, 0, _) => {
                let ack = [0, 0, 0, 4, 1, 0, 0, 0, 0];
                writer.lock().await.write_all(&ack).await?;
            }
            _ => {}
        }
    }
}

#[test]
fn row_28_a_server_whose_streams_have_to_be_reset_is_left_at_half_of_the_number_that_is_set() {
    run(async {
        for (most, expected) in [(1, 12), (2, 6), (5, 4), (100, 1)] {
            let connections = Rc::new(Cell::new(0));
            let count = connections.clone();
            let app = raw_app(move |tcp| {
                count.set(count.get() + 1);
                async move {
                    let _ = answers_too_much(tcp, None).await;
                }
            })
            .await;
            let mut settings = Settings::default();
            settings.http2.local_resets = most;
            let sidecar = sidecar(app, settings);
            for _ in 0..12 {
                let mut client = Client::new(sidecar.client(Http2), Http2).await;
                let request = client.build(Method::POST, "/").body(Full::default());
                let answer = client.request(request.unwrap()).await;
                assert!(answer.is_err(), "it is cut");
            }
            assert_eq!(connections.get(), expected, "with {most} on each");
            let limits = &sidecar.worker.limits;
            let counted = limits.count(Limit::H2LocalResets, Direction::Outbound);
            // The last one is not looked at again.
            assert_eq!(counted, expected - 1, "with {most} on each");
        }
    });
}

#[test]
fn row_28_who_waits_for_a_server_whose_other_streams_have_to_be_reset_is_answered() {
    run(async {
        let (may, connections) = (Rc::new(Semaphore::new(0)), Rc::new(Cell::new(0)));
        let (answered, count) = (may.clone(), connections.clone());
        let app = raw_app(move |tcp| {
            // On the first one.
            let may = (count.get() == 0).then(|| answered.clone());
            count.set(count.get() + 1);
            async move {
                let _ = answers_too_much(tcp, may).await;
            }
        })
        .await;
        let mut settings = Settings::default();
        settings.http2.local_resets = 10;
        let sidecar = sidecar(app, settings);
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let request = client.build(Method::POST, "/").body(Full::default());
        let waits = tokio::task::spawn_local(async move { client.request(request.unwrap()).await });
        while connections.get() == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..50 {
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            let request = client.build(Method::POST, "/").body(Full::default());
            assert!(client.request(request.unwrap()).await.is_err(), "it is cut");
        }
        assert!(connections.get() > 1, "it was not left");
        may.add_permits(1);
        assert_eq!(waits.await.unwrap().unwrap().status, StatusCode::OK);
    });
}

#[test]
fn row_28_a_server_that_takes_no_other_connection_is_asked_on_the_one_that_is_to_be_left() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            drop(listener);
            let _ = answers_too_much(tcp, None).await;
        });
        let mut settings = Settings::default();
        settings.http2.local_resets = 20;
        let sidecar = sidecar(app, settings);
        for _ in 0..20 {
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            let request = client.build(Method::POST, "/").body(Full::default());
            let answer = client.request(request.unwrap()).await;
            assert!(answer.is_err(), "it is answered, and cut");
        }
        let limits = &sidecar.worker.limits;
        let counted = limits.count(Limit::H2LocalResets, Direction::Outbound);
        assert_eq!(counted, 1, "it was to be left");
    });
}

/// Answers requests on one connection, on which it allows no more after the first.
async fn allows_one(mut tcp: TcpStream) -> std::io::Result<()> {
    let settings = |streams: u8| [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams];
    tcp.read_exact(&mut [0; 24]).await?;
    tcp.write_all(&settings(1)).await?;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        tcp.read_exact(&mut vec![0; length]).await?;
        match (head[3], head[4]) {
            // It takes what is said before the answer for true.
            (1, _) => {
                let answer = [0, 0, 1, 1, 5, 0, 0, 0, head[8], 0x88];
                tcp.write_all(&[&settings(0)[..], &answer].concat()).await?;
            }
            (4, 0) => tcp.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
            _ => {}
        }
    }
}

#[test]
fn row_18_a_connection_whose_peer_allows_nothing_any_more_is_not_kept() {
    run(async {
        let connections = Rc::new(Cell::new(0));
        let count = connections.clone();
        let app = raw_app(move |tcp| {
            count.set(count.get() + 1);
            async move {
                let _ = allows_one(tcp).await;
            }
        })
        .await;
        let sidecar = sidecar(app, Settings::default());
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        for asked in 1..=4 {
            assert_eq!(client.get("/").await.status, StatusCode::OK);
            assert_eq!(connections.get(), asked);
            assert_eq!(sidecar.worker.upstream.pooled(), 1, "the newest");
        }
    });
}
