//! Connections that a cluster may have are those of all workers together; who waits for one gets it, or an answer.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::harness::*;
use crate::config::{Cluster, Lookup};
use crate::conn::HttpVersion::{self, Http1, Http2};

/// A cluster that may have one connection.
fn single(endpoints: &[SocketAddr]) -> Cluster {
    let mut cluster = cluster("c", plain(endpoints));
    cluster.limits.max_connections = 1;
    // Long enough for nobody to reach it who gets what it waits for.
    cluster.connect_timeout = Duration::from_secs(30);
    cluster
}

/// A worker of a sidecar that has these counters in common with others.
fn worker(cluster: &Cluster) -> Sidecar {
    Sidecar::new(outbound(vec![route_to("c")], vec![cluster.clone()]))
}

async fn get(sidecar: &Sidecar, version: HttpVersion) -> StatusCode {
    let mut client = Client::new(sidecar.client(version), version).await;
    client.get("/").await.status
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_worker_gives_up_an_idle_connection_that_another_one_waits_for() {
    run(async {
        for version in [Http1, Http2] {
            let cluster = single(&[echo(version, "a").await]);
            let (one, other) = (worker(&cluster), worker(&cluster));
            assert_eq!(get(&one, version).await, StatusCode::OK);
            until(|| one.worker.upstream.pooled() == 1).await;
            for _ in 0..3 {
                assert_eq!(get(&other, version).await, StatusCode::OK, "{version:?}");
                assert_eq!(get(&one, version).await, StatusCode::OK, "{version:?}");
            }
            assert_eq!(cluster.state.starved.load(Relaxed), 0);
        }
    });
}

#[test]
fn workers_that_are_always_busy_share_the_only_connection() {
    run(async {
        let cluster = single(&[echo(Http1, "a").await]);
        let workers = [worker(&cluster), worker(&cluster)];
        let clients = workers.iter().flat_map(|worker| {
            (0..3).map(move |_| async move {
                let mut client = Client::new(worker.client(Http1), Http1).await;
                for _ in 0..20 {
                    assert_eq!(client.get("/").await.status, StatusCode::OK);
                }
            })
        });
        futures_util::future::join_all(clients).await;
        assert_eq!(cluster.state.pending.load(Relaxed), 0);
        assert_eq!(cluster.state.starved.load(Relaxed), 0);
    });
}

#[test]
fn all_who_wait_for_an_http2_connection_share_it_once_it_is_there() {
    run(async {
        let slow = app(Http2, |_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Response::new(Full::new(Bytes::new()))
        });
        let cluster = single(&[slow.await]);
        let (one, other) = (worker(&cluster), worker(&cluster));
        let clients = [&one, &other, &one, &other, &one, &other];
        let answers = clients.map(|worker| get(worker, Http2));
        let answers = futures_util::future::join_all(answers).await;
        assert_eq!(answers, [StatusCode::OK; 6]);
    });
}

#[test]
fn who_waits_in_vain_is_told_that_the_limit_is_reached() {
    run(async {
        let hanging = app(Http1, |_| std::future::pending::<Response<Full<Bytes>>>()).await;
        let mut cluster = single(&[hanging]);
        cluster.connect_timeout = Duration::from_millis(50);
        let (one, other) = (worker(&cluster), worker(&cluster));
        let mut hung = Client::new(one.client(Http1), Http1).await;
        let hung = tokio::task::spawn_local(async move { hung.get("/").await.status });
        until(|| cluster.state.connections.load(Relaxed) == 1).await;
        for worker in [&one, &other] {
            let began = Instant::now();
            assert_eq!(get(worker, Http1).await, StatusCode::SERVICE_UNAVAILABLE);
            assert!(began.elapsed() >= Duration::from_millis(50));
            let record = worker.record().await;
            assert_eq!(record.flags.to_string(), "UO");
            assert_eq!(record.attempts, 1, "nothing is gained by trying again");
        }
        assert_eq!(cluster.state.starved.load(Relaxed), 0);
        assert_eq!(cluster.state.pending.load(Relaxed), 0);
        hung.abort();
    });
}

#[test]
fn unknown_destinations_do_not_use_up_what_others_may_have() {
    run(async {
        let known = outbound(vec![], vec![]);
        let sidecar = Sidecar::new(known);
        let unknown = echo(Http1, "a").await;
        sidecar.change(|snapshot| {
            snapshot.outbound.insert(unknown, Lookup::Unknown);
        });
        // As if another destination held all that a cluster may have by default.
        let state = &sidecar.worker.upstream.passthrough().state;
        state.active.store(100_000, Relaxed);
        state.pending.store(10_000, Relaxed);
        state.connections.store(10_000, Relaxed);
        let io = sidecar.connect(sidecar.downstream(unknown), Http1);
        let mut client = Client::new(io, Http1).await;
        assert_eq!(client.get("/").await.header("x-app"), "a");
    });
}
