//! Discovery: what a stream is told.

use std::time::Duration;

use tonic::Code;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::harness::*;
use super::shop::*;
use crate::store::service::Addressing;
use crate::store::{Event, Kind, Object};

#[tokio::test]
async fn a_rotated_bundle_is_pushed_to_its_subscribers() {
    let (plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    let before = versions(&proxy.next().await.expect("the bundle"));
    plane.admin_post("/ca/rotate-root").await;
    let after = versions(&proxy.next().await.expect("the new bundle"));
    assert_ne!(before, after);
}

#[tokio::test]
async fn what_is_known_is_sent_and_what_is_not_is_said_to_be_unknown() {
    let (_plane, mut proxy) = plane_and_proxy().await;
    proxy
        .subscribe(ResourceType::Listener, &[LISTENER, "outbound|10.9.9.9|80"])
        .await;
    assert_eq!(
        proxy.take().await,
        ("LDS", names(&[LISTENER]), names(&["outbound|10.9.9.9|80"]))
    );
    proxy.subscribe(ResourceType::Route, &[CLUSTER]).await;
    assert_eq!(proxy.take().await, ("RDS", names(&[CLUSTER]), vec![]));
    proxy.subscribe(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(proxy.take().await, ("CDS", names(&[CLUSTER]), vec![]));
    proxy.subscribe(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(proxy.take().await, ("EDS", names(&[CLUSTER]), vec![]));
    proxy.expect_silence().await;
}

#[tokio::test]
async fn an_unknown_name_is_remembered_until_it_exists() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    let later = "outbound|10.1.0.9|80";
    proxy.subscribe(ResourceType::Listener, &[later]).await;
    assert_eq!(proxy.take().await, ("LDS", vec![], names(&[later])));
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    assert_eq!(proxy.take().await, ("LDS", names(&[later]), vec![]));
}

#[tokio::test]
async fn an_endpoint_change_goes_to_its_subscribers_and_touches_nothing_else() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    plane.writer.apply(vec![
        service("other", [10, 1, 0, 2]),
        endpoints("other", &[[10, 0, 2, 1]]),
    ]);
    for kind in [
        ResourceType::Listener,
        ResourceType::Cluster,
        ResourceType::Route,
        ResourceType::Endpoints,
    ] {
        let name = if kind == ResourceType::Listener {
            LISTENER
        } else {
            CLUSTER
        };
        proxy.subscribe(kind, &[name]).await;
        proxy.take().await;
    }
    plane
        .writer
        .apply(vec![endpoints("api", &[[10, 0, 1, 1], [10, 0, 1, 2]])]);
    assert_eq!(proxy.take().await, ("EDS", names(&[CLUSTER]), vec![]));
    plane
        .writer
        .apply(vec![endpoints("other", &[[10, 0, 2, 2]])]);
    proxy.expect_silence().await;
    proxy.unsubscribe(ResourceType::Endpoints, &[CLUSTER]).await;
    // Once this is answered, the request before it has been read.
    proxy.expect_silence().await;
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 3]])]);
    proxy.expect_silence().await;
}

#[tokio::test]
async fn a_deleted_service_is_removed_listener_first_cluster_last() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    for kind in [
        ResourceType::Cluster,
        ResourceType::Endpoints,
        ResourceType::Listener,
        ResourceType::Route,
    ] {
        let name = if kind == ResourceType::Listener {
            LISTENER
        } else {
            CLUSTER
        };
        proxy.subscribe(kind, &[name]).await;
        proxy.take().await;
    }
    plane.writer.apply(vec![
        delete(Kind::Service, "api"),
        delete(Kind::EndpointSlice, "api-1"),
    ]);
    let mut order = Vec::new();
    for _ in 0..4 {
        let (kind, given, removed) = proxy.take().await;
        assert_eq!((given.len(), removed.len()), (0, 1), "{kind}");
        order.push(kind);
    }
    assert_eq!(order, ["LDS", "RDS", "CDS", "EDS"]);
}

#[tokio::test]
async fn endpoints_follow_a_cluster_that_is_sent_again() {
    let (_plane, mut proxy) = plane_and_proxy().await;
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        proxy.subscribe(kind, &[CLUSTER]).await;
        proxy.take().await;
    }
    proxy.subscribe(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(proxy.take().await, ("CDS", names(&[CLUSTER]), vec![]));
    assert_eq!(proxy.take().await, ("EDS", names(&[CLUSTER]), vec![]));
}

#[tokio::test]
async fn a_refused_resource_is_recorded_and_not_sent_again_until_it_changes() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Endpoints, &[CLUSTER]).await;
    let response = proxy.next().await.expect("endpoints");
    proxy.nack(&response, "no such locality").await;
    proxy.expect_silence().await;
    let debug = plane.admin("/debug/proxies").await;
    assert!(
        debug.contains("no such locality") && debug.contains("\"rejected\""),
        "{debug}"
    );
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_total_xds_rejects_total{type=\"EDS\"} 1"),
        "{metrics}"
    );
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 9]])]);
    assert_eq!(proxy.take().await, ("EDS", names(&[CLUSTER]), vec![]));
    proxy.expect_silence().await;
    assert!(
        !plane
            .admin("/debug/proxies")
            .await
            .contains("no such locality")
    );
}

#[tokio::test]
async fn a_reconnecting_proxy_gets_only_what_differs() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Listener, &[LISTENER]).await;
    let listener = versions(&proxy.next().await.expect("a listener"));
    drop(proxy);
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    let later = "outbound|10.1.0.9|80";
    let has = [
        (LISTENER, listener[LISTENER].as_str()),
        (later, "0123456789abcdef"),
        ("outbound|10.8.8.8|80", "00"),
    ];
    proxy
        .subscribe_with(
            ResourceType::Listener,
            &[LISTENER, later, "outbound|10.8.8.8|80"],
            &has,
        )
        .await;
    assert_eq!(
        proxy.take().await,
        ("LDS", names(&[later]), names(&["outbound|10.8.8.8|80"]))
    );
    proxy.expect_silence().await;
}

#[tokio::test]
async fn a_reply_to_another_streams_nonce_costs_no_subscription() {
    let (plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Cluster, &[CLUSTER]).await;
    proxy.take().await;
    let request = DeltaDiscoveryRequest {
        response_nonce: "of-another-stream".to_owned(),
        resource_names_subscribe: names(&["outbound|81||nothing.shop.svc.cluster.local"]),
        ..Default::default()
    };
    proxy.send(ResourceType::Cluster, request).await;
    assert_eq!(proxy.take().await.0, "CDS");
    proxy.expect_silence().await;
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_xds_expired_nonce_total{type=\"CDS\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_wildcard_client_gets_every_cluster_and_hears_of_new_ones() {
    let (mut plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Cluster, &["*"]).await;
    let (kind, given, removed) = proxy.take().await;
    assert_eq!((kind, removed), ("CDS", vec![]));
    assert!(given.contains(&CLUSTER.to_owned()), "{given:?}");
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let later = names(&["outbound|80||later.shop.svc.cluster.local"]);
    assert_eq!(proxy.take().await, ("CDS", later.clone(), vec![]));
    plane.writer.apply(vec![delete(Kind::Service, "later")]);
    assert_eq!(proxy.take().await, ("CDS", vec![], later));
}

#[tokio::test]
async fn an_envoy_that_wants_all_loses_what_is_no_longer_among_all() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("shop", "db-1", "db", [10, 0, 1, 1]);
    let mut headless = a_service("db", VIP);
    headless.addressing = Addressing::Headless;
    plane.writer.apply(vec![
        Event::Apply(Object::Service(headless)),
        endpoints("db", &[[10, 0, 1, 1]]),
    ]);
    let id = node_id("shop", "web-1", IP).replace("sidecar~", "envoy~");
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let mut envoy = Proxy::open(channel.expect("it listens"), Some(node(&id)))
        .await
        .expect("let in");
    envoy.subscribe(ResourceType::Listener, &["*"]).await;
    let (_, given, _) = envoy.take().await;
    let pods: Vec<_> = given
        .into_iter()
        .filter(|name| name.starts_with("outbound|10.0.1.1|"))
        .collect();
    assert_eq!(pods.len(), 1, "the pod's own address");
    // The pod is still there, and whoever asks for its listener by name gets it.
    plane.writer.apply(vec![endpoints("db", &[])]);
    assert_eq!(envoy.take().await, ("LDS", vec![], pods.clone()));
    envoy.subscribe(ResourceType::Listener, &[&pods[0]]).await;
    assert_eq!(envoy.take().await, ("LDS", pods.clone(), vec![]));
    // No longer by name, and so not at all.
    envoy.unsubscribe(ResourceType::Listener, &[&pods[0]]).await;
    assert_eq!(envoy.take().await, ("LDS", vec![], pods));
    envoy.expect_silence().await;
}

#[tokio::test]
async fn streams_are_told_to_reconnect_when_the_control_plane_ends() {
    let (plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(ResourceType::Secret, &["ROOTCA"]).await;
    proxy.take().await;
    let ((), ended) = tokio::join!(
        plane.control.shutdown(Duration::from_secs(20)),
        proxy.next()
    );
    assert_eq!(ended.expect_err("told to go").code(), Code::Unavailable);
}

#[tokio::test]
async fn a_hundred_streams_get_only_what_they_subscribed_to() {
    let mut plane = Plane::start().await;
    let ip = |i: u8| [10, 0, 5, i];
    let cluster = |i: u8| format!("outbound|80||svc{i}.shop.svc.cluster.local");
    for i in 0..100 {
        plane.pod("shop", &format!("web-{i}"), "web", ip(i));
        plane.writer.apply(vec![
            service(&format!("svc{i}"), [10, 1, 5, i]),
            endpoints(&format!("svc{i}"), &[[10, 0, 6, i]]),
        ]);
    }
    let svid = plane.svid("shop", "web");
    let mut proxies = Vec::new();
    for i in 0..100 {
        let channel = plane.channel(Some(svid.clone())).await.expect("it listens");
        let node = node(&node_id("shop", &format!("web-{i}"), ip(i)));
        let mut proxy = Proxy::open(channel, Some(node)).await.expect("let in");
        let own = cluster(i);
        proxy
            .subscribe(ResourceType::Endpoints, &[&own, CLUSTER])
            .await;
        assert_eq!(proxy.take().await, ("EDS", vec![own], vec![]));
        assert_eq!(proxy.take().await, ("EDS", vec![], names(&[CLUSTER])));
        proxies.push(proxy);
    }
    plane
        .writer
        .apply(vec![endpoints("svc7", &[[10, 0, 7, 7]])]);
    assert_eq!(proxies[7].take().await, ("EDS", vec![cluster(7)], vec![]));
    // Everybody wants this one; it is encoded once.
    plane.writer.apply(vec![
        service("api", VIP),
        endpoints("api", &[[10, 0, 1, 1]]),
    ]);
    let mut seen = Vec::new();
    for proxy in &mut proxies {
        let response = proxy.next().await.expect("endpoints");
        assert_eq!(summary(&response).1, [CLUSTER]);
        proxy.ack(&response).await;
        seen.extend(versions(&response).into_values());
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "all got the same bytes");
    for proxy in &mut proxies {
        proxy.expect_silence().await;
    }
    let metrics = plane.admin("/metrics").await;
    assert!(metrics.contains("tulle_xds 100"), "{metrics}");
}
