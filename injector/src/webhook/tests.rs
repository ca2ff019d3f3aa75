//! Over real HTTPS: what an API server sees, and what others do.

mod bounds;
mod harness;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tulle_identity::TrustBundle;

use crate::Namespace;
use crate::hand_written::api_server;
use harness::{BOUNDS, Harness, PATIENCE, full, issuer, parts, read, request, review, svid};

#[tokio::test]
async fn a_pod_gets_its_patch_over_http2_and_over_http1() {
    let harness = Harness::start(BOUNDS).await;
    let (mut h2, mut h1) = (harness.h2().await, harness.h1().await);
    for uid in ["a", "b"] {
        let body = full(&review(uid));
        let mut of_h1 = request(body.clone());
        of_h1
            .headers_mut()
            .insert("host", "x".parse().expect("a host"));
        let answers = [
            h2.send_request(request(body)).await.expect("an answer"),
            h1.send_request(of_h1).await.expect("an answer"),
        ];
        for answer in answers {
            let (status, answer) = read(answer).await;
            assert_eq!(status, StatusCode::OK);
            let response = &answer["response"];
            assert_eq!(
                (&response["uid"], &response["allowed"]),
                (&json!(uid), &json!(true))
            );
            assert!(response["patch"].is_string(), "{answer}");
        }
    }
    let name = r#"tulle_injector_reviews_total{verdict="injected",reason="pod_label"}"#;
    assert!((harness.metric(name) - 4.0).abs() < 0.1);
    assert!((harness.metric("tulle_injector_review_duration_seconds_count") - 4.0).abs() < 0.1);
    assert!(harness.metric("tulle_injector_requests_in_flight").abs() < 0.1);
}

/// A change to a request, and what its answer says.
type Row = (
    &'static str,
    fn(&mut Request<Full<Bytes>>),
    StatusCode,
    &'static str,
    &'static str,
);

#[tokio::test]
async fn what_is_no_review_is_answered_by_a_status_with_its_remedy() {
    let harness = Harness::start(BOUNDS).await;
    let rows: [Row; 7] = [
        (
            "another path",
            |request| *request.uri_mut() = "https://x/".parse().expect("a URI"),
            StatusCode::NOT_FOUND,
            "NotFound",
            "name the path /inject",
        ),
        (
            "another method",
            |request| *request.method_mut() = http::Method::GET,
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "takes POST",
        ),
        (
            "no media type",
            |request| drop(request.headers_mut().remove("content-type")),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "application/json",
        ),
        (
            "another media type",
            |request| {
                let other = "application/yaml".parse().expect("a value");
                request.headers_mut().insert("content-type", other);
            },
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "application/json",
        ),
        (
            "compressed",
            |request| {
                let gzip = "gzip".parse().expect("a value");
                request.headers_mut().insert("content-encoding", gzip);
            },
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "not compressed",
        ),
        (
            "no JSON",
            |request| *request.body_mut() = Full::from("{"),
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "no AdmissionReview in JSON",
        ),
        (
            "another version",
            |request| {
                let other =
                    json!({ "apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview" });
                *request.body_mut() = full(&other);
            },
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "admissionReviewVersions",
        ),
    ];
    for (name, change, code, reason, words) in rows {
        let mut request = request(full(&review("u")));
        change(&mut request);
        let (status, answer) = harness.ask(request).await;
        assert_eq!(status, code, "{name}");
        assert_eq!(answer["kind"], "Status", "{name}");
        assert_eq!(answer["reason"], reason, "{name}");
        assert_eq!(answer["code"], code.as_u16(), "{name}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{name}: {message}");
    }
    let refused = |reason| {
        harness.metric(&format!(
            "tulle_injector_refused_requests_total{{reason=\"{reason}\"}}"
        ))
    };
    let counted = ["path", "method", "media_type"].map(refused);
    assert_eq!(counted.map(|count| count as u32), [1, 1, 3]);
}

#[tokio::test]
async fn a_json_media_type_may_have_parameters() {
    let harness = Harness::start(BOUNDS).await;
    let mut request = request(full(&review("u")));
    let value = "Application/JSON; charset=utf-8".parse().expect("a value");
    request.headers_mut().insert("content-type", value);
    assert_eq!(harness.ask(request).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_pod_whose_namespace_nobody_knows_is_to_be_tried_again() {
    let harness = Harness::start(BOUNDS).await;
    let mut unknown = review("u");
    let meta = &mut unknown["request"]["object"]["metadata"];
    meta["labels"] = Value::Null;
    let (status, answer) = harness.ask(request(full(&unknown))).await;
    assert_eq!(status, StatusCode::OK);
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 503);
    let message = response["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("try again"), "{message}");
}

/// Whether a pod that says nothing itself is injected, where the watch has told so, or not at all, of its namespace and the
/// API server says that it asks for injection; and how often that was asked.
async fn asked_of(told: Option<Namespace>) -> (bool, f64) {
    let labels = json!({ "tulle.dev/inject": "enabled" });
    let namespace = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": { "name": "shop", "labels": labels },
    });
    let body = Bytes::from(namespace.to_string());
    let client = api_server(move |_| std::future::ready(Response::new(Full::new(body.clone()))));
    let harness = Harness::asking(BOUNDS, Some(client)).await;
    harness.namespaces.learn(told);
    let mut unlabelled = review("u");
    unlabelled["request"]["object"]["metadata"]["labels"] = Value::Null;
    let (status, answer) = harness.ask(request(full(&unlabelled))).await;
    assert_eq!(status, StatusCode::OK);
    let asked = harness.metric("tulle_injector_namespaces_asked_total");
    (answer["response"]["patch"].is_string(), asked)
}

#[tokio::test]
async fn a_namespace_is_asked_for_where_its_watch_may_be_late() {
    let plain = Namespace {
        name: "shop".to_owned(),
        ..Namespace::default()
    };
    for (name, told, asked) in [
        ("nobody knows it", None, 1.0),
        ("its label is new", Some(plain), 1.0),
        ("its label is known", Some(Namespace::enabled("shop")), 0.0),
    ] {
        let (injected, times) = asked_of(told).await;
        assert!(injected, "{name}");
        assert!((times - asked).abs() < 0.1, "{name}: {times}");
    }
}

#[tokio::test]
async fn a_pod_that_only_an_old_watch_would_leave_alone_is_to_be_tried_again_while_nobody_can_say()
{
    let client = api_server(|_| {
        let mut answer = Response::new(Full::new(Bytes::from_static(b"{}")));
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        std::future::ready(answer)
    });
    let harness = Harness::asking(BOUNDS, Some(client)).await;
    harness.namespaces.learn([Namespace {
        name: "shop".to_owned(),
        ..Namespace::default()
    }]);
    let of = |labels: Value| {
        let mut review = review("u");
        review["request"]["object"]["metadata"]["labels"] = labels;
        review
    };
    for (name, labels, code) in [
        ("the namespace decides", Value::Null, Some(503)),
        (
            "its own label decides",
            json!({ "tulle.dev/inject": "disabled" }),
            None,
        ),
        (
            "its own revision decides",
            json!({ "tulle.dev/rev": "other" }),
            None,
        ),
    ] {
        let (status, answer) = harness.ask(request(full(&of(labels)))).await;
        assert_eq!(status, StatusCode::OK);
        let response = &answer["response"];
        assert_eq!(response["allowed"], code.is_none(), "{name}: {response}");
        assert_eq!(
            response["status"]["code"].as_u64(),
            code,
            "{name}: {response}"
        );
        assert!(response["patch"].is_null(), "{name}: {response}");
    }
}

#[tokio::test]
async fn a_client_that_trusts_another_ca_does_not_talk_to_it() {
    let harness = Harness::start(BOUNDS).await;
    let other = issuer();
    let foreign = tulle_identity::Identity::new(svid(&other), other.bundle().clone());
    let error = harness
        .tls(foreign.current().client_by_name(b"h2"))
        .await
        .expect_err("nobody vouches for it");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    // It goes on for others, and counts what went wrong.
    let (status, _) = harness.ask(request(full(&review("u")))).await;
    assert_eq!(status, StatusCode::OK);
    let failed = async {
        while harness.metric("tulle_injector_handshake_failures_total") < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, failed)
        .await
        .expect("counted");
}

/// The time two days on, when the certificate of an hour ago has expired.
#[derive(Debug)]
struct Later;

impl TimeProvider for Later {
    fn current_time(&self) -> Option<UnixTime> {
        let later = SystemTime::now() + Duration::from_secs(2 * 24 * 3600);
        let since = later.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

#[tokio::test]
async fn an_expired_certificate_is_not_taken() {
    let harness = Harness::start(BOUNDS).await;
    let mut config = rustls::ClientConfig::clone(&harness.trusting(b"h2"));
    config.time_provider = std::sync::Arc::new(Later);
    let error = harness.tls(config.into()).await.expect_err("expired");
    assert!(error.to_string().contains("xpired"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_replaced_under_load_and_nothing_fails() {
    let harness = Harness::start(BOUNDS).await;
    let before = harness.identity.current().svid().serial().to_owned();
    let mut standing = harness.h2().await;
    for _ in 0..20 {
        let load = async {
            for _ in 0..3 {
                let (status, _) = harness.ask(request(full(&review("u")))).await;
                assert_eq!(status, StatusCode::OK);
            }
        };
        let rotate = async {
            let fresh = svid(&harness.issuer);
            harness.identity.rotate(fresh).expect("of the same CA");
        };
        let standing = async {
            let answer = standing.send_request(request(full(&review("u")))).await;
            assert_eq!(answer.expect("it stands").status(), StatusCode::OK);
        };
        tokio::join!(load, rotate, standing);
    }
    let now = harness.identity.current().svid().chain()[0].clone();
    assert_ne!(harness.identity.current().svid().serial(), before);
    let tls = harness
        .tls(harness.trusting(b"h2"))
        .await
        .expect("a handshake");
    let shown = tls.get_ref().1.peer_certificates().expect("a certificate");
    assert_eq!(shown[0], now, "the newest is shown");
}

#[tokio::test]
async fn a_root_is_replaced_and_clients_of_the_new_one_are_served() {
    let harness = Harness::start(BOUNDS).await;
    let next = issuer();
    let both = harness.issuer.bundle().with(next.root().cert().clone());
    harness.identity.trust(both.expect("two roots"));
    harness
        .identity
        .rotate(svid(&next))
        .expect("of a root that is trusted");
    let only_new = TrustBundle::new([next.root().cert().clone()]).expect("a root");
    harness.identity.trust(only_new);
    let (status, _) = harness.ask(request(full(&review("u")))).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn asked_to_end_it_answers_what_was_begun_and_takes_no_more() {
    let mut harness = Harness::start(BOUNDS).await;
    let (rest, body) = parts();
    let mut sender = harness.h1().await;
    let mut begun = request(body);
    begun
        .headers_mut()
        .insert("host", "x".parse().expect("a host"));
    let text = review("u").to_string();
    let (head, tail) = text.split_at(20);
    rest.send(Bytes::copy_from_slice(head.as_bytes()))
        .await
        .expect("room");
    let answering = sender.send_request(begun);
    let under_way = async {
        while harness.metric("tulle_injector_requests_in_flight") < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        answer = &mut answering => panic!("{answer:?} before it was asked"),
        () = under_way => {}
    }
    let tail = Bytes::copy_from_slice(tail.as_bytes());
    let address = harness.address;
    let (ended, answer) = tokio::join!(harness.drain(PATIENCE), async {
        // The drain has begun, for it is polled first.
        rest.send(tail).await.expect("room");
        drop(rest);
        answering.await.expect("an answer")
    });
    assert!(ended, "nothing is left");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(
        tokio::net::TcpStream::connect(address).await.is_err(),
        "the port is closed"
    );
}

#[tokio::test]
async fn what_a_pod_of_a_workload_says_in_vain_is_counted_and_told_at_the_workload() {
    let (events, mut written) = tokio::sync::mpsc::channel(8);
    let client = api_server(move |request| {
        let events = events.clone();
        async move {
            let path = request.uri().path().to_owned();
            events.send(path).await.expect("somebody reads");
            let annotations =
                json!({ "tulle.dev/exclude-port": "1", "tulle.dev/access-log": "xml" });
            let template = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [{ "name": "app" }] } });
            let set = json!({
                "metadata": { "name": "db", "uid": "u" },
                "spec": { "template": template, "selector": {}, "serviceName": "db" },
            });
            Response::new(Full::new(Bytes::from(set.to_string())))
        }
    });
    let harness = Harness::asking(BOUNDS, Some(client)).await;
    harness.namespaces.learn([Namespace::enabled("shop")]);
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true }]);
    let mut bad = review("a");
    let meta = &mut bad["request"]["object"]["metadata"];
    meta["annotations"] = json!({ "tulle.dev/exclude-port": "1", "tulle.dev/access-log": "xml" });
    let alone = bad.clone();
    bad["request"]["object"]["metadata"]["ownerReferences"] = owner;
    let mut dry = bad.clone();
    dry["request"]["dryRun"] = json!(true);
    let mut forbidden = review("b");
    forbidden["request"]["object"]["metadata"]["ownerReferences"] = json!([]);
    // Only the last is for a workload: of one by hand its author has read the warnings, and a dry run leaves nothing.
    for body in [&forbidden, &alone, &dry, &bad] {
        let (status, answer) = harness.ask(request(full(body))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    for expected in [
        "/apis/apps/v1/namespaces/shop/statefulsets/db",
        "/api/v1/namespaces/shop/events/tulle-invalid-annotation.u",
    ] {
        let path = tokio::time::timeout(PATIENCE, written.recv()).await;
        let path = path.expect("the API server is asked").expect("by a client");
        assert_eq!(path, expected);
    }
    assert!(written.try_recv().is_err());
    for reason in ["unknown", "value"] {
        let name = format!("tulle_injector_warnings_total{{reason=\"{reason}\"}}");
        assert!((harness.metric(&name) - 3.0).abs() < 0.1, "{reason}");
    }
}
