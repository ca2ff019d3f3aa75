use std::time::Duration;

use super::*;
use crate::config::cluster::{CircuitBreaker, Discovery, LbPolicy, OutlierDetection};

fn cluster(active: u32, min: u32) -> Cluster {
    let cluster = Cluster {
        name: "c".into(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy: LbPolicy::default(),
        connect_timeout: Duration::from_secs(1),
        limits: CircuitBreaker {
            min_retry_concurrency: min,
            ..CircuitBreaker::default()
        },
        outlier: OutlierDetection::default(),
        endpoints: Arc::default(),
        state: Arc::default(),
    };
    cluster.state.active.store(active, Relaxed);
    cluster
}

#[test]
fn retries_stay_within_their_share_of_active_requests() {
    for (active, min, allowed) in [(100, 0, 20), (100, 30, 30), (4, 0, 0), (0, 3, 3)] {
        let cluster = cluster(active, min);
        let held: Vec<_> = (0..50).map_while(|_| BudgetGuard::new(&cluster)).collect();
        assert_eq!(held.len(), allowed, "{active} active, at least {min}");
        drop(held);
        assert_eq!(cluster.state.retries.load(Relaxed), 0);
    }
}

#[test]
fn a_policy_gives_as_many_retries_as_it_says_each_within_its_backoff() {
    let policy = RetryPolicy {
        attempts: 2,
        ..RetryPolicy::default()
    };
    let cluster = cluster(0, 10);
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
