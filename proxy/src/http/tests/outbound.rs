//! Requests of the app on their way out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
fn hop_by_hop_headers_stay_on_their_hop() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let request = client
            .build(Method::GET, "/")
            .header("connection", "keep-alive, x-private")
            .header("x-private", "1")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("upgrade", "h2c")
            .header("te", "gzip")
            .header("x-kept", "1");
        let answer = client
            .request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        for gone in [
            "connection",
            "x-private",
            "keep-alive",
            "proxy-connection",
            "upgrade",
        ] {
            assert_eq!(answer.header(&format!("got-{gone}")), "", "{gone}");
        }
        assert_eq!(answer.header("got-te"), "trailers");
        assert_eq!(
            (answer.header("got-x-kept"), answer.header("got-host")),
            ("1", "reviews")
        );
    });
}

#[test]
fn http1_messages_keep_their_shape() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            loop {
                let head = read_head(&mut tcp).await;
                let answer: &[u8] = match head.split(' ').nth(1) {
                    Some("/length") => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody",
                    Some("/chunked") => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n4\r\nbody\r\n0\r\nx-t: 1\r\n\r\n",
                    Some("/head") => b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
                    Some("/empty") => b"HTTP/1.1 204 No Content\r\n\r\n",
                    Some("/unchanged") => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: \"x\"\r\n\r\n",
                    Some("/early") => b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 Fine\r\ncontent-length: 0\r\n\r\n",
                    Some("/close") => {
                        tcp.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await.unwrap();
                        return;
                    }
                    _ => return,
                };
                tcp.write_all(answer).await.unwrap();
            }
        })
        .await;
        let sidecar = Sidecar::new(service(&[app]));
        let rows = [
            (
                "GET /length",
                "",
                "HTTP/1.1 200 OK",
                "content-length: 4",
                "\r\n\r\nbody",
            ),
            (
                "GET /chunked",
                "te: trailers\r\n",
                "HTTP/1.1 200 OK",
                "transfer-encoding: chunked",
                "4\r\nbody\r\n0\r\nx-t: 1\r\n\r\n",
            ),
            (
                "GET /chunked",
                "",
                "HTTP/1.1 200 OK",
                "transfer-encoding: chunked",
                "4\r\nbody\r\n0\r\n\r\n",
            ),
            (
                "HEAD /head",
                "",
                "HTTP/1.1 200 OK",
                "content-length: 1234",
                "\r\n\r\n",
            ),
            (
                "GET /empty",
                "",
                "HTTP/1.1 204 No Content",
                "date:",
                "\r\n\r\n",
            ),
            (
                "GET /unchanged",
                "",
                "HTTP/1.1 304 Not Modified",
                "etag: \"x\"",
                "\r\n\r\n",
            ),
            (
                "GET /early",
                "",
                "HTTP/1.1 200 Fine",
                "content-length: 0",
                "\r\n\r\n",
            ),
            (
                "GET /close",
                "",
                "HTTP/1.1 200 OK",
                "transfer-encoding: chunked",
                "until the end\r\n0\r\n\r\n",
            ),
        ];
        for (request, header, status, has, ends) in rows {
            let request =
                format!("{request} HTTP/1.1\r\nhost: reviews\r\n{header}connection: close\r\n\r\n");
            let answer = raw(sidecar.client(Http1), &request).await;
            assert!(answer.starts_with(status), "{request}\n{answer}");
            assert!(answer.contains(has), "{request}\n{answer}");
            assert!(answer.ends_with(ends), "{request}\n{answer}");
        }
        let old = raw(
            sidecar.client(Http1),
            "GET /chunked HTTP/1.0\r\nhost: reviews\r\n\r\n",
        )
        .await;
        assert!(
            old.ends_with("\r\n\r\nbody") && !old.contains("chunked"),
            "{old}"
        );
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let requests = "POST /1 HTTP/1.1\r\nhost: r\r\ncontent-length: 3\r\n\r\none\
                        GET /2 HTTP/1.1\r\nhost: r\r\n\r\n\
                        POST /3 HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nthree\r\n0\r\n\r\n";
        let answers = raw(sidecar.client(Http1), requests).await;
        let targets: Vec<_> = answers
            .matches("x-target: /")
            .zip(answers.split("x-target: /").skip(1))
            .map(|(_, rest)| &rest[..1])
            .collect();
        assert_eq!(targets, ["1", "2", "3"]);
        assert!(
            answers.contains("\r\n\r\none") && answers.ends_with("three"),
            "{answers}"
        );
        assert_eq!(sidecar.worker.upstream.pooled(), 1);
    });
}

#[test]
fn a_get_with_a_body_keeps_it() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        for framing in [
            "content-length: 4\r\n\r\nbody",
            "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        ] {
            let request = format!("GET / HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{framing}");
            let answer = raw(sidecar.client(Http1), &request).await;
            assert!(answer.ends_with("\r\n\r\nbody"), "{answer}");
        }
    });
}

#[test]
fn a_client_is_told_to_continue_only_when_somebody_takes_the_body() {
    run(async {
        let head = "POST / HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let mut io = sidecar.client(Http1);
        io.write_all(head.as_bytes()).await.unwrap();
        assert!(read_head(&mut io).await.starts_with("HTTP/1.1 100"));
        io.write_all(b"body").await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && !answer.contains("got-expect"),
            "{answer}"
        );
        let sidecar = Sidecar::new(service(&[nobody().await]));
        let answer = raw(sidecar.client(Http1), head).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    });
}

#[test]
fn connect_and_contradictory_hosts_are_refused() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let refused = raw(
            sidecar.client(Http1),
            "CONNECT r:80 HTTP/1.1\r\nhost: r\r\n\r\n",
        )
        .await;
        assert!(
            refused.starts_with("HTTP/1.1 405") && refused.contains("connection: close"),
            "{refused}"
        );
        let absolute = "GET http://other/p HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n";
        let answer = raw(sidecar.client(Http1), absolute).await;
        assert!(
            answer.contains("got-host: other") && answer.contains("x-target: /p\r\n"),
            "{answer}"
        );
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let request = client.build(Method::GET, "/").header("host", "another");
        let answer = client
            .request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
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
fn a_request_of_http_1_0_without_host_gets_one() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let answer = raw(sidecar.client(Http1), "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains("got-host: 10.96.0.1:80\r\n"), "{answer}");
    });
}
