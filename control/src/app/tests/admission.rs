//! Discovery: who may open a stream, as whom, and how much it may ask.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::Code;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;
use tulle_xds_proto::envoy::config::core::v3::{Extension, Node};
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::google::rpc;
use tulle_xds_proto::{ResourceType, unpack};

use super::harness::*;
use super::shop::*;
use crate::discovery::Limits;
use crate::store::{Event, Object, Pod, Service};

#[tokio::test]
async fn row_35_a_stream_without_a_client_certificate_is_refused() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    let channel = plane
        .channel(None)
        .await
        .expect("the port serves certificates too");
    let status = Proxy::open(channel, Some(node(&node_id("shop", "web-1", IP))))
        .await
        .err()
        .expect("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    counted(&plane, "no_svid", 1).await;
}

/// Asserts how many streams were refused for a reason.
async fn counted(plane: &Plane, reason: &str, count: u32) {
    let line = format!("tulle_xds_refused_streams_total{{reason=\"{reason}\"}} {count}\n");
    let metrics = plane.admin("/metrics").await;
    assert!(metrics.contains(&line), "{line} in {metrics}");
}

#[tokio::test]
async fn row_35_a_stream_for_another_pod_is_denied() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("shop", "admin-1", "admin", [10, 0, 0, 2]);
    plane.pod("bank", "vault-1", "web", [10, 0, 0, 3]);
    let own = node_id("shop", "web-1", IP);
    let table = [
        (
            "another account's pod",
            Some(node(&node_id("shop", "admin-1", [10, 0, 0, 2]))),
            Code::PermissionDenied,
        ),
        (
            "another namespace's pod",
            Some(node(&node_id("bank", "vault-1", [10, 0, 0, 3]))),
            Code::PermissionDenied,
        ),
        (
            "its pod at another's address",
            Some(node(&node_id("shop", "web-1", [10, 0, 0, 2]))),
            Code::PermissionDenied,
        ),
        (
            "another cluster's domain",
            Some(node(&own.replace("cluster.local", "evil"))),
            Code::PermissionDenied,
        ),
        (
            "no pod",
            Some(node("sidecar~10.0.0.1~.shop~shop.svc.cluster.local")),
            Code::PermissionDenied,
        ),
        (
            "no namespace",
            Some(node("sidecar~10.0.0.1~web-1.~.svc.cluster.local")),
            Code::PermissionDenied,
        ),
        (
            "no address",
            Some(node("sidecar~~web-1.shop~shop.svc.cluster.local")),
            Code::PermissionDenied,
        ),
        ("an empty id", Some(node("")), Code::PermissionDenied),
        ("no node", None, Code::PermissionDenied),
        (
            "a pod that does not exist",
            Some(node(&node_id("shop", "web-9", IP))),
            Code::Unavailable,
        ),
    ];
    for (name, node, code) in table {
        let channel = plane
            .channel(Some(plane.svid("shop", "web")))
            .await
            .expect("it listens");
        let mut proxy = Proxy::open(channel, node)
            .await
            .expect("the claim comes with the first request");
        proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
        let status = proxy.next().await.expect_err(name);
        assert_eq!(status.code(), code, "{name}: {status:?}");
    }
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    proxy.next().await.expect("its own pod is let in");
    for (reason, count) in [
        ("foreign_pod", 3),
        ("bad_node", 5),
        ("no_node", 1),
        ("not_yet", 1),
    ] {
        counted(&plane, reason, count).await;
    }
}

#[tokio::test]
async fn row_35_a_stream_ends_when_its_pod_becomes_anothers_or_goes() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    let mut other = plane.proxy("shop", "web-1", "web", IP).await;
    for proxy in [&mut proxy, &mut other] {
        proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
        proxy.take().await;
    }
    drop(other);
    plane.pod("shop", "web-1", "admin", IP);
    assert_eq!(
        proxy.next().await.expect_err("not its pod any more").code(),
        Code::PermissionDenied
    );
    plane.pod("shop", "web-1", "web", IP);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    loop {
        // The first try may meet the world of a moment ago.
        match proxy.next().await {
            Ok(_) => break,
            Err(status) => assert_eq!(status.code(), Code::PermissionDenied),
        }
        proxy = plane.proxy("shop", "web-1", "web", IP).await;
        proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    }
    plane.remove_pod("shop", "web-1");
    assert_eq!(
        proxy.next().await.expect_err("the pod is gone").code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_pod_that_appears_a_moment_later_is_let_in() {
    let limits = Limits {
        pod_wait: Duration::from_secs(20),
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    plane.pod("shop", "web-1", "web", IP);
    assert_eq!(proxy.take().await, ("SDS", names(&["ROOTCA"]), vec![]));
}

#[tokio::test]
async fn row_35_a_stream_does_not_outlive_the_certificate_that_opened_it() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    let svid = plane.svid_for("shop", "web", Duration::from_secs(3));
    let channel = plane.channel(Some(svid)).await.expect("still valid");
    let mut proxy = Proxy::open(channel, Some(node(&node_id("shop", "web-1", IP))))
        .await
        .expect("let in");
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    proxy.take().await;
    proxy.next().await.expect_err("its certificate has expired");
}

#[tokio::test]
async fn row_36_secrets_are_trust_bundles_only_whatever_is_asked() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("bank", "vault-1", "vault", [10, 0, 0, 3]);
    // The other namespace asks first, so that a cache could be warm.
    let asked = [
        "ROOTCA",
        "default",
        "kubernetes://bank/tls",
        "bank/tls",
        "spiffe://cluster.local/ns/bank/sa/vault",
    ];
    for (namespace, name, account, ip) in [
        ("bank", "vault-1", "vault", [10, 0, 0, 3]),
        ("shop", "web-1", "web", IP),
    ] {
        let mut proxy = plane.proxy(namespace, name, account, ip).await;
        proxy.subscribe(ResourceType::Secret, &asked).await;
        let response = proxy.next().await.expect("an answer");
        let (_, given, mut denied) = summary(&response);
        denied.sort();
        assert_eq!(given, ["ROOTCA"]);
        assert_eq!(
            denied,
            [
                "bank/tls",
                "default",
                "kubernetes://bank/tls",
                "spiffe://cluster.local/ns/bank/sa/vault"
            ]
        );
        let secret: Secret =
            unpack(response.resources[0].resource.as_ref().expect("a message")).expect("a secret");
        let text = format!("{secret:?}");
        assert!(
            text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE KEY"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn row_36_inbound_is_the_callers_own_whatever_others_asked_before() {
    let mut plane = Plane::start().await;
    let vault = Pod {
        labels: [("app", "vault")].into_iter().collect(),
        ..pod("shop", "vault-1", "vault", [10, 0, 0, 2])
    };
    let of_vault = Service {
        selector: Some([("app", "vault")].into_iter().collect()),
        ..a_service("vault-door", [10, 1, 0, 2])
    };
    plane.pod("shop", "web-1", "web", IP);
    plane.writer.apply(vec![
        Event::Apply(Object::Pod(vault)),
        Event::Apply(Object::Service(of_vault)),
    ]);
    for (name, account, ip, expected) in [
        ("vault-1", "vault", [10, 0, 0, 2], true),
        ("web-1", "web", IP, false),
    ] {
        let mut proxy = plane.proxy("shop", name, account, ip).await;
        proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
        let response = proxy.next().await.expect("its own");
        let resource = response.resources[0].resource.as_ref().expect("a message");
        let text = String::from_utf8_lossy(&resource.value).into_owned();
        assert_eq!(text.contains("vault-door.shop"), expected, "{name}");
    }
}

#[tokio::test]
async fn what_happens_to_another_pod_is_not_told() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    plane.pod("shop", "web-2", "web", [10, 0, 0, 2]);
    proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
    assert_eq!(proxy.take().await, ("LDS", names(&["inbound"]), vec![]));
    plane.remove_pod("shop", "web-2");
    proxy.expect_silence().await;
}

#[tokio::test]
async fn garbage_ends_its_stream_with_a_reason_and_no_other() {
    let (plane, mut proxy) = plane_and_proxy().await;
    let too_long = "x".repeat(2000);
    let about = |type_url: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..Default::default()
    };
    let long_type = format!("type.googleapis.com/{too_long}");
    let table = [
        ("no type", about("")),
        ("a type of nowhere", about("evil.Type")),
        ("half a type", about("type.googleapis.com/evil.")),
        ("a text for a type", about("type.googleapis.com/evil\nType")),
        ("a long type", about(&long_type)),
        ("a long name", request(ResourceType::Listener, &[&too_long])),
        ("an empty name", request(ResourceType::Listener, &[""])),
    ];
    for (name, garbage) in table {
        let mut bad = plane.proxy("shop", "web-1", "web", IP).await;
        bad.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
        bad.take().await;
        bad.send_raw(garbage).await;
        let status = bad.next().await.expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
    }
    proxy.expect_silence().await;
    counted(&plane, "bad_request", 7).await;
}

#[tokio::test]
async fn a_type_that_is_not_served_is_left_and_told_and_its_stream_goes_on() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (mut plane, mut other) = plane_and_proxy().await;
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    let mut node = Some(node(&node_id("shop", "web-1", IP)));
    for type_url in [
        "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "type.googleapis.com/envoy.api.v2.Cluster",
    ] {
        let unserved = DeltaDiscoveryRequest {
            // The first one says who the client is.
            node: node.take(),
            type_url: type_url.to_owned(),
            resource_names_subscribe: names(&["a"]),
            initial_resource_versions: [("b".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        proxy.send_raw(unserved).await;
        proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
        assert_eq!(proxy.take().await, ("LDS", names(&["inbound"]), vec![]));
        let told = lines.with("a type that is not served");
        let last = told.last().expect("told");
        assert!(
            last.text.contains(type_url) && last.text.contains("sa/web"),
            "{last:?}"
        );
    }
    plane.pod("shop", "web-9", "web", [10, 0, 0, 9]);
    proxy.expect_silence().await;
    other.expect_silence().await;
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_xds_refused_requests_total{reason=\"unserved_type\"} 3\n";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn unserved_types_are_told_a_few_times_and_cost_as_much_as_others() {
    let (lines, _guard) = super::lines::Lines::listen();
    let limits = Limits {
        names_a_second: 1,
        names_at_once: 200,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
    proxy.take().await;
    for i in 0..300 {
        let unserved = DeltaDiscoveryRequest {
            type_url: format!("type.googleapis.com/evil.Type{i}"),
            ..Default::default()
        };
        proxy.send_raw(unserved).await;
        if plane
            .admin("/metrics")
            .await
            .contains("{limit=\"pace\"} 1\n")
        {
            break;
        }
    }
    plane.measures("{limit=\"pace\"} 1\n").await;
    let told = lines.with("a type that is not served").len();
    assert!((5..30).contains(&told), "{told} lines");
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_its_stream_and_is_counted() {
    let (plane, mut proxy) = plane_and_proxy().await;
    let too_much = DeltaDiscoveryRequest {
        error_detail: Some(rpc::Status {
            message: "x".repeat(5 << 20),
            ..Default::default()
        }),
        ..request(ResourceType::Listener, &["a"])
    };
    let mut long = plane.proxy("shop", "web-1", "web", IP).await;
    long.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    long.take().await;
    long.send_raw(too_much).await;
    let status = long.next().await.expect_err("too long");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    counted(&plane, "bad_message", 1).await;

    // In its first field a request has a node; this has a number there.
    let garbage = rpc::Status {
        code: 7,
        ..Default::default()
    };
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let mut client = Grpc::new(channel.expect("it listens"));
    client.ready().await.expect("it listens");
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let mut responses = client
        .streaming(
            tonic::Request::new(tokio_stream::iter([garbage])),
            PathAndQuery::from_static(path),
            ProstCodec::<rpc::Status, DeltaDiscoveryResponse>::default(),
        )
        .await
        .expect("let in")
        .into_inner();
    let status = responses.message().await.expect_err("garbage");
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    counted(&plane, "bad_message", 2).await;

    let mut gone = plane.proxy("shop", "web-1", "web", IP).await;
    gone.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    gone.take().await;
    drop(gone);
    plane.measures("tulle_xds 1\n").await;
    proxy.expect_silence().await;
    counted(&plane, "bad_message", 2).await;
}

#[tokio::test]
async fn a_request_that_would_become_too_much_is_not_read() {
    let (plane, mut proxy) = plane_and_proxy().await;
    let own = node(&node_id("shop", "web-1", IP));
    let said = |many: usize| DeltaDiscoveryRequest {
        // Two bytes each, and some hundred once they are read.
        node: Some(Node {
            extensions: vec![Extension::default(); many],
            ..own.clone()
        }),
        ..request(ResourceType::Secret, &["ROOTCA"])
    };
    let mut small = plane.proxy("shop", "web-1", "web", IP).await;
    small.send_raw(said(60_000)).await;
    small.next().await.expect("an answer");
    let mut large = plane.proxy("shop", "web-1", "web", IP).await;
    large.send_raw(said(70_000)).await;
    let status = large.next().await.expect_err("too many parts");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    counted(&plane, "bad_message", 1).await;
    proxy.expect_silence().await;
}

#[tokio::test]
async fn how_long_a_request_may_be_and_the_first_may_take_is_as_the_operator_says() {
    let limits = Limits {
        request_bytes: 4096,
        first_request: Duration::from_secs(2),
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    let said = |bytes: usize| DeltaDiscoveryRequest {
        node: Some(node(&node_id("shop", "web-1", IP))),
        error_detail: Some(rpc::Status {
            message: "x".repeat(bytes),
            ..Default::default()
        }),
        ..request(ResourceType::Secret, &["ROOTCA"])
    };
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let channel = channel.expect("it listens");
    let mut silent = Proxy::open(channel.clone(), None).await.expect("let in");
    let status = silent.next().await.expect_err("nothing was asked");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    counted(&plane, "no_request", 1).await;
    let mut long = Proxy::open(channel.clone(), None).await.expect("let in");
    long.send_raw(said(4096)).await;
    let status = long.next().await.expect_err("too long");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let mut short = Proxy::open(channel, None).await.expect("let in");
    short.send_raw(said(3000)).await;
    short.next().await.expect("an answer");
    counted(&plane, "bad_message", 1).await;
    counted(&plane, "no_request", 1).await;
}

fn request(kind: ResourceType, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names(subscribe),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_client_that_wants_too_much_is_told_the_limit() {
    let limits = Limits {
        subscriptions: 2,
        streams_per_pod: 1,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Listener, &["a", "b"]).await;
    proxy.take().await;
    let mut second = plane.proxy("shop", "web-1", "web", IP).await;
    second.subscribe(ResourceType::Listener, &["a"]).await;
    assert_eq!(
        second.next().await.expect_err("one stream a pod").code(),
        Code::ResourceExhausted
    );
    proxy.subscribe(ResourceType::Listener, &["c"]).await;
    let status = proxy.next().await.expect_err("a third name");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("more than 2 LDS subscriptions"),
        "{status:?}"
    );
    counted(&plane, "too_many_names", 1).await;
    counted(&plane, "too_many_streams", 1).await;
}
