//! Blanks around values of HTTP/2 are gone before anybody sees them, in heads and trailers, both ways.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::sync::mpsc;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::config::route::{HeaderMatch, StringMatch};
use crate::conn::HttpVersion::Http2;

fn fields(of: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        let value = HeaderValue::from_static(value);
        (HeaderName::from_static(name), value)
    };
    of.iter().map(field).collect()
}

/// An app of HTTP/2 that tells what requests begin and end with, and answers with blanks.
async fn app() -> (SocketAddr, mpsc::UnboundedReceiver<(HeaderMap, HeaderMap)>) {
    let (tell, told) = mpsc::unbounded_channel();
    let app = raw_app(move |tcp| {
        let tell = tell.clone();
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let tell = tell.clone();
                tokio::task::spawn_local(async move {
                    let (head, mut body) = request.into_parts();
                    while let Some(Ok(_)) = body.data().await {}
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    tell.send((head.headers, trailers)).unwrap();
                    let mut response = Response::new(());
                    *response.headers_mut() = fields(&[("x-a", "\t1 "), ("x-b", "2 3")]);
                    let mut stream = respond.send_response(response, false).unwrap();
                    let end = fields(&[("grpc-status", " 5\t"), ("x-c", " ")]);
                    stream.send_trailers(end).unwrap();
                });
            }
        }
    });
    (app.await, told)
}

#[test]
fn row_7_blanks_around_values_of_http2_are_gone_before_anybody_sees_them() {
    run(async {
        let (app, mut told) = app().await;
        let mut to = cluster("c", plain(&[app]));
        to.http = UpstreamHttp::Http2;
        let mut route = route_to("c");
        route.matches.headers.push(HeaderMatch {
            name: HeaderName::from_static("x-way"),
            value: StringMatch::Exact("a b".into()),
            invert: false,
        });
        let sidecar = Sidecar::new(outbound(vec![route], vec![to]));
        let io = sidecar.client(Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut request = Request::post("http://reviews/").body(()).unwrap();
        *request.headers_mut() = fields(&[
            ("content-type", " application/grpc"),
            ("x-way", "\ta b"),
            ("x-key-bin", "AQ== "),
            ("user-agent", " it "),
        ]);
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        stream
            .send_data(Bytes::from_static(&[0; 5]), false)
            .unwrap();
        stream.send_trailers(fields(&[("x-sum", " 1 ")])).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        while let Some(Ok(_)) = body.data().await {}
        let end = body.trailers().await.unwrap().unwrap();
        let (got, ended) = told.recv().await.unwrap();
        assert_eq!(got["content-type"], "application/grpc");
        assert_eq!(got["x-way"], "a b");
        assert_eq!(got["x-key-bin"], "AQ==");
        assert_eq!(ended, fields(&[("x-sum", "1")]));
        assert_eq!(head.status, 200);
        assert_eq!(
            (&head.headers["x-a"], &head.headers["x-b"]),
            (&"1".parse().unwrap(), &"2 3".parse().unwrap())
        );
        assert_eq!(end, fields(&[("grpc-status", "5"), ("x-c", "")]));
        let record = sidecar.record().await;
        assert!(record.grpc);
        assert_eq!(record.grpc_status, Some(5));
        assert_eq!(record.user_agent.as_ref().unwrap(), "it");
    });
}
