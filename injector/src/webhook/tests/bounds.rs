//! What is too much, too large, too slow.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tulle_runtime::names::INJECTOR_DNS_NAME;

use super::super::Bounds;
use super::harness::{BOUNDS, Harness, PATIENCE, full, parts, read, request, review};
use crate::MAX_REVIEW;

/// So long do clients have that take too long.
const SHORT: Duration = Duration::from_millis(50);

fn code(answer: &serde_json::Value) -> (&str, u64) {
    let reason = answer["reason"].as_str().unwrap_or_default();
    (reason, answer["code"].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn a_review_that_is_too_large_is_refused_by_its_announcement() {
    let harness = Harness::start(BOUNDS).await;
    let mut sender = harness.h1().await;
    let (_rest, body) = parts();
    let mut announced = request(body);
    let headers = announced.headers_mut();
    headers.insert("host", "x".parse().expect("a host"));
    headers.insert("content-length", (MAX_REVIEW + 1).into());
    // Nothing of it is ever sent.
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(announced)).await;
    let (status, answer) = read(answer.expect("in time").expect("an answer")).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(code(&answer), ("RequestEntityTooLarge", 413));
    let name = r#"tulle_injector_reviews_total{verdict="malformed",reason="size"}"#;
    assert!((harness.metric(name) - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_review_that_turns_out_too_large_is_read_no_further() {
    let harness = Harness::start(BOUNDS).await;
    let mut sender = harness.h2().await;
    let (rest, body) = parts();
    let answering = sender.send_request(request(body));
    let sending = async {
        let piece = Bytes::from(vec![b' '; 256 << 10]);
        // For ever, if it were read.
        while rest.send(piece.clone()).await.is_ok() {}
    };
    let answered = async { tokio::join!(answering, sending).0 };
    let answer = tokio::time::timeout(PATIENCE, answered).await;
    let answer = answer.expect("in time").expect("an answer");
    let (status, answer) = read(answer).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(code(&answer), ("RequestEntityTooLarge", 413));
}

#[tokio::test]
async fn the_largest_review_is_read() {
    let harness = Harness::start(BOUNDS).await;
    let mut text = review("u").to_string();
    text.extend(std::iter::repeat_n(' ', MAX_REVIEW - text.len()));
    let (status, answer) = harness.ask(request(Full::from(text))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["response"]["allowed"], true);
}

#[tokio::test]
async fn a_body_that_does_not_end_in_time_is_given_up() {
    let bounds = Bounds {
        receive: SHORT,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut sender = harness.h2().await;
    let (rest, body) = parts();
    rest.send(Bytes::from("{")).await.expect("room");
    let answer = sender.send_request(request(body)).await.expect("an answer");
    let (status, answer) = read(answer).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(code(&answer), ("Timeout", 408));
    let slow = harness.metric(r#"tulle_injector_refused_requests_total{reason="slow"}"#);
    assert!((slow - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn who_says_nothing_or_never_ends_a_head_is_closed() {
    let bounds = Bounds {
        receive: SHORT,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut silent = harness.tcp().await;
    let mut halting = harness
        .tls(harness.trusting(b"http/1.1"))
        .await
        .expect("a handshake");
    halting
        .write_all(b"POST /inject HTTP/1.1\r\nhost: ")
        .await
        .expect("sent");
    let closed = async {
        let mut rest = Vec::new();
        // Reset or ended, either is an end.
        let _ = silent.read_to_end(&mut rest).await;
        let _ = halting.read_to_end(&mut rest).await;
    };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("both are closed");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let harness = Harness::start(BOUNDS).await;
    let mut large = request(full(&review("u")));
    large
        .headers_mut()
        .insert("x", "x".repeat(32 << 10).parse().expect("a value"));
    let mut sender = harness.h2().await;
    let status = sender
        .send_request(large)
        .await
        .map(|answer| answer.status());
    assert_eq!(
        status.ok(),
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    );
    assert_eq!(
        harness.ask(request(full(&review("u")))).await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn more_requests_than_there_is_room_for_are_told_to_come_again() {
    // One address has half of them.
    let bounds = Bounds {
        requests: 2,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut sender = harness.h2().await;
    let (rest, body) = parts();
    let held = sender.clone().send_request(request(body));
    let mut held = std::pin::pin!(held);
    let (_, other) = parts();
    let refused = tokio::select! {
        answer = &mut held => panic!("{answer:?} before it was asked"),
        refused = sender.send_request(request(other)) => refused.expect("an answer"),
    };
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, answer) = read(refused).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(code(&answer), ("TooManyRequests", 429));
    // The one that is under way is served.
    rest.send(Bytes::from(review("u").to_string()))
        .await
        .expect("room");
    drop(rest);
    assert_eq!(held.await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn bodies_have_no_more_room_than_there_is() {
    let bounds = Bounds {
        bytes: 2 * (64 << 10),
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut large = review("u");
    large["request"]["object"]["metadata"]["annotations"] = json!({ "x": "x".repeat(128 << 10) });
    let (status, answer) = harness.ask(request(full(&large))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(code(&answer), ("TooManyRequests", 429));
    assert_eq!(
        harness.ask(request(full(&review("u")))).await.0,
        StatusCode::OK,
        "its room is free again"
    );
}

/// A client that takes nothing of what it is answered.
async fn taking_nothing(harness: &Harness) -> SendRequest<Full<Bytes>> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    harness.h2_by(builder).await
}

#[tokio::test]
async fn an_answer_that_is_not_taken_has_the_room_of_its_request() {
    // One address has half of them.
    let bounds = Bounds {
        requests: 2,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut sender = taking_nothing(&harness).await;
    let untaken = sender.send_request(request(full(&review("u")))).await;
    let untaken = untaken.expect("an answer");
    assert_eq!(untaken.status(), StatusCode::OK);
    let (status, answer) = harness.ask(request(full(&review("u")))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(code(&answer), ("TooManyRequests", 429));
    // Whoever does not want it has taken it.
    drop(untaken);
    let free =
        async { while harness.ask(request(full(&review("u")))).await.0 != StatusCode::OK {} };
    let free = tokio::time::timeout(PATIENCE, free);
    free.await.expect("its room is free again");
}

#[tokio::test]
async fn a_connection_whose_answers_are_not_taken_in_time_is_closed() {
    let bounds = Bounds {
        receive: 10 * SHORT,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut sender = taking_nothing(&harness).await;
    let untaken = sender.send_request(request(full(&review("u")))).await;
    let untaken = untaken.expect("an answer");
    let closed = async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let closed = tokio::time::timeout(PATIENCE, closed).await;
    closed.expect("it is closed");
    drop(untaken);
    let given_up = harness.metric("tulle_injector_connections_given_up_total");
    assert!((given_up - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn whose_turn_does_not_come_is_told_that_there_is_too_much_to_do() {
    let bounds = Bounds {
        reviews: 0,
        turn: SHORT,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let (status, answer) = harness.ask(request(full(&review("u")))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code(&answer), ("ServiceUnavailable", 503));
}

#[tokio::test]
async fn whoever_waits_less_is_told_before_it_has_given_up() {
    let bounds = Bounds {
        reviews: 0,
        turn: Duration::MAX,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let waits = Duration::from_millis(500);
    let mut request = request(full(&review("u")));
    let uri = format!(
        "https://{INJECTOR_DNS_NAME}/inject?x=y&timeout={}ms",
        waits.as_millis()
    );
    *request.uri_mut() = uri.parse().expect("a URI");
    let answer = tokio::time::timeout(PATIENCE, harness.ask(request));
    let (status, _) = answer
        .await
        .expect("long before anybody else would be told");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn idle_connections_make_room_for_one_more() {
    let bounds = Bounds {
        connections: 2,
        ..BOUNDS
    };
    let harness = Harness::start(bounds).await;
    let mut oldest = harness.h2::<Full<Bytes>>().await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut sender = harness.h2().await;
        let answer = sender.send_request(request(full(&review("u")))).await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        kept.push(sender);
    }
    let closed = async {
        while oldest.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("it is closed");
    for mut sender in kept {
        let answer = sender.send_request(request(full(&review("u")))).await;
        assert_eq!(answer.expect("it stands").status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_is_the_end_of_that_connection_alone() {
    let harness = Harness::start(BOUNDS).await;
    let mut garbage = harness.tcp().await;
    garbage
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("sent");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, garbage.read_to_end(&mut rest)).await;
    drop(ended.expect("in time"));
    assert_eq!(
        harness.ask(request(full(&review("u")))).await.0,
        StatusCode::OK
    );
}
