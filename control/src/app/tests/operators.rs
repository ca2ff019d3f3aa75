//! The control plane as its operators see it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::ResourceType;

use super::harness::*;
use crate::app::serve;
use crate::source::SourceReport;
use crate::store::policy::{MtlsMode, PolicyTarget};
use crate::store::{Event, Kind, MeshSettings, Object, ObjectKey, PeerAuthentication, Pod, Store};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn row_34_beyond_loopback_there_are_only_readiness_and_metrics() {
    let anywhere: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
    let plane = Plane::start_with(limits(), |args| args.admin_address = anywhere).await;
    let port = plane.control.admin_address().port();
    let inside = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let outside = address_of_this_machine().map(|ip| SocketAddr::from((ip, port)));
    for (path, exposed) in [
        ("/ready", true),
        ("/metrics", true),
        ("/debug/proxies", false),
        ("/debug/source", false),
        ("/debug/world", false),
        ("/ca", false),
    ] {
        assert_eq!(status(&get(inside, path).await), "200", "{path}");
        let Some(outside) = outside else {
            continue;
        };
        let expected = if exposed { "200" } else { "404" };
        assert_eq!(status(&get(outside, path).await), expected, "{path}");
    }
}

/// An address that is not loopback, if this machine has one: the one that it would send from.
fn address_of_this_machine() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent by this.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback()).then_some(ip)
}

#[tokio::test]
async fn there_are_as_many_connections_of_operators_as_may_be_and_more_are_counted() {
    const REACHED: &str = "tulle_control_limits_reached_total{limit=\"admin_connections\"} ";
    let limits = crate::discovery::Limits {
        admin_connections: 4,
        ..limits()
    };
    let plane = Plane::start_with(limits, |_| {}).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let address = plane.control.admin_address();
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // It is served once this is answered.
        let request = b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
        stream.write_all(request).await.expect("it reads");
        stream.read_u8().await.expect("it answers");
        held.push(stream);
    }
    // This one is one too many, and the next takes the room that it has left.
    for _ in 0..2 {
        let metrics = plane.admin("/metrics").await;
        assert!(metrics.contains(&format!("{REACHED}1\n")), "{metrics}");
    }
    let mut rest = Vec::new();
    let first = soon(held[0].read_to_end(&mut rest)).await;
    first.expect("the oldest is closed");
}

#[tokio::test]
async fn row_34_a_forged_request_reads_and_changes_nothing() {
    let plane = Plane::start().await;
    let address = plane.control.admin_address();
    let post = "POST /ca/rotate-root";
    let table = [
        (
            "another host's name",
            "GET /debug/proxies",
            "Host: evil.example",
            false,
        ),
        (
            "a name that leads here",
            "GET /debug/world",
            "Host: 127.0.0.1.evil.example",
            false,
        ),
        (
            "two hosts",
            "GET /ca",
            "Host: localhost\r\nHost: evil.example",
            false,
        ),
        ("no host", "GET /ca", "X: y", false),
        ("another host's name", post, "Host: evil.example", false),
        (
            "a browser",
            post,
            "Host: localhost\r\nOrigin: http://evil.example",
            false,
        ),
        (
            "a browser on this machine",
            post,
            "Host: localhost\r\nSec-Fetch-Site: none",
            false,
        ),
        ("a link", "GET /ca/rotate-root", "Host: localhost", false),
        (
            "an operator who looks",
            "GET /debug/proxies",
            "Host: localhost",
            true,
        ),
    ];
    for (name, request, headers, expected) in table {
        let text = format!(
            "{request} HTTP/1.1\r\n{headers}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = exchange(address, &text).await;
        assert_eq!(status(&answer) == "200", expected, "{name}: {answer}");
    }
    let rotating = async || plane.admin("/ca").await.contains("announced");
    assert!(!rotating().await, "none of them began a rotation");
    assert_eq!(status(&plane.admin_post("/ca/rotate-root").await), "200");
    assert!(rotating().await, "an operator does");
}

#[tokio::test]
async fn policies_that_others_overrule_are_shown_and_counted() {
    let mut plane = Plane::start().await;
    let policy = |name: &str, mode| {
        Event::Apply(Object::PeerAuthentication(PeerAuthentication {
            key: ObjectKey::new("shop", name),
            istio: false,
            created: Default::default(),
            target: PolicyTarget::Namespace,
            mode: Some(mode),
            ports: Default::default(),
        }))
    };
    let count = async |plane: &Plane| {
        let metrics = plane.admin("/metrics").await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("tulle_policies_overruled "));
        line.map(str::to_owned)
    };
    assert_eq!(
        count(&plane).await.as_deref(),
        Some("tulle_policies_overruled 0")
    );
    plane.writer.apply(vec![
        policy("a", MtlsMode::Strict),
        policy("b", MtlsMode::Disable),
    ]);
    while count(&plane).await.as_deref() != Some("tulle_policies_overruled 1") {
        tokio::task::yield_now().await;
    }
    let shown = plane.admin("/debug/source").await;
    assert!(
        shown.contains("PeerAuthentication shop/b: PeerAuthentication shop/a comes first"),
        "{shown}"
    );
}

#[tokio::test]
async fn no_admin_answer_has_a_private_key_in_it() {
    let plane = Plane::start().await;
    for path in [
        "/metrics",
        "/debug/proxies",
        "/debug/source",
        "/debug/world",
        "/ca",
    ] {
        let answer = plane.admin(path).await;
        assert!(!answer.contains("PRIVATE KEY"), "{answer}");
    }
}

#[tokio::test]
async fn a_control_plane_is_ready_once_its_sources_were_read() {
    let (store, mut writer) = Store::new(MeshSettings::default());
    let plane = Plane::start().await;
    let args = plane.args();
    let report = SourceReport::waiting_for(Kind::PeerAuthentication);
    let control = serve(&args, &store, report, limits(), Tasks::new(), None)
        .await
        .expect("it starts");
    let ready = || async { status(&get(control.admin_address(), "/ready").await).to_owned() };
    assert_eq!(ready().await, "503");
    let why = get(control.admin_address(), "/ready").await;
    assert!(
        why.contains("not been read yet: PeerAuthentication\n"),
        "{why}"
    );
    let source = || get(control.admin_address(), "/debug/source");
    let unread = source().await;
    assert!(unread.contains("\"synced\": false"), "{unread}");
    writer.set_synced();
    while ready().await != "200" {
        tokio::task::yield_now().await;
    }
    let read = source().await;
    assert!(read.contains("\"synced\": true"), "{read}");
}

#[tokio::test]
async fn a_pod_whose_label_hides_its_sidecar_is_a_problem_until_it_does_not() {
    let mut plane = Plane::start().await;
    for (relabelled, expected) in [(true, true), (false, false)] {
        let pod = Pod {
            relabelled,
            ..pod("shop", "web-1", "web", [10, 1, 0, 1])
        };
        plane.writer.apply(vec![Event::Apply(Object::Pod(pod))]);
        let said = plane.admin("/debug/source").await;
        let named = said.contains("Pod shop/web-1") && said.contains("tulle.dev/proxied");
        assert_eq!(named, expected, "{said}");
        let count = format!("source_problems {}", u8::from(expected));
        let metrics = plane.admin("/metrics").await;
        assert!(metrics.contains(&count), "{metrics}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_way_out() {
    let plane = Plane::start().await;
    let (store, _writer) = Store::new(MeshSettings::default());
    let start = async |change: &dyn Fn(&mut crate::app::Args)| {
        let mut args = plane.args();
        change(&mut args);
        let started = serve(
            &args,
            &store,
            SourceReport::default(),
            limits(),
            Tasks::new(),
            None,
        )
        .await;
        format!("{:#}", started.expect_err("the port is taken"))
    };
    let xds = plane.control.xds_address();
    let error = start(&|args| args.xds_address = xds).await;
    assert!(
        error.contains(&xds.to_string()) && error.contains("--xds-address"),
        "{error}"
    );
    let admin = plane.control.admin_address();
    let error = start(&|args| args.admin_address = admin).await;
    assert!(
        error.contains(&admin.to_string()) && error.contains("--admin-address"),
        "{error}"
    );
}

#[tokio::test]
async fn who_has_acknowledged_what_is_shown_and_counted() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let mut proxy = plane.proxy("shop", "web-1", "web", [10, 0, 0, 1]).await;
    proxy
        .subscribe(ResourceType::Secret, &["ROOTCA", "nothing"])
        .await;
    let response = proxy.next().await.expect("the bundle");
    let shown = async || {
        let answer = plane.admin("/debug/proxies").await;
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str::<serde_json::Value>(body).expect("JSON")
    };
    let before = shown().await;
    assert_eq!(before[0]["pod"], "shop/web-1");
    assert_eq!(
        before[0]["identity"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(before[0]["types"]["SDS"]["subscribed"], 2);
    assert_eq!(before[0]["types"]["SDS"]["unacknowledged"], 1);
    assert_eq!(
        before[0]["types"]["SDS"]["acknowledged"],
        serde_json::Value::Null
    );
    proxy.ack(&response).await;
    proxy.expect_silence().await;
    let after = shown().await;
    let time = after[0]["types"]["SDS"]["acknowledged"].as_str();
    let time = time.expect("a time");
    assert!(
        time.len() == 20 && time.starts_with("20") && time.ends_with('Z'),
        "{time}"
    );
    assert_eq!(
        after[0]["types"]["SDS"]["acked_nonce"],
        response.nonce.as_str()
    );
    let metrics = plane.admin("/metrics").await;
    for line in [
        "tulle_xds 1",
        "tulle_pods 1",
        "tulle_xds_pushes_total{type=\"SDS\"}",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    drop(proxy);
    while shown().await != serde_json::json!([]) {
        tokio::task::yield_now().await;
    }
}
