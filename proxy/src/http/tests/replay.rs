//! What a retry sends: all of the body or nothing, whatever happened between the attempts.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::config::route::RouteAction;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::overload::Haste;

/// The answer to a PUT that fails at one endpoint first and is then tried at one that echoes. Of its body, one part is sent
/// before it has failed and the other after that; then something happens until there is an answer.
async fn put_twice(
    failing: SocketAddr,
    version: HttpVersion,
    (first, then): (&str, &str),
    meanwhile: impl AsyncFn(&Sidecar),
) -> String {
    let endpoints = [failing, echo(version, "a").await];
    let mut forward = forward_to("c");
    forward.retry.max_replay_bytes = 16;
    forward.retry.backoff_base = Duration::from_millis(200);
    forward.retry.backoff_max = Duration::from_millis(200);
    let route = route("/", RouteAction::Forward(forward));
    let mut cluster = cluster("c", plain(&endpoints));
    cluster.http = match version {
        Http1 => UpstreamHttp::Http1,
        Http2 => UpstreamHttp::Http2,
    };
    let state = cluster.state.clone();
    // Round robin goes by address.
    state
        .next
        .store(u32::from(endpoints[1] < endpoints[0]), Relaxed);
    let sidecar = Sidecar::new(outbound(vec![route], vec![cluster]));
    let (mut read, mut write) = tokio::io::split(sidecar.client(Http1));
    let head =
        "PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    write
        .write_all(format!("{head}{first}").as_bytes())
        .await
        .unwrap();
    while state.retries.load(Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    write.write_all(then.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::select! {
        biased;
        () = meanwhile(&sidecar) => unreachable!(),
        answered = read.read_to_string(&mut answer) => answered.unwrap(),
    };
    answer
}

#[test]
fn what_a_retry_has_to_read_is_kept_however_short_memory_gets_before_it_begins() {
    run(async {
        for _ in 0..3 {
            let failing = raw_app(|mut tcp| async move {
                read_head(&mut tcp).await;
            })
            .await;
            let body = ("6\r\na body\r\n0\r\n\r\n", "");
            let answer = put_twice(failing, Http1, body, async |sidecar| {
                loop {
                    sidecar.worker.uploads.give_up(Haste::Little);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            let answer = answer.await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.ends_with("\r\n\r\na body"), "{answer}");
        }
    });
}

#[test]
fn an_attempt_that_has_failed_takes_nothing_of_the_body_from_the_next_one() {
    run(async {
        let busy = raw_app(|tcp| async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let busy = Response::builder().status(503).body(()).unwrap();
                respond.send_response(busy, true).unwrap();
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                });
            }
        })
        .await;
        let rest = "15\r\nmore than may be kept\r\n0\r\n\r\n";
        let body = ("6\r\na body\r\n", rest);
        let answer = put_twice(busy, Http2, body, async |_| std::future::pending().await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("a bodymore than may be kept"), "{answer}");
    });
}
