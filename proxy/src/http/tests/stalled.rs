//! Clients that take nothing of their answers, and heads that would cost more than themselves.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::Direction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::settings::Settings;
use crate::telemetry::Limit;

#[test]
fn row_20_an_answer_that_is_not_taken_is_cut_off() {
    run(async {
        let patience = Duration::from_millis(300);
        for version in [Http1, Http2] {
            let app = app(version, |_| async {
                let body = Bytes::from(vec![b'x'; 1 << 20]);
                http::Response::new(Full::new(body))
            })
            .await;
            let mut settings = Settings::default();
            settings.patience.flush = patience;
            let mut cluster = cluster("c", plain(&[app]));
            cluster.http = UpstreamHttp::Downstream;
            if version == Http1 {
                cluster.http = UpstreamHttp::Http1;
            }
            let snapshot = outbound(vec![route_to("c")], vec![cluster]);
            let sidecar = Sidecar::with_settings(snapshot, settings);
            let client = h2::client::Builder::new()
                .initial_window_size(10)
                .handshake::<_, Bytes>(sidecar.client(Http2))
                .await;
            let (mut sender, connection) = client.unwrap();
            let driven = tokio::task::spawn_local(connection);
            let begun = Instant::now();
            let request = Request::get("http://reviews/").body(()).unwrap();
            let (answer, _) = sender.send_request(request, true).unwrap();
            let mut body = answer.await.unwrap().into_body();
            let mut taken = 0;
            let error = loop {
                match body.data().await.unwrap() {
                    Ok(data) => taken += data.len(),
                    Err(error) => break error,
                }
            };
            assert_eq!(taken, 10, "nothing is given back");
            assert!(error.is_reset(), "{error}");
            assert!(begun.elapsed() >= patience);
            let limits = &sidecar.worker.limits;
            assert_eq!(limits.count(Limit::H2Flush, Direction::Outbound), 1);
            assert_eq!(sidecar.record().await.flags.to_string(), "DC");
            // The connection goes on.
            let request = Request::get("http://reviews/").body(()).unwrap();
            let (answer, _) = sender.send_request(request, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
            driven.abort();
        }
    });
}

#[test]
fn a_head_too_large_for_http2_costs_nobody_else_a_connection() {
    run(async {
        let mut cluster = cluster("c", plain(&[echo(Http2, "a").await]));
        cluster.http = UpstreamHttp::Http2;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        for (size, expected) in [
            (1_000, StatusCode::OK),
            (60_000, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            (16_000, StatusCode::OK),
            (17_000, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        ] {
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            let request = client
                .build(Method::GET, "/")
                .header("x-large", "x".repeat(size));
            let request = request.body(Full::default()).unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.status, expected, "{size}");
        }
        assert_eq!(sidecar.worker.upstream.pooled(), 1, "on one connection");
        // The app would have answered the same, and ended its connection for a little more.
        let limits = &sidecar.worker.limits;
        assert_eq!(limits.count(Limit::H2HeaderList, Direction::Outbound), 2);
    });
}
