//! What is hashed goes to one endpoint, as long as that one serves.

use std::collections::HashSet;
use std::net::SocketAddr;

use http::Method;
use http_body_util::Full;

use super::harness::*;
use crate::config::Endpoints;
use crate::config::cluster::LbPolicy;
use crate::config::route::{HashOn, HashPolicy, RouteAction};
use crate::conn::HttpVersion::{self, Http1, Http2};

/// A sidecar whose only cluster hashes requests by something, or its route does not say by what.
fn hashing(endpoints: &[SocketAddr], on: Option<HashOn>) -> Sidecar {
    let mut cluster = cluster("c", plain(endpoints));
    cluster.lb_policy = LbPolicy::ConsistentHash;
    cluster.endpoints = Endpoints::with_ring(cluster.endpoints.iter().cloned());
    let mut forward = forward_to("c");
    forward.hash = on
        .map(|on| HashPolicy {
            on,
            terminal: false,
        })
        .into_iter()
        .collect();
    let route = route("/", RouteAction::Forward(forward));
    Sidecar::new(outbound(vec![route], vec![cluster]))
}

async fn three(version: HttpVersion) -> [SocketAddr; 3] {
    [
        echo(version, "a").await,
        echo(version, "b").await,
        echo(version, "c").await,
    ]
}

/// Which apps answer requests of several connections.
async fn answering(sidecar: &Sidecar, version: HttpVersion) -> HashSet<String> {
    let mut apps = HashSet::new();
    for _ in 0..5 {
        let mut client = Client::new(sidecar.client(version), version).await;
        for _ in 0..8 {
            apps.insert(client.get("/").await.header("x-app").to_owned());
        }
    }
    apps
}

#[test]
fn all_requests_of_a_client_go_to_one_endpoint_and_without_a_hash_to_all() {
    run(async {
        for version in [Http1, Http2] {
            let endpoints = three(version).await;
            let sticky = hashing(&endpoints, Some(HashOn::SourceIp));
            assert_eq!(answering(&sticky, version).await.len(), 1, "{version:?}");
            let loose = hashing(&endpoints, None);
            assert_eq!(answering(&loose, version).await.len(), 3, "{version:?}");
        }
    });
}

#[test]
fn requests_of_one_header_value_stay_together_and_values_are_spread() {
    run(async {
        let by_user = HashOn::Header(http::HeaderName::from_static("x-user"));
        let sidecar = hashing(&three(Http1).await, Some(by_user));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let mut apps = HashSet::new();
        for user in 0..32 {
            let mut of_user = HashSet::new();
            for _ in 0..2 {
                let request = client.build(Method::GET, "/").header("x-user", user);
                let request = request.body(Full::default()).unwrap();
                let answer = client.request(request).await.unwrap();
                of_user.insert(answer.header("x-app").to_owned());
            }
            assert_eq!(of_user.len(), 1, "{user}");
            apps.extend(of_user);
        }
        assert_eq!(apps.len(), 3);
    });
}

#[test]
fn a_retry_goes_elsewhere_and_the_next_request_does_too_once_the_endpoint_is_out() {
    run(async {
        let living = echo(Http1, "a").await;
        // Some of the values prefer the dead endpoint.
        let by_user = HashOn::Header(http::HeaderName::from_static("x-user"));
        let sidecar = hashing(&[living, nobody().await], Some(by_user));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for user in 0..32 {
            let request = client.build(Method::POST, "/").header("x-user", user);
            let request = request.body(Full::default()).unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.header("x-app"), "a", "{user}");
        }
        let retried = sidecar.records();
        let retried = retried.iter().filter(|record| record.attempts > 1).count();
        // The third failure in a row takes it out.
        assert!((1..=3).contains(&retried), "{retried}");
    });
}
