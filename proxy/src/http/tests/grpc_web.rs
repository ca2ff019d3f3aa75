//! gRPC-Web counts as what it is on the wire: HTTP with a status, whatever its body says.

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::Full;

use super::harness::*;
use crate::conn::HttpVersion::{Http1, Http2};

#[test]
fn a_call_of_grpc_web_counts_as_http_and_its_body_is_left_alone() {
    run(async {
        const BODY: &[u8] = b"\0\0\0\0\x02\x08\x01\x80\0\0\0\x0fgrpc-status:5\r\n";
        for version in [Http1, Http2] {
            let app = app(version, |_| async {
                let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
                let kind = "application/grpc-web+proto".parse().unwrap();
                response.headers_mut().insert("content-type", kind);
                response
            });
            let sidecar = Sidecar::new(service(&[app.await]));
            let mut client = Client::new(sidecar.client(version), version).await;
            let request = client.build(Method::POST, "/shop.Cart/Add");
            let request = request.header("content-type", "application/grpc-web+proto");
            let request = request.body(Full::new(Bytes::from_static(&BODY[..7])));
            let answer = client.request(request.unwrap()).await.unwrap();
            assert_eq!(answer.body, BODY, "{version:?}");
            let record = sidecar.record().await;
            let counted = (record.grpc, record.status.as_u16(), record.grpc_status);
            assert_eq!(counted, (false, 200, None), "{version:?}");
            assert_eq!(
                (record.bytes_received, record.bytes_sent),
                (7, BODY.len() as u64)
            );
        }
        // What the mesh itself has to say comes as plain HTTP, which is all that such a client reads.
        let sidecar = Sidecar::new(outbound(Vec::new(), Vec::new()));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let request = client.build(Method::POST, "/shop.Cart/Add");
        let request = request.header("content-type", "application/grpc-web-text");
        let answer = client
            .request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("grpc-status")),
            (404, "")
        );
    });
}
