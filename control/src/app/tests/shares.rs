//! The port: what one client can take of what there is for all.
//!
//! Loopback has as many addresses as a test wants clients.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tulle_xds_proto::ResourceType::Secret;

use super::harness::*;
use crate::app::listener::{Bounds, Grace};
use crate::discovery::Limits;

const ONE: [u8; 4] = [127, 0, 0, 2];
const TWO: [u8; 4] = [127, 0, 0, 3];
const THREE: [u8; 4] = [127, 0, 0, 4];
const HOUR: Duration = Duration::from_secs(3600);
const NOBODY_GIVES_WAY: Grace = Grace {
    crowded: HOUR,
    silent: HOUR,
    spoke: HOUR,
};
const SILENCE_GIVES_WAY: Grace = Grace {
    crowded: HOUR,
    silent: Duration::ZERO,
    spoke: HOUR,
};

/// Three pods of one identity and one of another, each at an address that its connections really come from.
async fn plane(limits: Limits) -> Plane {
    let mut plane = Plane::start_with(limits, |_| {}).await;
    for (name, account, ip) in [
        ("web-1", "web", ONE),
        ("web-2", "web", TWO),
        ("web-3", "web", THREE),
        ("other-1", "other", [127, 0, 0, 5]),
    ] {
        plane.pod("shop", name, account, ip);
    }
    plane
}

fn bounded(connections: Bounds) -> Limits {
    Limits {
        connections,
        ..limits()
    }
}

async fn connect(plane: &Plane, from: [u8; 4], account: &str) -> Channel {
    let svid = plane.svid("shop", account);
    let channel = plane.channel_from(Some(from.into()), plane.xds_address(), Some(svid));
    channel.await.expect("it listens")
}

/// Asks for something as a pod; the stream stays open as long as what is returned.
async fn serves(channel: Channel, pod: &str, ip: [u8; 4]) -> Result<Proxy, Status> {
    let mut proxy = Proxy::open(channel, Some(node(&node_id("shop", pod, ip)))).await?;
    proxy.subscribe(Secret, &["ROOTCA"]).await;
    proxy.next().await?;
    Ok(proxy)
}

async fn counted(plane: &Plane, limit: &str) {
    let line = format!("tulle_control_limits_reached_total{{limit=\"{limit}\"}} ");
    let metrics = plane.admin("/metrics").await;
    assert!(metrics.contains(&line), "{line} in {metrics}");
}

#[tokio::test]
async fn a_pod_that_speaks_for_its_sibling_takes_none_of_its_streams() {
    let plane = plane(Limits {
        streams_per_pod: 1,
        ..limits()
    })
    .await;
    let _taken = serves(connect(&plane, ONE, "web").await, "web-2", TWO)
        .await
        .expect("it runs as the same identity");
    let _own = serves(connect(&plane, TWO, "web").await, "web-2", TWO)
        .await
        .expect("the sibling's own stream");
    let more = serves(connect(&plane, ONE, "web").await, "web-3", THREE).await;
    let status = more.err().expect("it has a stream already");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("ns/shop/sa/web at 127.0.0.2"),
        "{status:?}"
    );
}

#[tokio::test]
async fn behind_one_address_that_is_no_pods_each_pod_has_streams_of_its_own() {
    let plane = plane(Limits {
        streams_per_pod: 1,
        ..limits()
    })
    .await;
    let node = [127, 0, 0, 9];
    let first = serves(connect(&plane, node, "web").await, "web-1", ONE).await;
    let second = serves(connect(&plane, node, "web").await, "web-2", TWO).await;
    let _both = (first.expect("let in"), second.expect("let in"));
    let third = serves(connect(&plane, node, "web").await, "web-2", TWO).await;
    assert_eq!(
        third.err().expect("its second").code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn a_client_with_too_many_connections_is_refused_and_no_other_is() {
    let (lines, _guard) = super::lines::Lines::listen();
    let plane = plane(bounded(Bounds {
        of_client: 2,
        ..Bounds::default()
    }))
    .await;
    let mut held = vec![
        connect(&plane, ONE, "web").await,
        connect(&plane, ONE, "web").await,
    ];
    for _ in 0..10 {
        let status = serves(connect(&plane, ONE, "web").await, "web-1", ONE).await;
        let status = status.err().expect("one too many");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    for (pod, account, ip) in [("web-2", "web", TWO), ("other-1", "other", [127, 0, 0, 5])] {
        let served = serves(connect(&plane, ip, account).await, pod, ip).await;
        served.expect("another client");
    }
    counted(&plane, "connections_of_client").await;
    let told = lines.with("as many connections as it may");
    assert!((1..10).contains(&told.len()), "{told:?}");
    assert!(
        told[0].text.contains("127.0.0.2") && told[0].text.contains("sa/web"),
        "{told:?}"
    );
    held.pop();
    // The connection is gone a moment after its owner has dropped it.
    while let Err(status) = serves(connect(&plane, ONE, "web").await, "web-1", ONE).await {
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
}

#[tokio::test]
async fn an_identity_with_too_many_connections_is_refused_wherever_it_comes_from() {
    let plane = plane(bounded(Bounds {
        of_identity: 2,
        ..Bounds::default()
    }))
    .await;
    let _held = [
        connect(&plane, ONE, "web").await,
        connect(&plane, TWO, "web").await,
    ];
    let channel = connect(&plane, THREE, "web").await;
    let token = plane.tokens.token("shop", "web", "web-3", "u1");
    let asked = super::certificates::certify_over(channel.clone(), &token).await;
    assert_eq!(
        asked.expect_err("no certificates either").code(),
        Code::ResourceExhausted
    );
    let status = serves(channel, "web-3", THREE).await;
    assert_eq!(
        status.err().expect("refused").code(),
        Code::ResourceExhausted
    );
    let other = [127, 0, 0, 5];
    serves(connect(&plane, other, "other").await, "other-1", other)
        .await
        .expect("another identity");
    counted(&plane, "connections_of_identity").await;
}

/// Whether a client without a certificate gets one.
async fn certified(plane: &Plane, from: [u8; 4]) -> bool {
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let channel = plane.channel_from(Some(from.into()), plane.xds_address(), None);
    match channel.await {
        Ok(channel) => super::certificates::certify_over(channel, &token)
            .await
            .is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn connections_without_a_certificate_from_one_address_leave_room_for_those_from_others() {
    let plane = plane(bounded(Bounds {
        anonymous_of_address: 1,
        anonymous_grace: NOBODY_GIVES_WAY,
        ..Bounds::default()
    }))
    .await;
    let held = plane.channel_from(Some(ONE.into()), plane.xds_address(), None);
    let _held = held.await.expect("let in");
    assert!(!certified(&plane, ONE).await, "its second");
    assert!(certified(&plane, TWO).await, "another address");
    counted(&plane, "anonymous_connections_of_address").await;
}

#[tokio::test]
async fn connections_without_a_certificate_that_ask_for_none_make_room_for_those_that_do() {
    let plane = plane(bounded(Bounds {
        anonymous: 2,
        anonymous_grace: SILENCE_GIVES_WAY,
        ..Bounds::default()
    }))
    .await;
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let ask = async |from: [u8; 4]| {
        let channel = plane.channel_from(Some(from.into()), plane.xds_address(), None);
        let channel = channel.await.expect("let in");
        let asked = super::certificates::certify_over(channel.clone(), &token).await;
        asked.map(|_| channel)
    };
    let one = ask(ONE).await.expect("there is room");
    let mut silent = plane.bare(TWO.into()).await;
    // Once the server has said something it has its room.
    silent.read_exact(&mut [0]).await.expect("let in");
    // The first one is older, and has asked.
    let _three = ask(THREE).await.expect("there is room");
    let end = tokio::time::timeout(Duration::from_secs(20), async {
        while silent.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
    });
    end.await.expect("it was given up");
    super::certificates::certify_over(one.clone(), &token)
        .await
        .expect("it was not");
    counted(&plane, "anonymous_connections").await;
    // Now both have asked, and have their time.
    assert!(!certified(&plane, [127, 0, 0, 5]).await);
}

/// A connection from that address on which nothing is ever said.
async fn says_nothing(plane: &Plane, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((IpAddr::from(from), 0).into())
        .expect("loopback");
    let connected = socket.connect(plane.xds_address()).await;
    connected.expect("it listens")
}

#[tokio::test]
async fn silent_connections_of_one_address_keep_nobody_elsewhere_waiting() {
    let plane = plane(bounded(Bounds {
        handshakes: 4,
        handshakes_of_address: 2,
        ..Bounds::default()
    }))
    .await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(says_nothing(&plane, ONE).await);
    }
    assert!(certified(&plane, TWO).await);
    counted(&plane, "handshakes_of_address").await;
    let metrics = plane.admin("/metrics").await;
    let full = "tulle_control_limits_reached_total{limit=\"handshakes\"}";
    assert!(!metrics.contains(full), "{metrics}");
}

#[tokio::test]
async fn addresses_full_of_silent_connections_keep_nobody_elsewhere_waiting() {
    let plane = plane(bounded(Bounds {
        handshakes: 8,
        handshakes_of_address: 2,
        handshake_grace: SILENCE_GIVES_WAY,
        ..Bounds::default()
    }))
    .await;
    let mut silent = Vec::new();
    for host in 10..14 {
        silent.push(says_nothing(&plane, [127, 0, 0, host]).await);
        silent.push(says_nothing(&plane, [127, 0, 0, host]).await);
    }
    // Any of their handshakes would take 10 s.
    let served = tokio::time::timeout(Duration::from_secs(9), certified(&plane, ONE));
    assert!(served.await.expect("at once"));
    counted(&plane, "handshakes").await;
    // The first of them has made room.
    let mut given_up = silent.remove(0);
    let end = tokio::time::timeout(Duration::from_secs(5), given_up.read(&mut [0])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
}

#[tokio::test]
async fn who_is_refused_is_named_whoever_else_floods() {
    let (lines, _guard) = super::lines::Lines::listen();
    let plane = plane(limits()).await;
    let others = (10..20).map(|host| [127, 0, 0, host]);
    for from in [ONE; 40].into_iter().chain(others) {
        let mut tcp = says_nothing(&plane, from).await;
        tcp.write_all(b"no TLS\r\n\r\n").await.expect("it listens");
        // Until it is closed.
        let _ = tcp.read_to_end(&mut Vec::new()).await;
        let channel = connect(&plane, from, "web").await;
        let asked = async {
            let mut proxy = Proxy::open(channel, Some(node("nobody"))).await?;
            proxy.subscribe(Secret, &["ROOTCA"]).await;
            proxy.next().await.map(drop)
        };
        asked.await.expect_err("a stream of nobody");
        let channel = plane.channel_from(Some(from.into()), plane.xds_address(), None);
        let opened = Proxy::open(channel.await.expect("it listens"), None).await;
        opened.err().expect("a stream without a certificate");
    }
    let [nobody, no_certificate] = ["PermissionDenied", "Unauthenticated"];
    for what in ["TLS handshake failed", nobody, no_certificate] {
        let told = lines.with(what);
        let of_one = |line: &&super::lines::Line| line.text.contains("127.0.0.2:");
        let flood = told.iter().filter(of_one).count();
        assert!((1..30).contains(&flood), "{flood}: {what}");
        // One or two may come by the same gate as the flood.
        let others = told.len() - flood;
        assert!(others >= 5, "{others} of 10: {what}");
    }
}
