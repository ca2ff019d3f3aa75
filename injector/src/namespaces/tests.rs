//! Asking for a namespace that the watch has not told of.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::*;
use crate::hand_written::{Answer, api_server};

fn answer(code: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = code;
    answer
}

/// Namespaces of an API server that answers every question so.
fn asking(code: StatusCode, body: Value) -> Arc<Namespaces> {
    let client = api_server(move |_| std::future::ready(answer(code, &body)));
    Namespaces::new(Some(client), Metrics::default())
}

fn status(code: StatusCode, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "no", "code": code.as_u16() })
}

#[tokio::test]
async fn one_that_is_there_has_the_labels_that_decide() {
    let labels = json!({ "tulle.dev/inject": "enabled", "team": "shop" });
    let body = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": { "name": "shop", "labels": labels },
    });
    let namespaces = asking(StatusCode::OK, body);
    let found = namespaces.ask("shop").await;
    assert_eq!(found, Asked::Found(Namespace::enabled("shop")));
    assert!(namespaces.known("shop").is_none(), "the watch will tell");
    assert_eq!(namespaces.metrics.asked.get(), 1);
    assert_eq!(namespaces.metrics.ask_errors.get(), 0);
}

#[tokio::test]
async fn one_that_is_not_there_is_no_error_and_what_is_refused_is() {
    for (code, reason, errors) in [
        (StatusCode::NOT_FOUND, "NotFound", 0),
        (StatusCode::FORBIDDEN, "Forbidden", 1),
        (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", 1),
        (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", 1),
    ] {
        let namespaces = asking(code, status(code, reason));
        let said = match errors {
            0 => Asked::Absent,
            _ => Asked::Unanswered,
        };
        assert_eq!(namespaces.ask("shop").await, said, "{code}");
        assert_eq!(namespaces.metrics.ask_errors.get(), errors, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_waited_for_no_longer_than_a_second() {
    let client = api_server(|_| std::future::pending());
    let namespaces = Namespaces::new(Some(client), Metrics::default());
    let begun = tokio::time::Instant::now();
    assert_eq!(namespaces.ask("shop").await, Asked::Unanswered);
    assert_eq!(begun.elapsed(), ASK);
    assert_eq!(namespaces.metrics.ask_errors.get(), 1);
}
