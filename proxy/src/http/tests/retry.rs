//! What is tried again, what is not, and what it costs.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::config::cluster::{CircuitBreaker, LbPolicy};
use crate::config::route::RouteAction;
use crate::config::{Cluster, Route};
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::telemetry::ResponseFlag;
use crate::upstream::Target;

/// An app that counts its requests and answers them all the same.
async fn status(version: HttpVersion, status: StatusCode, count: Rc<Cell<u32>>) -> SocketAddr {
    app(version, move |_| {
        count.set(count.get() + 1);
        async move {
            let mut response = Response::new(Full::new(Bytes::from_static(b"app")));
            *response.status_mut() = status;
            response
        }
    })
    .await
}

/// An app that reads a request's head and closes without an answer.
async fn closes(count: Rc<Cell<u32>>) -> SocketAddr {
    raw_app(move |mut tcp| {
        let count = count.clone();
        async move {
            read_head(&mut tcp).await;
            count.set(count.get() + 1);
        }
    })
    .await
}

fn with_forward(change: impl FnOnce(&mut crate::config::route::Forward)) -> Route {
    let mut forward = forward_to("c");
    change(&mut forward);
    route("/", RouteAction::Forward(forward))
}

fn sidecar(route: Route, cluster: Cluster) -> Sidecar {
    Sidecar::new(outbound(vec![route], vec![cluster]))
}

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    run(async {
        let endpoints = [nobody().await, echo(Http1, "a").await];
        let sidecar = Sidecar::new(service(&endpoints));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..4 {
            assert_eq!(
                client.send(Method::POST, "/", "x").await.header("x-app"),
                "a"
            );
        }
        let attempts: u32 = sidecar.records().iter().map(|record| record.attempts).sum();
        assert!(attempts > 4, "the dead endpoint was tried: {attempts}");
    });
}

#[test]
fn when_nobody_listens_the_client_gets_503_and_the_reason() {
    run(async {
        let sidecar = Sidecar::new(service(&[nobody().await, nobody().await]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let answer = client.get("/").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body, "connecting to the upstream failed");
        let record = &sidecar.records()[0];
        assert_eq!(record.flags.to_string(), "UF,URX");
        assert_eq!(record.attempts, 3);
    });
}

#[test]
fn a_connection_that_closes_unanswered_is_retried_for_get_and_not_for_post() {
    run(async {
        let count = Rc::new(Cell::new(0));
        let endpoints = [closes(count.clone()).await, echo(Http1, "a").await];
        let sidecar = Sidecar::new(service(&endpoints));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..4 {
            assert_eq!(client.get("/").await.header("x-app"), "a");
        }
        assert!(count.get() > 0);
        let only = Rc::new(Cell::new(0));
        let sidecar = Sidecar::new(service(&[closes(only.clone()).await]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let answer = client.send(Method::POST, "/", "once").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(only.get(), 1, "a POST that was sent is never repeated");
        assert_eq!(sidecar.records()[0].flags.to_string(), "UC");
    });
}

#[test]
fn gateway_errors_are_retried_for_get_and_passed_on_for_post() {
    run(async {
        for (method, expected) in [(Method::GET, 3), (Method::POST, 1)] {
            let count = Rc::new(Cell::new(0));
            let failing = status(Http1, StatusCode::BAD_GATEWAY, count.clone()).await;
            let sidecar = Sidecar::new(service(&[failing]));
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            let answer = client.send(method.clone(), "/", "").await;
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{method}");
            assert_eq!(
                answer.body, "app",
                "{method}: the app's own answer is passed on"
            );
            assert_eq!(count.get(), expected, "{method}");
        }
    });
}

#[test]
fn responses_that_were_retried_cost_no_connection() {
    // Such a response is read to its end only if that comes soon.
    run_still(async {
        for version in [Http1, Http2] {
            let failing = status(version, StatusCode::BAD_GATEWAY, Rc::default()).await;
            let route = with_forward(|forward| {
                forward.retry.attempts = 1;
                forward.retry.backoff_max = Duration::ZERO;
            });
            let mut cluster = cluster("c", plain(&[failing]));
            cluster.limits.retry_budget_percent = 200;
            let sidecar = sidecar(route, cluster);
            let mut client = Client::new(sidecar.client(version), version).await;
            for _ in 0..1_100 {
                assert_eq!(client.get("/").await.status, StatusCode::BAD_GATEWAY);
            }
            let flags: std::collections::HashSet<_> = sidecar
                .records()
                .iter()
                .map(|record| record.flags.to_string())
                .collect();
            assert_eq!(flags, ["URX".to_owned()].into(), "{version:?}");
            assert_eq!(sidecar.worker.upstream.pooled(), 1, "{version:?}");
        }
    });
}

#[test]
fn the_budget_bounds_retries() {
    run(async {
        let count = Rc::new(Cell::new(0));
        let failing = status(Http1, StatusCode::BAD_GATEWAY, count.clone()).await;
        let mut cluster = cluster("c", plain(&[failing]));
        cluster.limits = CircuitBreaker {
            min_retry_concurrency: 0,
            ..CircuitBreaker::default()
        };
        let failing = sidecar(route_to("c"), cluster);
        let mut client = Client::new(failing.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(count.get(), 1);
        // What no app got is not at its expense.
        let mut cluster =
            super::harness::cluster("c", plain(&[nobody().await, echo(Http1, "a").await]));
        cluster.limits.min_retry_concurrency = 0;
        let refusing = sidecar(route_to("c"), cluster);
        let mut client = Client::new(refusing.client(Http1), Http1).await;
        for _ in 0..4 {
            assert_eq!(client.get("/").await.header("x-app"), "a");
        }
    });
}

/// Sends GETs, so many at a time, and says how many had another answer than 200.
async fn failures(sidecar: &Sidecar, at_a_time: usize, each: usize) -> usize {
    let clients = (0..at_a_time).map(|_| {
        let io = sidecar.client(Http1);
        tokio::task::spawn_local(async move {
            let mut client = Client::new(io, Http1).await;
            let mut failed = 0;
            for _ in 0..each {
                failed += usize::from(client.get("/").await.status != StatusCode::OK);
            }
            failed
        })
    });
    let mut failed = 0;
    for client in clients.collect::<Vec<_>>() {
        failed += client.await.unwrap();
    }
    failed
}

#[test]
fn one_failing_endpoint_of_three_fails_no_request() {
    run(async {
        for policy in [LbPolicy::LeastRequest, LbPolicy::RoundRobin] {
            let slow = || {
                app(Http1, |_| async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Response::new(Full::default())
                })
            };
            let count = Rc::new(Cell::new(0));
            let failing = status(Http1, StatusCode::SERVICE_UNAVAILABLE, count.clone()).await;
            let endpoints = plain(&[failing, slow().await, slow().await]);
            let mut cluster = cluster("c", endpoints);
            cluster.lb_policy = policy;
            let state = cluster.state.clone();
            let sidecar = sidecar(route_to("c"), cluster);
            assert_eq!(failures(&sidecar, 100, 10).await, 0, "{policy:?}");
            assert!(count.get() > 0, "{policy:?}");
            assert_eq!(state.active.load(Relaxed), 0, "{policy:?}");
        }
    });
}

#[test]
fn row_48_where_all_endpoints_fail_retries_add_a_fifth_at_most() {
    run(async {
        let count = Rc::new(Cell::new(0));
        let failing = [
            status(Http1, StatusCode::SERVICE_UNAVAILABLE, count.clone()).await,
            status(Http1, StatusCode::SERVICE_UNAVAILABLE, count.clone()).await,
        ];
        let route = with_forward(|forward| forward.retry.attempts = 3);
        let sidecar = sidecar(route, cluster("c", plain(&failing)));
        assert_eq!(failures(&sidecar, 50, 20).await, 1_000);
        assert!((1_050..=1_200).contains(&count.get()), "{}", count.get());
    });
}

#[test]
fn a_body_within_the_cap_is_replayed_and_a_longer_one_is_not_nor_any_while_memory_is_short() {
    run(async {
        for (cap, memory, expected) in [
            (16, 79, StatusCode::OK),
            (2, 79, StatusCode::SERVICE_UNAVAILABLE),
            (16, 80, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let endpoints = [closes(Rc::default()).await, echo(Http1, "a").await];
            let route = with_forward(|forward| forward.retry.max_replay_bytes = cap);
            let sidecar = sidecar(route, cluster("c", plain(&endpoints)));
            sidecar.worker.overload.use_memory(memory);
            // Round robin begins with the first endpoint by address; find the one that closes.
            let closing_first = endpoints[0] < endpoints[1];
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            if !closing_first {
                client.get("/").await;
            }
            let answer = client.send(Method::PUT, "/", "a body").await;
            assert_eq!(answer.status, expected, "cap {cap}, memory {memory}");
            if expected == StatusCode::OK {
                assert_eq!(answer.body, "a body");
            }
        }
    });
}

#[test]
fn a_request_that_takes_too_long_is_504() {
    run(async {
        let silent = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            std::future::pending::<()>().await;
        })
        .await;
        let route = with_forward(|forward| forward.timeout = Some(Duration::from_millis(30)));
        let sidecar = sidecar(route, cluster("c", plain(&[silent])));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.status, StatusCode::GATEWAY_TIMEOUT);
        assert!(
            sidecar.records()[0]
                .flags
                .contains(ResponseFlag::UpstreamRequestTimeout)
        );
        assert_eq!(
            sidecar.worker.upstream.pooled(),
            0,
            "the connection went with the attempt"
        );
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_tried_elsewhere_if_idempotent() {
    run(async {
        let silent = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            std::future::pending::<()>().await;
        })
        .await;
        let endpoints = [silent, echo(Http1, "a").await];
        let route =
            with_forward(|forward| forward.per_try_timeout = Some(Duration::from_millis(50)));
        let sidecar = sidecar(route, cluster("c", plain(&endpoints)));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..2 {
            assert_eq!(client.get("/").await.header("x-app"), "a");
        }
        let posts = [
            client.send(Method::POST, "/", "x").await,
            client.send(Method::POST, "/", "x").await,
        ];
        let late = posts
            .iter()
            .filter(|answer| answer.status == StatusCode::GATEWAY_TIMEOUT)
            .count();
        assert_eq!(
            late, 1,
            "the POST that the silent endpoint got is not repeated"
        );
    });
}

#[test]
fn an_endpoint_that_swallows_connections_is_ejected_though_attempts_end_before_connecting_does() {
    run(async {
        for version in [Http1, Http2] {
            let ca = Ca::new();
            let silent = raw_app(|tcp| async move {
                let _tcp = tcp;
                std::future::pending::<()>().await;
            });
            let endpoints = meshed(&[silent.await, nobody().await], "reviews");
            let mut cluster = cluster("c", endpoints);
            cluster.lb_policy = LbPolicy::RoundRobin;
            cluster.connect_timeout = Duration::from_secs(60);
            let endpoints = cluster.endpoints.clone();
            let route =
                with_forward(|forward| forward.per_try_timeout = Some(Duration::from_millis(20)));
            let snapshot = outbound(vec![route], vec![cluster]);
            let sidecar = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(sidecar.client(version), version).await;
            for _ in 0..3 {
                assert!(client.get("/").await.status.is_server_error());
            }
            for endpoint in endpoints.iter() {
                let failures = endpoint.state.consecutive_failures.load(Relaxed);
                assert!(failures >= 3, "{version:?}: {failures}");
            }
        }
    });
}

#[test]
fn an_abandoned_connection_counts_as_failed_only_if_its_time_was_up() {
    run(async {
        let ca = Ca::new();
        let silent = raw_app(|tcp| async move {
            let _tcp = tcp;
            std::future::pending::<()>().await;
        });
        let mut cluster = cluster("c", meshed(&[silent.await], "reviews"));
        cluster.connect_timeout = Duration::from_secs(60);
        let endpoint = cluster.endpoints[0].clone();
        let mut target = Target::endpoint(cluster.into(), endpoint.clone());
        let sidecar = Sidecar::with_identity(outbound(vec![], vec![]), ca.identity("client"));
        let worker = &sidecar.worker;
        let now = tokio::time::Instant::now();
        let later = now + Duration::from_secs(60);
        for (ends, failures) in [(None, 0), (Some(later), 0), (Some(now), 1)] {
            target.ends = ends;
            let leased = worker.upstream.lease(worker, &target, Http1, false);
            let abandoned = tokio::time::timeout(Duration::from_millis(20), leased).await;
            assert!(abandoned.is_err());
            let counted = endpoint.state.consecutive_failures.load(Relaxed);
            assert_eq!(counted, failures, "{ends:?}");
        }
    });
}

#[test]
fn a_response_that_takes_too_long_is_cut() {
    run(async {
        let slow = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                .await
                .unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let route = with_forward(|forward| forward.timeout = Some(Duration::from_millis(50)));
        let sidecar = sidecar(route, cluster("c", plain(&[slow])));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let request = client
            .build(Method::GET, "/")
            .body(Full::default())
            .unwrap();
        assert!(client.request(request).await.is_err());
        assert!(
            sidecar.records()[0]
                .flags
                .contains(ResponseFlag::UpstreamRequestTimeout)
        );
    });
}

/// An HTTP/2 app whose first connection refuses its first stream in a given way.
async fn refuses(how: Refusal, count: Rc<Cell<u32>>) -> SocketAddr {
    raw_app(move |tcp| {
        let count = count.clone();
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                count.set(count.get() + 1);
                match how {
                    Refusal::Reset(reason) if count.get() == 1 => respond.send_reset(reason),
                    Refusal::GoAway if count.get() == 1 => {
                        connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                    }
                    _ => {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                }
            }
        }
    })
    .await
}

#[derive(Clone, Copy, Debug)]
enum Refusal {
    Reset(h2::Reason),
    GoAway,
}

#[test]
fn a_refused_stream_is_retried_whatever_the_method_and_a_reset_one_is_not() {
    run(async {
        let rows = [
            (
                Refusal::Reset(h2::Reason::REFUSED_STREAM),
                Method::POST,
                StatusCode::OK,
            ),
            (
                Refusal::Reset(h2::Reason::INTERNAL_ERROR),
                Method::POST,
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            (
                Refusal::Reset(h2::Reason::INTERNAL_ERROR),
                Method::GET,
                StatusCode::OK,
            ),
            (Refusal::GoAway, Method::GET, StatusCode::OK),
        ];
        for (how, method, expected) in rows {
            let count = Rc::new(Cell::new(0));
            let sidecar = Sidecar::new(service(&[refuses(how, count.clone()).await]));
            let mut client = Client::new(sidecar.client(Http2), Http2).await;
            let answer = client.send(method.clone(), "/", "").await;
            assert_eq!(answer.status, expected, "{how:?} {method}");
        }
    });
}

#[test]
fn a_peer_that_cannot_reach_its_app_makes_any_method_go_elsewhere() {
    run(async {
        for version in [Http1, Http2] {
            let ca = Ca::new();
            let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let dead = server.listen(nobody().await).await;
            let alive = server.listen(echo(version, "a").await).await;
            let endpoints = meshed(&[dead, alive], "reviews");
            let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let sidecar = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(sidecar.client(version), version).await;
            for _ in 0..4 {
                let answer = client.send(Method::POST, "/", "x").await;
                assert_eq!(
                    (answer.status, answer.header("x-app")),
                    (StatusCode::OK, "a"),
                    "{version:?}"
                );
                assert_eq!(answer.header("x-tulle-unprocessed"), "");
            }
            let attempts: u32 = sidecar.records().iter().map(|record| record.attempts).sum();
            assert!(
                attempts > 4,
                "{version:?}: the dead app was tried: {attempts}"
            );
        }
    });
}

#[test]
fn a_mark_from_outside_the_mesh_is_not_believed() {
    run(async {
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        let liar = app(Http1, move |_| {
            counted.set(counted.get() + 1);
            async {
                let response = Response::builder()
                    .status(503)
                    .header("x-tulle-unprocessed", "1");
                response.body(Full::default()).unwrap()
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[liar]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let answer = client.send(Method::POST, "/", "x").await;
        assert_eq!(
            (answer.status, count.get()),
            (StatusCode::SERVICE_UNAVAILABLE, 1)
        );
        assert_eq!(
            answer.header("x-tulle-unprocessed"),
            "",
            "the mark never reaches the app"
        );
    });
}

#[test]
fn a_pooled_connection_that_its_peer_closed_costs_no_post() {
    run(async {
        let closing = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
            // Keep-alive was promised, and broken.
        })
        .await;
        let sidecar = Sidecar::new(service(&[closing]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..20 {
            assert_eq!(
                client.send(Method::POST, "/", "").await.status,
                StatusCode::OK
            );
        }
    });
}

#[test]
fn limits_answer_503_overflow() {
    run(async {
        let waiting = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            let _ = tcp.read_u8().await;
        })
        .await;
        let none = CircuitBreaker {
            max_requests: 1,
            ..CircuitBreaker::default()
        };
        let pending = CircuitBreaker {
            max_connections: 1,
            max_pending_requests: 1,
            ..CircuitBreaker::default()
        };
        for (limits, waiters) in [(none, 1), (pending, 2)] {
            let mut cluster = cluster("c", plain(&[waiting]));
            cluster.limits = limits;
            let state = cluster.state.clone();
            let sidecar = sidecar(route_to("c"), cluster);
            for waiting in 1..=waiters {
                let mut client = Client::new(sidecar.client(Http1), Http1).await;
                tokio::task::spawn_local(async move { client.get("/").await });
                let connected = || state.connections.load(Relaxed) == 1;
                let waits = || state.pending.load(Relaxed) == waiting - 1;
                while !(state.active.load(Relaxed) == waiting && connected() && waits()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            assert_eq!(
                client.get("/").await.status,
                StatusCode::SERVICE_UNAVAILABLE
            );
            assert!(
                sidecar.records()[0]
                    .flags
                    .contains(ResponseFlag::UpstreamOverflow)
            );
        }
    });
}
