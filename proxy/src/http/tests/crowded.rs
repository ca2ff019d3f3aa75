//! Answers in small pieces that their client does not take: that ends them, and not what others have on the same connection.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::spawn_local;

use super::harness::*;
use super::overload::accepted;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::telemetry::Limit;

/// More pieces of one byte than h2 lets wait.
const PIECES: usize = 120_000;
const LARGE: usize = 1 << 20;

/// An app that echoes, and that has many small or few large pieces to say; and how many connections it has had.
async fn app() -> (SocketAddr, Rc<Cell<usize>>) {
    let had = Rc::new(Cell::new(0));
    let count = had.clone();
    let app = raw_app(move |tcp| {
        count.set(count.get() + 1);
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut answer))) = connection.accept().await {
                let mut body = answer.send_response(Response::new(()), false).unwrap();
                spawn_local(async move {
                    match request.uri().path() {
                        "/small" => {
                            for _ in 0..PIECES {
                                let _ = body.send_data(Bytes::from_static(b"x"), false);
                            }
                        }
                        "/large" => {
                            let _ = body.send_data(vec![b'x'; LARGE].into(), true);
                        }
                        _ => {}
                    }
                    let mut heard = request.into_body();
                    while let Some(Ok(data)) = heard.data().await {
                        let _ = body.send_data(data, false);
                    }
                    std::future::pending::<()>().await;
                });
            }
        }
    })
    .await;
    (app, had)
}

/// Connects with a window of that size for each stream.
async fn client(io: DuplexStream, window: u32) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    // What one stream leaves unread is not to hold up the others.
    builder.initial_connection_window_size(1 << 20);
    let client = builder.initial_window_size(window).handshake(io);
    let (sender, connection) = client.await.unwrap();
    spawn_local(connection);
    sender
}

fn get(sender: &mut SendRequest<Bytes>, path: &str) -> h2::client::ResponseFuture {
    let request = Request::get(format!("http://reviews{path}")).body(());
    sender.send_request(request.unwrap(), true).unwrap().0
}

/// Asks for many small pieces and takes none of them until that has ended: how that came.
async fn takes_nothing(sidecar: &Sidecar, window: Option<u32>, over: impl AsyncFn()) -> String {
    if let Some(window) = window {
        let mut sender = client(accepted(sidecar, Http2), window).await;
        let mut body = get(&mut sender, "/small").await.unwrap().into_body();
        over().await;
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "a whole answer".to_owned(),
            }
        }
    }
    let mut io = accepted(sidecar, Http1);
    let request = b"GET /small HTTP/1.1\r\nhost: reviews\r\n\r\n";
    io.write_all(request).await.unwrap();
    over().await;
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer).await;
    let whole = answer.ends_with(b"0\r\n\r\n");
    if whole { "a whole answer" } else { "cut off" }.to_owned()
}

#[test]
fn small_pieces_that_a_client_does_not_take_end_its_answer_and_no_others() {
    run(async {
        // Of the client that does not read: the windows of its streams, if it has any.
        for window in [Some(0), Some(10), None] {
            let (app, had) = app().await;
            let mut cluster = cluster("c", plain(&[app]));
            cluster.http = UpstreamHttp::Http2;
            let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
            let mut other = client(accepted(&sidecar, Http2), 65_535).await;
            // It takes its time with large pieces, which is no crime.
            let mut large = get(&mut other, "/large").await.unwrap().into_body();
            let request = Request::post("http://reviews/echo").body(()).unwrap();
            let (answer, mut say) = other.send_request(request, false).unwrap();
            let mut echo = answer.await.unwrap().into_body();

            let limits = &sidecar.worker.limits;
            let count = || limits.count(Limit::H2DataFrames, Direction::Outbound);
            let over = async || {
                while count() == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            let ended = takes_nothing(&sidecar, window, over).await;
            assert_ne!(ended, "a whole answer", "{window:?}");

            say.send_data(Bytes::from_static(b"still here"), false)
                .unwrap();
            let heard = echo.data().await.unwrap().unwrap();
            assert_eq!(heard, "still here", "{window:?}");
            let mut taken = 0;
            while let Some(data) = large.data().await {
                let length = data.unwrap().len();
                taken += length;
                large.flow_control().release_capacity(length).unwrap();
            }
            assert_eq!(taken, LARGE, "{window:?}");
            assert_eq!((count(), had.get()), (1, 1), "{window:?}");
            let next = get(&mut other, "/large").await.unwrap();
            assert_eq!(next.status(), 200);
            assert_eq!(had.get(), 1, "{window:?}: the connection serves on");
        }
    });
}
