//! Discovery: what a client that asks for too much costs the others, and itself.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tulle_xds_proto::ResourceType::{Address, Cluster, Endpoints, Listener};

use super::harness::*;
use super::shop::*;
use crate::discovery::Limits;

const WAITS: &str = "tulle_control_limits_reached_total{limit=\"pace\"} ";

/// A plane with two pods and a Service, whose clients may ask for so much.
async fn plane(names_a_second: u32, names_at_once: u32) -> Plane {
    let limits = Limits {
        names_a_second,
        names_at_once,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("shop", "other-1", "other", [10, 0, 0, 2]);
    plane.writer.apply(vec![service("api", VIP)]);
    plane
}

/// Waits until a client has to wait.
async fn waits(plane: &Plane) {
    plane.measures(WAITS).await;
}

/// Names that nobody has, other ones each time.
fn nobodys(round: usize, many: usize) -> Vec<String> {
    let name = |i| format!("outbound|10.9.{}.{}|{}", i / 250, i % 250, round + 1);
    (0..many).map(name).collect()
}

async fn ask(proxy: &mut Proxy, names: &[String]) {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    proxy.subscribe(Listener, &names).await;
}

#[tokio::test]
async fn who_asks_for_too_much_waits_and_still_hears_of_changes_and_nobody_else_waits() {
    let mut plane = plane(1, 1_000).await;
    let mut greedy = plane.proxy("shop", "web-1", "web", IP).await;
    greedy.subscribe(Listener, &[LISTENER]).await;
    greedy.take().await;
    ask(&mut greedy, &nobodys(0, 5_000)).await;
    assert_eq!(greedy.take().await.2.len(), 5_000, "it is answered first");
    waits(&plane).await;
    ask(&mut greedy, &nobodys(1, 1)).await;

    let mut other = plane.proxy("shop", "other-1", "other", [10, 0, 0, 2]).await;
    other.subscribe(Listener, &[LISTENER]).await;
    other.take().await;
    other.expect_silence().await;

    plane
        .writer
        .apply(vec![delete(crate::store::Kind::Service, "api")]);
    assert_eq!(greedy.take().await, ("LDS", vec![], names(&[LISTENER])));
    let metrics = plane.admin("/metrics").await;
    assert!(metrics.contains(&format!("{WAITS}1\n")), "{metrics}");

    // A new stream makes it no richer.
    let mut again = plane.proxy("shop", "web-1", "web", IP).await;
    again.subscribe(Listener, &[LISTENER]).await;
    plane.measures(&format!("{WAITS}2\n")).await;
}

#[tokio::test]
async fn what_waits_is_answered_in_its_turn_and_nothing_is_lost() {
    let plane = plane(2_000, 200).await;
    let mut greedy = plane.proxy("shop", "web-1", "web", IP).await;
    let began = Instant::now();
    for round in 0..20 {
        ask(&mut greedy, &nobodys(round, 100)).await;
    }
    let mut absent = 0;
    while absent < 2_000 {
        absent += greedy.take().await.2.len();
    }
    assert_eq!(absent, 2_000);
    // 2,000 names and 200 of them in advance; the last request does not wait for its own.
    assert!(
        began.elapsed() >= Duration::from_millis(800),
        "{:?}",
        began.elapsed()
    );
    waits(&plane).await;
}

#[tokio::test]
async fn asking_for_all_there_is_in_a_loop_counts_as_asking_for_each() {
    let mut plane = plane(1, 100).await;
    let services = (0..100).map(|i| service(&format!("s{i}"), [10, 1, 1, i]));
    plane.writer.apply(services.collect());
    let mut greedy = plane.proxy("shop", "web-1", "web", IP).await;
    // That much is anybody's right, whatever the settings are: all of it, several times.
    for _ in 0..4 {
        greedy.subscribe(Cluster, &["*"]).await;
        assert_eq!(greedy.take().await.1.len(), 101);
        greedy.unsubscribe(Cluster, &["*"]).await;
    }
    let metrics = plane.admin("/metrics").await;
    assert!(!metrics.contains(WAITS), "{metrics}");
    for _ in 0..8 {
        greedy.subscribe(Cluster, &["*"]).await;
        greedy.unsubscribe(Cluster, &["*"]).await;
    }
    waits(&plane).await;
}

#[tokio::test]
async fn a_client_that_asks_for_much_and_accepts_it_never_waits() {
    let mut plane = plane(1, 10_100).await;
    let mut honest = plane.proxy("shop", "web-1", "web", IP).await;
    ask(&mut honest, &nobodys(0, 9_000)).await;
    let mut absent = 0;
    while absent < 9_000 {
        absent += honest.take().await.2.len();
    }
    honest.subscribe(Address, &["/10.0.0.2"]).await;
    assert_eq!(honest.take().await.0, "WDS");
    // As many changes as it could not pay for if accepting them cost anything.
    for i in 0..2_000_u32 {
        let account = if i % 2 == 0 { "another" } else { "other" };
        plane.pod("shop", "other-1", account, [10, 0, 0, 2]);
        let response = honest.next().await.expect("the change");
        honest.ack(&response).await;
    }
    let metrics = plane.admin("/metrics").await;
    assert!(!metrics.contains(WAITS), "{metrics}");
}

#[tokio::test]
async fn who_is_refused_for_too_many_names_has_paid_for_them_when_it_comes_again() {
    let plane = plane(1, 9_000).await;
    let mut greedy = plane.proxy("shop", "web-1", "web", IP).await;
    ask(&mut greedy, &nobodys(0, 10_001)).await;
    let status = greedy.next().await.expect_err("too many");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let mut again = plane.proxy("shop", "web-1", "web", IP).await;
    ask(&mut again, &nobodys(1, 1)).await;
    waits(&plane).await;
}

#[tokio::test]
async fn a_refusal_is_told_a_few_times_and_counted_each_time() {
    let (lines, _guard) = super::lines::Lines::listen();
    let (mut plane, mut proxy) = plane_and_proxy().await;
    proxy.subscribe(Address, &["/10.0.0.2"]).await;
    proxy.take().await;
    for i in 0..40_u32 {
        let account = if i % 2 == 0 { "another" } else { "other" };
        plane.pod("shop", "other-1", account, [10, 0, 0, 2]);
        let response = proxy.next().await.expect("the change");
        proxy.nack(&response, "no").await;
    }
    let counted = "tulle_total_xds_rejects_total{type=\"WDS\"} 40\n";
    plane.measures(counted).await;
    let told = lines.with("a proxy refused its configuration").len();
    assert!((5..20).contains(&told), "{told} lines");
    drop(proxy);
    soon(async {
        while lines.with("were left out").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let all = [
        lines.with("a proxy refused its"),
        lines.with("were left out"),
    ]
    .concat();
    let left_out: u64 = all.iter().map(|line| line.number("left_out")).sum();
    assert_eq!(left_out + told as u64, 40);
}

#[tokio::test]
async fn who_has_its_streams_open_is_told_so_by_name() {
    let (lines, _guard) = super::lines::Lines::listen();
    let limits = Limits {
        streams_per_pod: 1,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    let mut first = plane.proxy("shop", "web-1", "web", IP).await;
    first.subscribe(Listener, &[LISTENER]).await;
    first.take().await;
    for _ in 0..20 {
        let mut more = plane.proxy("shop", "web-1", "web", IP).await;
        more.subscribe(Listener, &[LISTENER]).await;
        let status = more.next().await.expect_err("one stream");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(
            status.message().contains("ns/shop/sa/web at 127.0.0.1"),
            "{status:?}"
        );
    }
    let told = lines.with("as many discovery streams as it may");
    assert!((1..20).contains(&told.len()), "{told:?}");
    assert!(
        told[0]
            .text
            .contains("spiffe://cluster.local/ns/shop/sa/web"),
        "{told:?}"
    );
}

/// Whether a client that asks for a Service's endpoints and forgets them, again and again, has to wait.
async fn asks_again_and_again(endpoints_of_it: u8) -> bool {
    let mut plane = plane(1, 400).await;
    let addresses: Vec<_> = (0..endpoints_of_it)
        .flat_map(|a| (0..50).map(move |b| [10, 3, a, b]))
        .collect();
    plane.writer.apply(vec![endpoints("api", &addresses)]);
    let mut greedy = plane.proxy("shop", "web-1", "web", IP).await;
    for _ in 0..20 {
        greedy.subscribe(Endpoints, &[CLUSTER]).await;
        assert_eq!(greedy.take().await.1, names(&[CLUSTER]));
        greedy.unsubscribe(Endpoints, &[CLUSTER]).await;
        if plane.admin("/metrics").await.contains(WAITS) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn what_is_large_costs_more_than_its_name() {
    assert!(!asks_again_and_again(1).await);
    assert!(asks_again_and_again(100).await);
}

#[tokio::test]
async fn a_long_text_costs_what_it_is_long() {
    let plane = plane(1, 400).await;
    for (length, waits) in [(10, false), (1 << 20, true)] {
        let mut proxy = plane.proxy("shop", "web-1", "web", IP).await;
        proxy.subscribe(Listener, &[LISTENER]).await;
        let response = proxy.next().await.expect("the listener");
        proxy.nack(&response, &"x".repeat(length)).await;
        // Once this has been answered, or has to wait, the text has been read.
        proxy.subscribe(Address, &["/10.0.0.2"]).await;
        tokio::select! {
            () = plane.measures(WAITS) => assert!(waits, "{length}"),
            answered = proxy.next() => assert!(!waits && answered.is_ok(), "{length}"),
        }
    }
}

/// A request of a stream that never comes to its end.
struct Part(Option<Bytes>);

impl http_body::Body for Part {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let part = self.0.take();
        part.map_or(Poll::Pending, |part| {
            Poll::Ready(Some(Ok(Frame::data(part))))
        })
    }
}

/// Opens a stream and says all but the last byte of a request of that length.
async fn begin(channel: &Channel, length: u32) -> http::Response<Body> {
    const PATH: &str =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let mut part = [&[0][..], &length.to_be_bytes()].concat();
    part.resize(4 + length as usize, 0);
    let body = Body::new(Part(Some(part.into())));
    let request = http::Request::post(PATH).header("content-type", "application/grpc");
    let request = request.body(body).expect("a request");
    let mut channel = channel.clone();
    poll_fn(|cx| Service::poll_ready(&mut channel, cx))
        .await
        .expect("it listens");
    channel.call(request).await.expect("let in")
}

#[tokio::test]
async fn requests_that_do_not_come_whole_take_no_more_than_one_clients_room() {
    const LENGTH: u32 = 100_000;
    const REACHED: &str = "tulle_control_limits_reached_total{limit=\"unfinished_requests\"} ";
    let limits = Limits {
        request_bytes: LENGTH as usize,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    plane.pod("shop", "other-1", "other", [10, 0, 0, 2]);
    let channel = plane.channel(Some(plane.svid("shop", "web"))).await;
    let channel = channel.expect("it listens");
    let mut parts = Vec::new();
    for _ in 0..5 {
        parts.push(soon(begin(&channel, LENGTH)).await);
    }
    plane.measures(REACHED).await;
    // What comes at once needs no room, and others have their own.
    let mut own = plane.proxy("shop", "web-1", "web", IP).await;
    own.subscribe(Listener, &[LISTENER]).await;
    own.take().await;
    let long = nobodys(0, 3_000);
    let mut other = plane.proxy("shop", "other-1", "other", [10, 0, 0, 2]).await;
    ask(&mut other, &long).await;
    assert_eq!(other.take().await.2.len(), 3_000);
    ask(&mut own, &long).await;
    let status = own.next().await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let metrics = plane.admin("/metrics").await;
    assert!(metrics.contains(&format!("{REACHED}2\n")), "{metrics}");
    // It is given back with the streams.
    drop(parts);
    let served = async || {
        let mut own = plane.proxy("shop", "web-1", "web", IP).await;
        ask(&mut own, &long).await;
        own.next().await.is_ok()
    };
    soon(async { while !served().await {} }).await;
}

#[tokio::test]
async fn who_is_denied_too_many_streams_gets_none_for_a_while_and_others_do() {
    // Two at once, and one in a minute or so.
    let mut plane = plane(1, 100).await;
    plane.pod("shop", "bank-1", "bank", [10, 0, 0, 3]);
    let open = async |account: &str, pod: &str, ip| {
        let svid = Some(plane.svid("shop", account));
        let channel = plane.channel(svid).await.expect("it listens");
        let node = node(&node_id("shop", pod, ip));
        let mut proxy = Proxy::open(channel, Some(node)).await?;
        proxy.subscribe(Listener, &[LISTENER]).await;
        proxy.next().await.map(drop)
    };
    let mut codes = Vec::new();
    for _ in 0..4 {
        let denied = open("web", "bank-1", [10, 0, 0, 3]).await;
        codes.push(denied.expect_err("another's pod").code());
    }
    assert_eq!(codes[0], Code::PermissionDenied);
    assert_eq!(codes[3], Code::ResourceExhausted, "{codes:?}");
    let own = open("web", "web-1", IP).await;
    assert_eq!(own.expect_err("for now").code(), Code::ResourceExhausted);
    open("other", "other-1", [10, 0, 0, 2])
        .await
        .expect("another identity");
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_xds_refused_streams_total{reason=\"too_many_denied\"} ";
    assert!(metrics.contains(counted), "{metrics}");
}
