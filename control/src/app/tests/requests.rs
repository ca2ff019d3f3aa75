//! Requests for certificates: what one client can make of them, and of the memory that they take.

use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_xds_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::certificates::certify_over;
use super::harness::*;
use crate::ca::Requests;
use crate::discovery::Limits;

const ONE: [u8; 4] = [127, 0, 0, 2];
const TWO: [u8; 4] = [127, 0, 0, 3];

/// A plane with a pod, whose token is returned.
async fn plane(certificates: Requests) -> (Plane, String) {
    let limits = Limits {
        certificates,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    (plane, token)
}

/// A connection without a certificate.
async fn connect(plane: &Plane, from: [u8; 4]) -> Channel {
    let channel = plane.channel_from(Some(from.into()), plane.xds_address(), None);
    channel.await.expect("it listens")
}

#[tokio::test]
async fn who_asks_for_too_many_certificates_is_refused_and_nobody_else_is() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (plane, token) = plane(Requests {
        a_second: 1,
        at_once: 3,
        ..Requests::default()
    })
    .await;
    let greedy = connect(&plane, ONE).await;
    let (mut issued, mut refused) = (0, 0);
    for _ in 0..40 {
        match certify_over(greedy.clone(), &token).await {
            Ok(_) => issued += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
    }
    assert!(issued >= 4 && refused >= 10, "{issued} issued");
    // Another connection makes it no richer, but for what a busy machine takes longer than a second for.
    let again = connect(&plane, ONE).await;
    let mut more = 0;
    while certify_over(again.clone(), &token).await.is_ok() {
        more += 1;
    }
    assert!(more < 3, "the same address");
    certify_over(connect(&plane, TWO).await, &token)
        .await
        .expect("another address");
    let shown = Some(plane.svid("shop", "web"));
    let known = plane.channel_from(Some(ONE.into()), plane.xds_address(), shown);
    certify_over(known.await.expect("it listens"), &token)
        .await
        .expect("whoever has shown a certificate there is another client");
    let metrics = plane.admin("/metrics").await;
    for line in [
        format!(
            "tulle_control_limits_reached_total{{limit=\"certificates\"}} {}\n",
            refused + 1
        ),
        format!(
            "tulle_ca_csr_failures_total{{reason=\"pace\"}} {}\n",
            refused + 1
        ),
    ] {
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    let told = lines.with("more certificates than it may");
    assert!((1..refused).contains(&told.len()), "{told:?}");
    assert!(told[0].text.contains("127.0.0.2"), "{told:?}");
}

#[tokio::test]
async fn refused_tokens_are_told_a_few_times_and_counted_each_time() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (plane, token) = plane(Requests::default()).await;
    let channel = connect(&plane, ONE).await;
    for _ in 0..40 {
        let status = certify_over(channel.clone(), "a.b.c").await;
        assert_eq!(status.expect_err("no token").code(), Code::Unauthenticated);
    }
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_ca_csr_failures_total{reason=\"token\"} 40\n";
    assert!(metrics.contains(counted), "{metrics}");
    let told = lines.with("certificate request refused").len();
    assert!((5..20).contains(&told), "{told} lines");
    // What another client has to say is told all the same.
    let other = certify_over(connect(&plane, TWO).await, "a.b.c").await;
    assert!(other.is_err());
    assert_eq!(lines.with("127.0.0.3").len(), 1);
    certify_over(channel, &token).await.expect("a good token");
}

/// Asks, and never sends what it asks for.
async fn ask_without_end(channel: Channel, token: &str) -> Result<(), Status> {
    let mut request = Request::new(tokio_stream::pending::<IstioCertificateRequest>());
    let bearer = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let codec = ProstCodec::<_, IstioCertificateResponse>::default();
    let mut client = Grpc::new(channel);
    client.ready().await.expect("it listens");
    let path = PathAndQuery::from_static(path);
    client
        .client_streaming(request, path, codec)
        .await
        .map(drop)
}

#[tokio::test]
async fn a_request_whose_message_does_not_end_is_given_up() {
    let (plane, token) = plane(Requests {
        deadline: Duration::from_secs(2),
        ..Requests::default()
    })
    .await;
    let channel = connect(&plane, ONE).await;
    let status = ask_without_end(channel.clone(), &token).await;
    assert_eq!(status.expect_err("too late").code(), Code::DeadlineExceeded);
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_control_limits_reached_total{limit=\"certificate_deadline\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    certify_over(channel, &token)
        .await
        .expect("it has said all");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_counted_and_told() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (plane, _token) = plane(Requests::default()).await;
    let request = IstioCertificateRequest {
        csr: "x".repeat(20_000),
        validity_duration: 0,
    };
    let mut client = IstioCertificateServiceClient::new(connect(&plane, ONE).await);
    let status = client.create_certificate(request).await;
    let status = status.expect_err("it is longer than any may be");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_ca_csr_failures_total{reason=\"bad_message\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    let told = lines.with("certificate request refused");
    assert!(
        told.len() == 1
            && told[0].text.contains("127.0.0.2:")
            && told[0].text.contains("too large"),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_operators_ask_for_that_is_not_there_is_counted() {
    let (plane, _token) = plane(Requests::default()).await;
    plane.admin("/nope").await;
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_admin_refused_total{server=\"admin\",reason=\"not_found\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
}
