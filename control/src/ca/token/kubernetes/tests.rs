//! What is made of the answers of a hand-written API server, and of none.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::super::CachedReview;
use super::super::tests::{Issuer, jsonwebtoken_now};
use super::*;
use crate::platform::hand_written_api_server::{ApiServer, Fault};

fn status() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["tulle-ca"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["uid-1"],
            },
        },
    })
}

fn server() -> ApiServer {
    let server = ApiServer::default();
    server.reviewer(|_| status());
    server
}

fn review(server: &ApiServer) -> KubernetesReview {
    KubernetesReview::new(server.client(), "tulle-ca")
}

fn token() -> String {
    Issuer::new().token("shop", "web", "web-1", "uid-1")
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_token_names_its_pod_and_its_own_end() {
    let server = ApiServer::default();
    server.reviewer(|spec| {
        assert_eq!(spec["audiences"], json!(["tulle-ca"]));
        assert!(
            spec["token"]
                .as_str()
                .is_some_and(|token| token.contains('.'))
        );
        status()
    });
    let caller = review(&server).review(&token()).await.expect("confirmed");
    let named = [
        &caller.namespace,
        &caller.service_account,
        &caller.pod,
        &caller.pod_uid,
    ];
    assert_eq!(named, ["shop", "web", "web-1", "uid-1"]);
    let ends = caller
        .expires
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let left = ends.as_secs() - jsonwebtoken_now();
    assert!((3590..=3600).contains(&left), "{left}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_pods_token_for_us_is_refused() {
    let pod_name = "/user/extra/authentication.kubernetes.io~1pod-name";
    let pod_uid = "/user/extra/authentication.kubernetes.io~1pod-uid";
    let table = [
        ("as it should be", "", Value::Null, true),
        ("not known", "/authenticated", json!(false), false),
        ("no verdict", "/authenticated", Value::Null, false),
        ("for somebody else", "/audiences", json!(["api"]), false),
        ("no audience", "/audiences", Value::Null, false),
        ("a person", "/user/username", json!("admin"), false),
        ("a node", "/user/username", json!("system:node:a"), false),
        (
            "no account",
            "/user/username",
            json!("system:serviceaccount:shop:"),
            false,
        ),
        (
            "no namespace",
            "/user/username",
            json!("system:serviceaccount::web"),
            false,
        ),
        (
            "four parts",
            "/user/username",
            json!("system:serviceaccount:shop:web:x"),
            false,
        ),
        ("no pod", pod_name, json!([]), false),
        ("two pods", pod_name, json!(["a", "b"]), false),
        ("an empty name", pod_name, json!([""]), false),
        ("no uid", pod_uid, json!([]), false),
        ("nothing about a pod", "/user/extra", Value::Null, false),
    ];
    for (name, field, value, good) in table {
        let server = ApiServer::default();
        server.reviewer(move |_| {
            let mut status = status();
            if let Some(it) = status.pointer_mut(field).filter(|_| !field.is_empty()) {
                *it = value.clone();
            }
            status
        });
        match review(&server).review(&token()).await {
            Ok(_) => assert!(good, "{name} was believed"),
            Err(TokenError::Refused(reason)) => assert!(!good, "{name}: {reason}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reason_does_not_tell_the_token() {
    let server = ApiServer::default();
    server.reviewer(|spec| {
        let token = spec["token"].as_str().unwrap_or_default();
        json!({ "error": format!("[{token} is no good, {}]", "x".repeat(10_000)) })
    });
    let token = token();
    let error = review(&server)
        .review(&token)
        .await
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("is no good") && !error.contains(&token),
        "{error}"
    );
    assert!(error.len() < 500, "{error}");
}

#[tokio::test(start_paused = true)]
async fn row_38_an_outage_admits_nobody_and_is_told_within_the_time_that_a_request_has() {
    for fault in [
        Fault::Hangs,
        Fault::Answers(429),
        Fault::Answers(500),
        Fault::Breaks,
    ] {
        let server = server();
        for _ in 0..1000 {
            server.fault("tokenreviews", fault);
        }
        let began = Instant::now();
        let error = review(&server)
            .review(&token())
            .await
            .expect_err("an outage");
        assert!(
            matches!(error, TokenError::Unavailable(_)),
            "{fault:?}: {error}"
        );
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "{fault:?}: {took:?}");
        assert!(
            server.calls("tokenreviews") > 1,
            "{fault:?}: asked once only"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_waited_out() {
    for fault in [
        Fault::Hangs,
        Fault::Answers(429),
        Fault::Answers(503),
        Fault::Breaks,
    ] {
        let server = server();
        server.fault("tokenreviews", fault);
        let caller = review(&server).review(&token()).await;
        assert!(caller.is_ok(), "{fault:?}: {caller:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_ask_lets_nobody_in() {
    let server = server();
    server.fault("tokenreviews", Fault::Answers(403));
    let error = review(&server)
        .review(&token())
        .await
        .expect_err("we may not ask");
    assert!(matches!(error, TokenError::Unavailable(_)), "{error}");
    assert_eq!(
        server.calls("tokenreviews"),
        1,
        "asking again does not help"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_many_bring_at_once_is_asked_about_once() {
    let server = server();
    let review = review(&server);
    let token = token();
    let verdicts = join_all((0..50).map(|_| review.review(&token))).await;
    assert!(verdicts.iter().all(Result::is_ok));
    assert_eq!(server.calls("tokenreviews"), 1);
    review.review(&token).await.expect("confirmed");
    assert_eq!(server.calls("tokenreviews"), 2, "a review is no cache");
    assert!(review.flights.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_good_verdict_counts_for_less_than_ten_seconds_and_a_bad_one_not_at_all() {
    let server = server();
    let cached = CachedReview::new(Arc::new(review(&server)));
    let token = token();
    cached.review(&token).await.expect("confirmed");
    server.reviewer(|_| json!({ "authenticated": false, "error": "its pod is gone" }));
    tokio::time::advance(Duration::from_secs(8)).await;
    cached.review(&token).await.expect("believed for a while");
    tokio::time::advance(Duration::from_millis(1900)).await;
    cached.review(&token).await.expect_err("its pod is gone");
    server.reviewer(|_| status());
    cached
        .review(&token)
        .await
        .expect("nothing bad is remembered");
}

#[tokio::test(start_paused = true)]
async fn so_many_are_asked_about_at_a_time_and_the_others_have_their_turn() {
    let server = ApiServer::default();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    server.reviewer(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        status()
    });
    // The first do not get an answer.
    for _ in 0..AT_ONCE {
        server.fault("tokenreviews", Fault::Hangs);
    }
    let review = review(&server);
    let issuer = Issuer::new();
    let tokens: Vec<_> = (0..AT_ONCE * 2)
        .map(|number| issuer.token("shop", "web", "web-1", &number.to_string()))
        .collect();
    let reviews = join_all(tokens.iter().map(|token| review.review(token)));
    let early = tokio::time::timeout(CALL / 2, reviews).await;
    assert!(early.is_err());
    assert_eq!(
        answered.load(Ordering::Relaxed),
        0,
        "the others wait for their turn"
    );
    let verdicts = join_all(tokens.iter().map(|token| review.review(token))).await;
    assert!(verdicts.iter().all(Result::is_ok));
}
