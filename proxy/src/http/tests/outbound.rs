//! Requests of the app on their way out.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::harness::*;
use crate::config::Lookup;
use crate::config::cluster::Health;
use crate::config::route::{HeaderChanges, PathRewrite, Redirect, RouteAction};
use crate::conn::HttpVersion::{Http1, Http2};
use crate::telemetry::ResponseFlag;

#[test]
fn get_and_post_reach_the_endpoint_over_both_versions() {
    run(async {
        for version in [Http1, Http2] {
            let sidecar = Sidecar::new(service(&[echo(version, "a").await]));
            let mut client = Client::new(sidecar.client(version), version).await;
            let got = client.get("/path?q=1").await;
            assert_eq!(
                (got.status, got.header("x-app")),
                (StatusCode::OK, "a"),
                "{version:?}"
            );
            assert!(got.header("x-target").ends_with("/path?q=1"), "{version:?}");
            let posted = client.send(Method::POST, "/", "a body").await;
            assert_eq!(
                (&posted.body[..], posted.header("x-method")),
                (&b"a body"[..], "POST")
            );
            let records = sidecar.records();
            assert_eq!(records.len(), 2);
            assert_eq!((records[1].bytes_received, records[1].bytes_sent), (6, 6));
            assert!(records.iter().all(|record| record.flags.is_empty()));
        }
    });
}

#[test]
fn a_request_that_no_route_matches_is_404() {
    run(async {
        let sidecar = Sidecar::new(outbound(vec![], vec![]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let answer = client.get("/").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.header("x-tulle-failed-hop"), "source");
        assert_eq!(answer.body, "no route matches the request");
        assert!(sidecar.records()[0].flags.contains(ResponseFlag::NoRoute));
    });
}

#[test]
fn a_service_without_endpoints_is_503() {
    run(async {
        let sidecar = Sidecar::new(service(&[]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(
            client.get("/").await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert!(
            sidecar.records()[0]
                .flags
                .contains(ResponseFlag::NoHealthyUpstream)
        );
    });
}

#[test]
fn a_cluster_that_does_not_exist_answers_its_share_as_the_route_says() {
    run(async {
        let mut forward = forward_to("c");
        let mut missing = forward.clusters[0].clone();
        missing.name = "missing".into();
        forward.clusters.push(missing);
        forward.total_weight = 2;
        forward.cluster_not_found = StatusCode::INTERNAL_SERVER_ERROR;
        let mut route = route_to("c");
        route.action = RouteAction::Forward(forward);
        let endpoints = plain(&[echo(Http1, "a").await]);
        let sidecar = Sidecar::new(outbound(vec![route], vec![cluster("c", endpoints)]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let mut seen = BTreeSet::new();
        for _ in 0..64 {
            seen.insert(client.get("/").await.status.as_u16());
        }
        assert_eq!(seen, BTreeSet::from([200, 500]));
    });
}

#[test]
fn a_grpc_call_that_fails_here_gets_a_grpc_status() {
    run(async {
        let sidecar = Sidecar::new(service(&[]));
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let request = client.build(Method::POST, "/pkg.Service/Method");
        let request = request.header("content-type", "application/grpc");
        let answer = client
            .request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (StatusCode::OK, "14")
        );
        assert!(answer.header("grpc-message").contains("no endpoint"));
        assert!(answer.body.is_empty() && answer.trailers.is_none());
        assert_eq!(sidecar.records()[0].grpc_status, Some(14));
    });
}

#[test]
fn requests_of_one_connection_are_balanced_over_endpoints() {
    run(async {
        for version in [Http1, Http2] {
            let endpoints = [echo(version, "a").await, echo(version, "b").await];
            let sidecar = Sidecar::new(service(&endpoints));
            let mut client = Client::new(sidecar.client(version), version).await;
            let mut seen = Vec::new();
            for _ in 0..4 {
                seen.push(client.get("/").await.header("x-app").to_owned());
            }
            seen.sort();
            assert_eq!(seen, ["a", "a", "b", "b"], "{version:?}");
        }
    });
}

#[test]
fn routes_redirect_answer_and_rewrite() {
    run(async {
        let redirect = Redirect {
            scheme: None,
            host: Some("elsewhere".into()),
            port: None,
            path: None,
            status: StatusCode::MOVED_PERMANENTLY,
        };
        let mut rewritten = forward_to("c");
        rewritten.path_rewrite = Some(PathRewrite::Prefix("/new".into()));
        rewritten.host_rewrite = Some(HeaderValue::from_static("other"));
        let mut rewritten = route("/old", RouteAction::Forward(rewritten));
        let header = |name, value| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        rewritten.request_headers = HeaderChanges {
            set: vec![header("x-set", "yes")],
            ..Default::default()
        };
        rewritten.response_headers = HeaderChanges {
            add: vec![header("x-added", "yes")],
            ..Default::default()
        };
        let routes = vec![
            route("/away", RouteAction::Redirect(redirect)),
            route(
                "/broken",
                RouteAction::Respond(StatusCode::INTERNAL_SERVER_ERROR),
            ),
            rewritten,
        ];
        let endpoints = plain(&[echo(Http1, "a").await]);
        let sidecar = Sidecar::new(outbound(routes, vec![cluster("c", endpoints)]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let away = client.get("/away?x").await;
        assert_eq!(
            (away.status.as_u16(), away.header("location")),
            (301, "http://elsewhere/away?x")
        );
        assert_eq!(
            client.get("/broken").await.status,
            StatusCode::INTERNAL_SERVER_ERROR
        );
        let answer = client.get("/old/path?x").await;
        assert_eq!(answer.header("x-target"), "/new/path?x");
        assert_eq!(
            (answer.header("got-host"), answer.header("got-x-set")),
            ("other", "yes")
        );
        assert_eq!(answer.header("x-added"), "yes");
    });
}

#[test]
fn an_unknown_destination_is_passed_through() {
    run(async {
        let app = echo(Http1, "a").await;
        let mut snapshot = outbound(vec![], vec![]);
        snapshot.outbound.insert(SERVICE.into(), Lookup::Unknown);
        let sidecar = Sidecar::new(snapshot);
        let downstream = sidecar.downstream(app);
        sidecar.change(|snapshot| {
            snapshot.outbound.insert(app, Lookup::Unknown);
        });
        let mut client = Client::new(sidecar.connect(downstream, Http1), Http1).await;
        assert_eq!(client.get("/").await.header("x-app"), "a");
        // It becomes known: the next request follows.
        sidecar.change(|snapshot| {
            let known = snapshot_of(app);
            snapshot.outbound.insert(app, known);
        });
        assert_eq!(client.get("/").await.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn an_early_answer_ends_the_exchange_and_its_connection() {
    run(async {
        let early = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
                .await
                .unwrap();
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
        })
        .await;
        let sidecar = Sidecar::new(service(&[early]));
        let mut io = sidecar.client(Http1);
        io.write_all(b"POST / HTTP/1.1\r\nhost: r\r\ncontent-length: 100\r\n\r\npart")
            .await
            .unwrap();
        let head = read_head(&mut io).await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
        assert_eq!(
            (io.read_u8().await.unwrap(), io.read_u8().await.unwrap()),
            (b'n', b'o')
        );
        assert_eq!(sidecar.worker.upstream.pooled(), 0);
    });
}

#[test]
fn a_response_that_the_upstream_cuts_is_not_made_whole() {
    run(async {
        let cut = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                .await
                .unwrap();
        })
        .await;
        let sidecar = Sidecar::new(service(&[cut]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let request = client
            .build(Method::GET, "/")
            .body(Full::default())
            .unwrap();
        assert!(client.request(request).await.is_err());
        assert_eq!(sidecar.records()[0].flags.to_string(), "UC");
    });
}

#[test]
fn a_client_that_resets_its_stream_cancels_upstream_and_is_recorded() {
    run(async {
        let gone = Rc::new(Cell::new(false));
        let seen = gone.clone();
        let waiting = raw_app(move |tcp| {
            let seen = seen.clone();
            async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
                tokio::select! {
                    _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {}
                    _ = connection.accept() => {}
                }
                seen.set(true);
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[waiting]));
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let request = client
            .build(Method::GET, "/")
            .body(Full::default())
            .unwrap();
        let left = tokio::time::timeout(Duration::from_millis(50), client.request(request)).await;
        assert!(left.is_err());
        let record = sidecar.record().await;
        assert_eq!(
            (record.flags.to_string(), record.status.as_u16()),
            ("DC".to_owned(), 499)
        );
        while !gone.get() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(
            sidecar.worker.upstream.pooled(),
            1,
            "the connection itself is still good"
        );
    });
}

#[test]
fn connections_to_removed_and_draining_endpoints_are_closed() {
    run(async {
        let address = echo(Http1, "a").await;
        let sidecar = Sidecar::new(service(&[address]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        client.get("/").await;
        assert_eq!(sidecar.worker.upstream.pooled(), 1);
        sidecar.change(|snapshot| {
            let mut cluster = cluster("c", plain(&[address]));
            let mut draining = (*cluster.endpoints[0]).clone();
            draining.health = Health::Draining;
            cluster.endpoints = [std::sync::Arc::new(draining)].into();
            snapshot
                .clusters
                .insert("c".into(), std::sync::Arc::new(cluster));
        });
        sidecar.worker.upstream.sync(&sidecar.worker.config.load());
        assert_eq!(sidecar.worker.upstream.pooled(), 0);
        assert_eq!(
            client.get("/").await.status,
            StatusCode::OK,
            "it is still used if nothing else is there"
        );
        sidecar.change(|snapshot| {
            snapshot
                .clusters
                .insert("c".into(), std::sync::Arc::new(cluster("c", vec![])));
        });
        assert_eq!(
            client.get("/").await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(sidecar.worker.upstream.pooled(), 0);
    });
}

#[test]
fn many_streams_share_one_upstream_connection() {
    run(async {
        let app = app(Http2, |_| async {
            tokio::task::yield_now().await;
            Response::new(Full::new(Bytes::from_static(b"x")))
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let client = Client::new(sidecar.client(Http2), Http2).await;
        let Client::Http2(sender) = client else {
            unreachable!()
        };
        let streams = (0..50).map(|_| {
            let mut client = Client::Http2(sender.clone());
            async move { client.get("/").await.status }
        });
        let answers = futures_util::future::join_all(streams).await;
        assert!(answers.iter().all(|status| *status == StatusCode::OK));
        assert_eq!(sidecar.worker.upstream.pooled(), 1);
    });
}

#[test]
fn a_request_waits_for_the_only_connection_that_its_cluster_may_have() {
    run(async {
        let endpoints = [echo(Http1, "a").await, echo(Http1, "b").await];
        let mut cluster = cluster("c", plain(&endpoints));
        cluster.limits.max_connections = 1;
        let state = cluster.state.clone();
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let clients = (0..8).map(|_| async {
            let mut client = Client::new(sidecar.client(Http1), Http1).await;
            client.get("/").await.status
        });
        let answers = futures_util::future::join_all(clients).await;
        assert!(
            answers.iter().all(|status| *status == StatusCode::OK),
            "{answers:?}"
        );
        assert_eq!(state.pending.load(std::sync::atomic::Ordering::Relaxed), 0);
    });
}

#[test]
fn a_new_snapshot_closes_idle_connections_without_a_request() {
    run(async {
        let closed = Rc::new(Cell::new(false));
        let seen = closed.clone();
        let app = raw_app(move |mut tcp| {
            let seen = seen.clone();
            async move {
                read_head(&mut tcp).await;
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
                let _ = tcp.read_u8().await;
                seen.set(true);
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.status, StatusCode::OK);
        sidecar.change(|snapshot| {
            snapshot
                .clusters
                .insert("c".into(), std::sync::Arc::new(cluster("c", vec![])));
        });
        while !closed.get() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_connection_that_is_in_use_while_the_pools_are_tidied_up_is_used_again() {
    run(async {
        let connections = Rc::new(Cell::new(0));
        let counted = connections.clone();
        let (asked, answering) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (told, may) = (asked.clone(), answering.clone());
        let app = raw_app(move |mut tcp| {
            counted.set(counted.get() + 1);
            let (told, may) = (told.clone(), may.clone());
            async move {
                while !read_head(&mut tcp).await.is_empty() {
                    told.notify_one();
                    may.notified().await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    tcp.write_all(answer).await.unwrap();
                }
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let tidying = async {
            asked.notified().await;
            // Every new snapshot has them tidied up.
            sidecar.change(|snapshot| snapshot.generation += 1);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            answering.notify_one();
        };
        let (answer, ()) = tokio::join!(client.get("/"), tidying);
        assert_eq!(answer.status, StatusCode::OK);
        answering.notify_one();
        assert_eq!(client.get("/").await.status, StatusCode::OK);
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn a_request_whose_client_has_left_is_given_up_upstream() {
    run(async {
        let (left, mut has_left) = tokio::sync::mpsc::unbounded_channel();
        let app = raw_app(move |mut tcp| {
            let left = left.clone();
            async move {
                read_head(&mut tcp).await;
                left.send("asked").unwrap();
                assert_eq!(tcp.read(&mut [0; 1]).await.unwrap_or(0), 0);
                left.send("left").unwrap();
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        for head in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ] {
            let mut client = sidecar.client(Http1);
            client.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(has_left.recv().await, Some("asked"));
            drop(client);
            assert_eq!(has_left.recv().await, Some("left"), "{head}");
            let record = sidecar.record().await;
            assert!(
                record
                    .flags
                    .contains(ResponseFlag::DownstreamConnectionTermination)
            );
        }
    });
}
