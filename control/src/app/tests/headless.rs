//! Discovery: an Envoy that wants all there is, and a headless Service with many endpoints.

use tulle_xds_proto::ResourceType::{Cluster, Listener};

use super::harness::*;
use super::shop::*;
use crate::store::service::Addressing;
use crate::store::{Event, Object, Service};

const PODS: u8 = 60;

fn ip(i: u8) -> [u8; 4] {
    [10, 2, 0, i]
}

fn slice(pods: impl Iterator<Item = u8>) -> Event {
    let addresses: Vec<_> = pods.map(ip).collect();
    endpoints("db", &addresses)
}

/// Resources that were translated since the control plane began.
async fn encoded(plane: &Plane) -> u64 {
    let metrics = plane.admin("/metrics").await;
    let lines = metrics.lines();
    let of_type = lines.filter_map(|line| line.strip_prefix("tulle_xds_encoded_total{"));
    let counts = of_type.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[tokio::test]
async fn an_endpoint_that_comes_or_goes_is_all_that_is_looked_at() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    for i in 0..PODS {
        plane.pod("shop", &format!("db-{i}"), "db", ip(i));
    }
    let headless = Service {
        addressing: Addressing::Headless,
        ..a_service("db", VIP)
    };
    let headless = Event::Apply(Object::Service(headless));
    plane.writer.apply(vec![headless, slice(0..PODS)]);
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let id = node_id("shop", "web-1", IP).replace("sidecar", "envoy");
    let mut envoy = Proxy::open(channel.expect("it listens"), Some(node(&id)))
        .await
        .expect("let in");
    envoy.subscribe(Cluster, &["*"]).await;
    let clusters = envoy.take().await.1;
    envoy.subscribe(Listener, &["*"]).await;
    let listeners = envoy.take().await.1;
    let (cluster, listener) = ("pod|8080||db-7.shop", "outbound|10.2.0.7|8080");
    assert!(clusters.contains(&cluster.to_owned()), "{clusters:?}");
    assert!(listeners.contains(&listener.to_owned()), "{listeners:?}");

    let before = encoded(&plane).await;
    plane
        .writer
        .apply(vec![slice((0..PODS).filter(|i| *i != 7))]);
    // Removals of clusters leave last.
    assert_eq!(envoy.take().await, ("LDS", vec![], names(&[listener])));
    assert_eq!(envoy.take().await, ("CDS", vec![], names(&[cluster])));
    plane.writer.apply(vec![slice(0..PODS)]);
    assert_eq!(envoy.take().await, ("CDS", names(&[cluster]), vec![]));
    assert_eq!(envoy.take().await, ("LDS", names(&[listener]), vec![]));
    envoy.expect_silence().await;
    let looked_at = encoded(&plane).await - before;
    assert!(
        looked_at <= 6,
        "{looked_at} resources translated for one endpoint"
    );
}
