//! Whether the API server still lets namespaces be followed: a watch that is silent does not say.
//!
//! It is asked for a list of one now and then. Nothing else depends on the answer: while there is none, the injector stays ready.
//! Pods of namespaces that are known to ask for a sidecar get it; others are asked for one by one, and kept out if nobody answers. If
//! all replicas were unready instead, no pod of the mesh could be made at all.

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use tokio::time::Instant;
use tulle_runtime::causes::chain;

use super::Namespaces;

const EVERY: Duration = Duration::from_secs(20);
/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may be away before that is said.
const STALE: Duration = Duration::from_secs(60);

/// Asks again and again. Never ends, unless there is no API server to ask.
pub(crate) async fn beat(namespaces: Arc<Namespaces>) {
    let Some(api) = namespaces.metadata.clone() else {
        return;
    };
    // From its memory: whether it answers is all that matters.
    let params = ListParams::default().limit(1).match_any();
    let stale = &namespaces.metrics.stale;
    let mut answered = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let error = match tokio::time::timeout(ANSWER, api.list(&params)).await {
            Ok(Ok(_)) => {
                answered = Instant::now();
                if stale.set(0) == 1 {
                    tracing::info!("namespaces can be followed again");
                }
                continue;
            }
            Ok(Err(error)) => chain(&error),
            Err(late) => late.to_string(),
        };
        let since = answered.elapsed();
        if since >= STALE && stale.set(1) == 0 {
            tracing::warn!(
                error,
                ?since,
                "namespaces cannot be followed: new pods of those that are not known to ask for a sidecar are kept out unless the \
                 API server says what their namespace asks for"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use bytes::Bytes;
    use http::{Response, StatusCode};
    use http_body_util::Full;
    use serde_json::json;
    use tulle_runtime::tasks::Tasks;

    use super::super::Metrics;
    use super::*;
    use crate::hand_written::api_server;

    const FINE: u8 = 0;
    const REFUSES: u8 = 1;
    const HANGS: u8 = 2;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_when_nobody_has_answered_for_a_minute_and_taken_back() {
        let mood = Arc::new(AtomicU8::new(FINE));
        let shared = mood.clone();
        let client = api_server(move |_| {
            let mood = shared.load(Relaxed);
            async move {
                if mood == HANGS {
                    std::future::pending::<()>().await;
                }
                let list =
                    json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": [] });
                let mut answer = Response::new(Full::new(Bytes::from(list.to_string())));
                if mood == REFUSES {
                    *answer.status_mut() = StatusCode::FORBIDDEN;
                }
                answer
            }
        });
        let namespaces = Namespaces::new(Some(client), Metrics::default());
        let tasks = Tasks::new();
        tasks.spawn_until_cancelled("beat", beat(namespaces.clone()));
        let stale = || namespaces.metrics.stale.get();
        for trouble in [REFUSES, HANGS] {
            tokio::time::sleep(10 * STALE).await;
            assert_eq!(stale(), 0);
            mood.store(trouble, Relaxed);
            tokio::time::sleep(STALE / 2).await;
            assert_eq!(stale(), 0, "it may come back");
            tokio::time::sleep(STALE).await;
            assert_eq!(stale(), 1);
            mood.store(FINE, Relaxed);
            tokio::time::sleep(EVERY + ANSWER).await;
            assert_eq!(stale(), 0);
        }
    }
}
