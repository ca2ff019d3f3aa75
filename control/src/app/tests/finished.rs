//! A pod of which only an ordinary sidecar is left: who is told, and who is not.

use tonic::{Code, Status};
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::{ENDS_WITH_POD, POD_FINISHED, POD_TRAILER, ResourceType};

use super::harness::*;
use crate::store::{Event, Object, Pod};

const IP: [u8; 4] = [10, 0, 0, 1];

/// A client that ends with its pod, and asks for its `inbound`.
async fn sidecar(plane: &Plane, name: &str, ip: [u8; 4]) -> Proxy {
    let node = Node {
        client_features: vec!["other".to_owned(), ENDS_WITH_POD.to_owned()],
        ..node(&node_id("shop", name, ip))
    };
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let opened = Proxy::open(channel.expect("a connection"), Some(node)).await;
    let mut proxy = opened.expect("a stream");
    proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
    proxy
}

fn finish(plane: &mut Plane, name: &str, ip: [u8; 4]) {
    let pod = Pod {
        finished: true,
        ..pod("shop", name, "web", ip)
    };
    plane.writer.apply(vec![Event::Apply(Object::Pod(pod))]);
}

fn says_finished(end: &Status) -> bool {
    let said = end.metadata().get(POD_TRAILER);
    said.is_some_and(|said| said == POD_FINISHED) && end.code() == Code::FailedPrecondition
}

#[tokio::test]
async fn the_sidecar_of_a_finished_pod_is_told_once_it_has_and_another_is_not() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("shop", "web-2", "web", [10, 0, 0, 2]);
    let mut own = sidecar(&plane, "web-1", IP).await;
    let mut other = sidecar(&plane, "web-2", [10, 0, 0, 2]).await;
    own.next().await.expect("its listener");
    other.next().await.expect("its listener");
    own.expect_silence().await;
    finish(&mut plane, "web-1", IP);
    let end = own.next().await.expect_err("the end");
    assert!(says_finished(&end), "{end:?}");
    other.expect_silence().await;
}

#[tokio::test]
async fn a_sidecar_that_was_away_is_told_when_it_is_back() {
    let mut plane = Plane::start().await;
    finish(&mut plane, "web-1", IP);
    let mut late = sidecar(&plane, "web-1", IP).await;
    let end = late.next().await.expect_err("the end");
    assert!(says_finished(&end), "{end:?}");
}

#[tokio::test]
async fn a_client_that_would_not_end_is_served_on() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
    proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
    proxy.next().await.expect("its listener");
    finish(&mut plane, "web-1", IP);
    proxy.expect_silence().await;
}
