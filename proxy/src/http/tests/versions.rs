//! Endpoints are spoken to in the version that their cluster says, whatever the client speaks.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use http_body_util::Full;

use super::harness::*;
use crate::config::Endpoint;
use crate::config::cluster::UpstreamHttp;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::upstream::Target;

/// A sidecar whose only endpoint speaks one version, and whose cluster says something about it.
async fn sidecar(app: HttpVersion, says: UpstreamHttp) -> Sidecar {
    let mut cluster = cluster("c", plain(&[echo(app, "a").await]));
    cluster.http = says;
    Sidecar::new(outbound(vec![route_to("c")], vec![cluster]))
}

#[test]
fn an_http1_client_reaches_an_http2_endpoint() {
    run(async {
        let sidecar = sidecar(Http2, UpstreamHttp::Http2).await;
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for body in ["", "some"] {
            let answer = client.send(Method::POST, "/a?b=c", body).await;
            assert_eq!(answer.header("x-target"), "http://reviews/a?b=c");
            assert_eq!(answer.header("x-method"), "POST");
            assert_eq!(answer.header("got-host"), "", "the target says it");
            assert_eq!(answer.body, body);
        }
        let chunked = client
            .build(Method::PUT, "/")
            .header("transfer-encoding", "chunked");
        let chunked = chunked.body(Full::new("pieces".into())).unwrap();
        let answer = client.request(chunked).await.unwrap();
        assert_eq!(answer.body, "pieces");
        assert_eq!(answer.header("got-transfer-encoding"), "");
    });
}

#[test]
fn an_http2_client_reaches_an_http1_endpoint() {
    run(async {
        let sidecar = sidecar(Http1, UpstreamHttp::Http1).await;
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let request = client.build(Method::GET, "/a?b=c");
        let request = request.header("cookie", "a=1").header("cookie", "b=2");
        let request = request.body(Full::new("some".into())).unwrap();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.header("x-target"), "/a?b=c");
        assert_eq!(answer.header("got-host"), "reviews");
        assert_eq!(answer.header("got-cookie"), "a=1; b=2");
        assert_eq!(answer.body, "some");
        let streams = (0..20).map(|_| async {
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            client.get("/").await.header("x-app").to_owned()
        });
        let answers = futures_util::future::join_all(streams).await;
        assert!(answers.iter().all(|app| app == "a"), "{answers:?}");
    });
}

#[test]
fn row_7_a_body_of_unknown_length_reaches_an_http1_endpoint_whatever_the_method() {
    run(async {
        let sidecar = sidecar(Http1, UpstreamHttp::Http1).await;
        let (mut sender, connection) = h2::client::handshake(sidecar.client(Http2)).await.unwrap();
        tokio::task::spawn_local(connection);
        for method in [Method::GET, Method::DELETE, Method::POST] {
            let request = http::Request::builder().method(method.clone());
            let request = request.uri("http://reviews/").body(()).unwrap();
            let (answer, mut body) = sender.send_request(request, false).unwrap();
            body.send_data(bytes::Bytes::from_static(b"a body"), true)
                .unwrap();
            let mut echo = answer.await.unwrap().into_body();
            let mut got = Vec::new();
            while let Some(piece) = echo.data().await {
                got.extend_from_slice(&piece.unwrap());
            }
            assert_eq!(got, b"a body", "{method}");
        }
    });
}

#[test]
fn by_default_the_clients_version_is_spoken() {
    run(async {
        for version in [Http1, Http2] {
            let sidecar = sidecar(version, UpstreamHttp::Downstream).await;
            let mut client = Client::new(sidecar.client(version), version).await;
            assert_eq!(client.get("/").await.header("x-app"), "a", "{version:?}");
        }
    });
}

#[test]
fn a_retry_is_in_the_same_version_and_whole() {
    run(async {
        let endpoints = [nobody().await, echo(Http2, "a").await];
        let mut cluster = cluster("c", plain(&endpoints));
        cluster.http = UpstreamHttp::Http2;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..4 {
            let answer = client.send(Method::POST, "/", "x").await;
            assert_eq!(answer.header("x-target"), "http://reviews/");
            assert_eq!(answer.body, "x");
        }
        assert!(sidecar.records().iter().any(|record| record.attempts > 1));
    });
}

#[test]
fn a_connection_that_switches_protocols_stays_in_the_clients_version() {
    for (says, client, plain, upgrading) in [
        (UpstreamHttp::Http2, Http1, Http2, Http1),
        (UpstreamHttp::Http2, Http2, Http2, Http2),
        (UpstreamHttp::Http1, Http2, Http1, Http2),
        (UpstreamHttp::Downstream, Http1, Http1, Http1),
    ] {
        let mut cluster = cluster("c", plain_endpoint());
        cluster.http = says;
        let endpoint = cluster.endpoints[0].clone();
        let target = Target::endpoint(cluster.into(), endpoint);
        assert_eq!(target.version(client, false), plain, "{says:?} {client:?}");
        assert_eq!(
            target.version(client, true),
            upgrading,
            "{says:?} {client:?}"
        );
    }
}

fn plain_endpoint() -> Vec<Arc<Endpoint>> {
    plain(&[SocketAddr::from(([127, 0, 0, 1], 1))])
}
