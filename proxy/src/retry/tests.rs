//! How often a request is tried again, and at whose expense.

use std::time::Duration;

use super::*;
use crate::config::cluster::{CircuitBreaker, Discovery, LbPolicy, OutlierDetection};

fn cluster(min: u32) -> Cluster {
    Cluster {
        name: "c".into(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy: LbPolicy::default(),
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: CircuitBreaker {
            min_retry_concurrency: min,
            ..CircuitBreaker::default()
        },
        outlier: OutlierDetection::default(),
        endpoints: Default::default(),
        state: Arc::default(),
    }
}

const NOW: u64 = 5_000;

#[test]
fn a_limit_without_a_share_counts_retries_at_a_time() {
    let mut cluster = cluster(3);
    cluster.limits.retry_budget_percent = 0;
    let hold = || -> Vec<_> {
        (0..50)
            .map_while(|_| BudgetGuard::new(&cluster, NOW))
            .collect()
    };
    let held = hold();
    assert_eq!(held.len(), 3);
    drop(held);
    assert_eq!(cluster.state.retries.load(Relaxed), 0);
    assert_eq!(hold().len(), 3, "what has ended makes room");
}

#[test]
fn when_everything_fails_retries_are_a_fifth_of_the_requests_however_fast_they_fail() {
    let cluster = cluster(10);
    let mut retries = 0;
    for request in 0..10_000 {
        let now = NOW + request;
        cluster.state.window.note_request(now);
        retries += (0..3)
            .filter_map(|_| BudgetGuard::new(&cluster, now))
            .count();
    }
    assert!((1_900..=2_000).contains(&retries), "{retries}");
    assert_eq!(cluster.state.retries.load(Relaxed), 0);
}

#[test]
fn a_policy_gives_as_many_retries_as_it_says_each_within_its_backoff() {
    let policy = RetryPolicy {
        attempts: 2,
        ..RetryPolicy::default()
    };
    let cluster = cluster(10);
    let mut retries = Retries::new(&policy, &Method::POST);
    for ceiling in [25, 50] {
        let (delay, _guard) = retries.take(&cluster).expect("a retry is left");
        assert!(delay <= Duration::from_millis(ceiling));
    }
    assert!(retries.take(&cluster).is_none());
}

#[test]
fn only_idempotent_requests_are_covered_where_the_app_may_have_acted() {
    let policy = RetryPolicy {
        grpc_codes: vec![14],
        ..RetryPolicy::default()
    };
    let get = Retries::new(&policy, &Method::GET);
    let post = Retries::new(&policy, &Method::POST);
    let none = HeaderMap::new();
    assert!(get.cover_response(StatusCode::BAD_GATEWAY, &none));
    assert!(!get.cover_response(StatusCode::INTERNAL_SERVER_ERROR, &none));
    assert!(!post.cover_response(StatusCode::BAD_GATEWAY, &none));
    assert!(get.cover_timeout() && !post.cover_timeout());
    for error in [UpstreamError::NotSent, UpstreamError::Unprocessed] {
        assert!(get.covers(&error) && post.covers(&error));
    }
    assert!(!get.covers(&UpstreamError::Overflow("requests")));
    let mut unavailable = HeaderMap::new();
    unavailable.insert("grpc-status", 14.into());
    assert!(
        post.cover_response(StatusCode::OK, &unavailable),
        "named gRPC codes are explicit"
    );
    unavailable.insert("grpc-status", 0.into());
    assert!(!post.cover_response(StatusCode::OK, &unavailable));
}
