//! Who gets a certificate, and who does not.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tulle_identity::{PrivateKey, SpiffeId, Svid, TrustBundle};
use tulle_xds_proto::istio::auth::IstioCertificateRequest;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::harness::*;
use crate::app::listener::Bounds;
use crate::ca::token_tests::claims as token_claims;
use crate::discovery::Limits;
use crate::store::{Event, Object, Pod};

fn svid(key: PrivateKey, chain: &[String]) -> Svid {
    let chain = chain
        .iter()
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"))
        .collect();
    Svid::new(chain, key).expect("a good chain")
}

fn csr(id: &str) -> String {
    let key = PrivateKey::generate().expect("a key");
    key.csr(&SpiffeId::parse(id).expect("a good id"))
        .expect("a request")
}

#[tokio::test]
async fn a_pod_gets_the_identity_of_its_token_from_the_root_it_mounts() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let (key, chain) = plane.certify(None, Some(&token)).await.expect("issued");
    assert_eq!(chain.len(), 2, "the leaf first, the root last");
    let root = TrustBundle::from_pem(chain[1].as_bytes()).expect("a root");
    assert_eq!(root, plane.bundle().await);
    let svid = svid(key, &chain);
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    // It opens doors, and renews itself with it in hand.
    plane
        .certify(Some(svid), Some(&token))
        .await
        .expect("issued again");
}

#[tokio::test]
async fn a_pod_that_appears_a_moment_after_its_request_is_served() {
    let limits = Limits {
        pod_wait: Duration::from_secs(20),
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let object = Event::Apply(Object::Pod(pod("shop", "web-1", "web", [10, 0, 0, 1])));
    let channel = plane.channel(None).await.expect("it listens");
    let asked = ask(channel, &token);
    let appear = async {
        tokio::task::yield_now().await;
        plane.writer.apply(vec![object]);
    };
    let (answer, ()) = tokio::join!(asked, appear);
    assert!(answer.is_ok(), "{answer:?}");
}

async fn ask(channel: Channel, token: &str) -> Result<(), Status> {
    certify_over(channel, token).await.map(drop)
}

/// A certificate for service account `shop/web`, asked for over this connection.
pub(super) async fn certify_over(channel: Channel, token: &str) -> Result<Svid, Status> {
    let key = PrivateKey::generate().expect("a key");
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("a good id");
    let mut request = Request::new(IstioCertificateRequest {
        csr: key.csr(&id).expect("a request"),
        validity_duration: 0,
    });
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("ASCII"),
    );
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await?;
    Ok(svid(key, &answer.into_inner().cert_chain))
}

#[tokio::test]
async fn row_37_a_request_for_somebody_else_is_refused() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let own = || csr("spiffe://cluster.local/ns/shop/sa/web");
    let ten_years = 10 * 365 * 24 * 3600;
    let not_a_ca = rcgen::IsCa::ExplicitNoCa;
    let a_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let granted = [
        ("its own name", own(), 0),
        ("its own name for a day", own(), 24 * 3600),
        ("no name", extended(not_a_ca, &[], &[]), 0),
    ];
    for (name, csr, seconds) in granted {
        plane
            .certify_csr(None, Some(&token), csr, seconds)
            .await
            .expect(name);
    }
    let named = |id: &str| csr(&format!("spiffe://{id}"));
    let refused = [
        (
            "another account",
            named("cluster.local/ns/shop/sa/admin"),
            0,
            "sa/admin",
        ),
        (
            "another namespace",
            named("cluster.local/ns/bank/sa/web"),
            0,
            "ns/bank",
        ),
        (
            "another trust domain",
            named("evil/ns/shop/sa/web"),
            0,
            "spiffe://evil",
        ),
        (
            "a CA",
            extended(a_ca, &[], &[]),
            0,
            "it asks for a CA certificate",
        ),
        (
            "the right to sign",
            extended(not_a_ca, &[], &[rcgen::KeyUsagePurpose::KeyCertSign]),
            0,
            "the right to sign certificates",
        ),
        (
            "the control plane's DNS name",
            extended(not_a_ca, &["tulle-control.tulle-system.svc"], &[]),
            0,
            "tulle-control.tulle-system.svc",
        ),
        ("ten years", own(), ten_years, "at most"),
        (
            "a negative life",
            own(),
            -1,
            "validity_duration is negative",
        ),
        (
            "garbage",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
                .to_owned(),
            0,
            "malformed PKCS#10",
        ),
        ("nothing", String::new(), 0, "not a PEM certificate request"),
    ];
    for (name, csr, seconds, why) in refused {
        let status = plane
            .certify_csr(None, Some(&token), csr, seconds)
            .await
            .expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().contains(why), "{name}: {status:?}");
    }
    let metrics = plane.admin("/metrics").await;
    for line in [
        "tulle_ca_success_cert_issuance_total 3\n",
        "tulle_ca_csr_failures_total{reason=\"csr\"} 10\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// A signing request that may have more in it than a workload may ask for.
fn extended(is_ca: rcgen::IsCa, dns_names: &[&str], usages: &[rcgen::KeyUsagePurpose]) -> String {
    let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).expect("DNS names");
    params.is_ca = is_ca;
    params.key_usages = usages.to_vec();
    let key = rcgen::KeyPair::generate().expect("a key");
    params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request")
}

#[tokio::test]
async fn a_short_lifetime_is_what_the_operator_said() {
    let mut plane =
        Plane::start_with(limits(), |args| args.leaf_ttl = Duration::from_secs(10)).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    for asked in [0, 24 * 3600] {
        let key = PrivateKey::generate().expect("a key");
        let request = key
            .csr(&SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("an id"))
            .expect("a request");
        let chain = plane
            .certify_csr(None, Some(&token), request, asked)
            .await
            .expect("issued");
        let left = svid(key, &chain)
            .not_after()
            .duration_since(SystemTime::now())
            .expect("still valid");
        assert!(left <= Duration::from_secs(10), "{left:?}");
    }
}

#[tokio::test]
async fn row_38_callers_without_a_good_token_get_nothing_and_no_hint() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let good = plane.tokens.token("shop", "web", "web-1", "u1");
    plane
        .certify(None, Some(&good))
        .await
        .expect("a good token");
    let other_audience = {
        let mut claims = token_claims("shop", "web", "web-1", "u1");
        claims["aud"] = serde_json::json!(["vault"]);
        plane.tokens.sign(&claims)
    };
    let table = [
        ("no token", None, None),
        ("a certificate alone", Some(plane.svid("shop", "web")), None),
        ("garbage", None, Some("x".to_owned())),
        ("another audience", None, Some(other_audience)),
        (
            "a pod that does not exist",
            None,
            Some(plane.tokens.token("shop", "web", "web-9", "u9")),
        ),
        (
            "another account of the pod",
            None,
            Some(plane.tokens.token("shop", "admin", "web-1", "u1")),
        ),
        (
            "replayed from another workload",
            Some(plane.svid("bank", "thief")),
            Some(good.clone()),
        ),
    ];
    let mut answers = BTreeSet::new();
    for (name, svid, token) in table {
        let status = plane.certify(svid, token.as_deref()).await.expect_err(name);
        assert_eq!(status.code(), Code::Unauthenticated, "{name}: {status:?}");
        answers.insert(status.message().to_owned());
    }
    assert_eq!(
        answers.len(),
        1,
        "every refusal looks the same: {answers:?}"
    );
    plane
        .certify(None, Some(&good))
        .await
        .expect("others are unaffected");
}

#[tokio::test]
async fn row_38_a_deleted_pods_token_is_refused_at_once() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    plane
        .certify(None, Some(&token))
        .await
        .expect("the pod is there");
    plane.remove_pod("shop", "web-1");
    // Wait until the removal is known, then ask while the token's verdict is still cached.
    let gone = async || {
        let status = plane.certify(None, Some(&token)).await.err()?;
        (status.code() == Code::Unauthenticated).then_some(())
    };
    while gone().await.is_none() {}
}

#[tokio::test]
async fn row_38_without_keys_the_ca_is_unavailable_and_lets_nobody_in() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let keys = std::fs::read(plane.tokens.file()).expect("readable");
    std::fs::remove_file(plane.tokens.file()).expect("it is there");
    let status = plane
        .certify(None, Some(&token))
        .await
        .expect_err("nobody can check the token");
    assert_eq!(status.code(), Code::Unavailable);
    std::fs::write(plane.tokens.file(), keys).expect("writable");
    // They are looked for once a second.
    let mut answer = Err(status);
    while let Err(status) = answer {
        // A fast machine asks more often than it may.
        let goes_on = [Code::Unavailable, Code::ResourceExhausted].contains(&status.code());
        assert!(goes_on, "{status:?}");
        answer = plane.certify(None, Some(&token)).await;
    }
}

#[tokio::test]
async fn a_client_certificate_of_another_mesh_does_not_get_through_the_handshake() {
    let plane = Plane::start().await;
    let other = Plane::start().await;
    let foreign = other.svid("shop", "web");
    // The server refuses after the client believes itself connected, so the first call shows it.
    let refused = match plane.channel(Some(foreign)).await {
        Err(_) => true,
        Ok(channel) => ask(channel, "x")
            .await
            .is_err_and(|status| status.code() != Code::Unauthenticated),
    };
    assert!(refused);
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_xds_handshake_failures_total 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_root_survives_a_restart() {
    let plane = Plane::start().await;
    let bundle = plane.bundle().await;
    let state_dir = plane.state_dir();
    let again = Plane::start_with(limits(), |args| args.state_dir = Some(state_dir)).await;
    assert_eq!(again.bundle().await, bundle);
}

#[tokio::test]
async fn a_root_rotation_begins_on_request_and_keeps_the_old_root_trusted() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let before = plane.bundle().await;
    let answer = plane.admin_post("/ca/rotate-root").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        plane
            .admin_post("/ca/rotate-root")
            .await
            .starts_with("HTTP/1.1 409"),
        "one at a time"
    );
    let both = loop {
        let bundle = plane.bundle().await;
        if bundle.roots().len() == 2 {
            break bundle;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!(both.roots()[0], before.roots()[0]);
    // The old root still signs: the new one may not have reached everybody.
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let (_, chain) = plane.certify(None, Some(&token)).await.expect("issued");
    assert_eq!(
        TrustBundle::from_pem(chain[1].as_bytes()).expect("a root"),
        before
    );
}

#[tokio::test]
async fn row_38_the_token_of_a_deleted_pod_is_not_its_successors() {
    let mut plane = Plane::start().await;
    let made_anew = Pod {
        uid: Some("u2".into()),
        ..pod("shop", "web-1", "web", [10, 0, 0, 1])
    };
    plane
        .writer
        .apply(vec![Event::Apply(Object::Pod(made_anew))]);
    let old = plane.tokens.token("shop", "web", "web-1", "u1");
    let error = plane.certify(None, Some(&old)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let new = plane.tokens.token("shop", "web", "web-1", "u2");
    plane.certify(None, Some(&new)).await.expect("issued");
}

fn bounded(connections: Bounds) -> Limits {
    Limits {
        connections,
        ..limits()
    }
}

/// Whether a client without a certificate gets one, over a connection of its own.
async fn is_served(plane: &Plane, token: &str) -> bool {
    match plane.channel(None).await {
        Ok(channel) => ask(channel, token).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_connection_without_a_certificate_is_closed_after_its_time() {
    let bounds = Bounds {
        anonymous: 1,
        anonymous_life: Duration::from_millis(300),
        ..Bounds::default()
    };
    let mut plane = Plane::start_with(bounded(bounds), |_| {}).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    // It holds the only room there is, and does not let go by itself.
    let _held = plane.channel(None).await.expect("let in");
    let served = async { while !is_served(&plane, &token).await {} };
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .expect("the room becomes free");
}

#[tokio::test]
async fn those_without_a_certificate_leave_room_for_those_with_one() {
    let full = Bounds {
        anonymous: 0,
        ..Bounds::default()
    };
    let mut plane = Plane::start_with(bounded(full), |_| {}).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    assert!(!is_served(&plane, &token).await, "there is no room");
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_control_limits_reached_total{limit=\"anonymous_connections\"} ";
    assert!(metrics.contains(counted), "{metrics}");
    plane
        .certify(Some(plane.svid("shop", "web")), Some(&token))
        .await
        .expect("issued");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_counted() {
    let bounds = Bounds {
        connections: 1,
        ..Bounds::default()
    };
    let mut plane = Plane::start_with(bounded(bounds), |_| {}).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let held = plane.channel(None).await.expect("let in");
    let waiting = is_served(&plane, &token);
    let counted = async {
        let line = "tulle_control_limits_reached_total{limit=\"connections\"} ";
        while !plane.admin("/metrics").await.contains(line) {}
        drop(held);
    };
    let (served, ()) = tokio::join!(waiting, counted);
    assert!(served, "there is room as soon as one has gone");
}

#[tokio::test]
async fn whoever_says_nothing_keeps_nobody_waiting_for_long() {
    let bounds = Bounds {
        handshakes: 2,
        ..Bounds::default()
    };
    let mut plane = Plane::start_with(bounded(bounds), |_| {}).await;
    plane.pod("shop", "web-1", "web", [10, 0, 0, 1]);
    let token = plane.tokens.token("shop", "web", "web-1", "u1");
    let mut silent = Vec::new();
    for _ in 0..4 {
        let connected = tokio::net::TcpStream::connect(plane.xds_address()).await;
        silent.push(connected.expect("it listens"));
    }
    // Their handshakes would take 10 s.
    let served = tokio::time::timeout(Duration::from_secs(9), is_served(&plane, &token));
    assert!(served.await.expect("in time"));
    let metrics = plane.admin("/metrics").await;
    let counted = "tulle_control_limits_reached_total{limit=\"handshakes\"} ";
    assert!(metrics.contains(counted), "{metrics}");
}
