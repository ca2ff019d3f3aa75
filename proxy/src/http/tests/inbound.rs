//! Requests for the app of this pod, alone and through both sidecars.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::harness::*;
use crate::config::route::RouteAction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::Security;
use crate::telemetry::ResponseFlag;

/// A client's sidecar in front of a server's.
pub(super) async fn pair(app: SocketAddr) -> (Sidecar, Sidecar) {
    let ca = Ca::new();
    let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
    let endpoints = meshed(&[server.listen(app).await], "reviews");
    let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
    (
        Sidecar::with_identity(snapshot, ca.identity("client")),
        server,
    )
}

pub(super) fn mesh_peer() -> Security {
    Security::Mtls {
        peer: id("client"),
        sidecar: true,
    }
}

#[test]
fn requests_pass_both_sidecars_over_mtls() {
    run(async {
        for version in [Http1, Http2] {
            let (client, server) = pair(echo(version, "a").await).await;
            let mut sender = Client::new(client.client(version), version).await;
            for _ in 0..3 {
                let posted = sender.send(Method::POST, "/x", "a body").await;
                assert_eq!(
                    (posted.status, &posted.body[..]),
                    (StatusCode::OK, &b"a body"[..])
                );
                let peer = "By=spiffe://cluster.local/ns/shop/sa/reviews;URI=spiffe://cluster.local/ns/shop/sa/client";
                assert_eq!(posted.header("got-x-forwarded-client-cert"), peer);
                assert_eq!(posted.header("got-x-forwarded-for"), "127.0.0.1");
                assert_eq!(posted.header("got-x-request-id").len(), 36);
            }
            assert_eq!(
                client.worker.upstream.pooled(),
                1,
                "one connection served all"
            );
            assert_eq!((client.records().len(), server.records().len()), (3, 3));
        }
    });
}

#[test]
fn a_peer_with_another_identity_gets_nothing() {
    run(async {
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("impostor"));
        let endpoints = meshed(&[server.listen(echo(Http1, "a").await).await], "reviews");
        let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
        let client = Sidecar::with_identity(snapshot, ca.identity("client"));
        let mut sender = Client::new(client.client(Http1), Http1).await;
        let answer = sender.get("/").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body, "the TLS handshake with the upstream failed");
        assert!(server.records().is_empty());
    });
}

#[test]
fn the_app_sees_provenance_that_its_callers_cannot_forge() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let app = echo(Http1, "a").await;
        let rows = [
            ("plaintext", Security::Plaintext, "10.1.0.9", false, ""),
            (
                "mesh",
                mesh_peer(),
                "6.6.6.6,10.1.0.9",
                true,
                "URI=spiffe://cluster.local/ns/shop/sa/client",
            ),
        ];
        for (name, security, forwarded_for, keeps_id, cert) in rows {
            let mut client = Client::new(sidecar.caller(app, security, Http1), Http1).await;
            let request = client
                .build(Method::GET, "/")
                .header("x-forwarded-for", "6.6.6.6")
                .header("x-forwarded-client-cert", "URI=spiffe://forged")
                .header("x-request-id", "mine")
                .header(
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                )
                .body(Full::default())
                .unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(
                answer.header("got-x-forwarded-for"),
                forwarded_for,
                "{name}"
            );
            assert_eq!(
                answer.header("got-x-request-id") == "mine",
                keeps_id,
                "{name}"
            );
            assert!(
                answer.header("got-x-forwarded-client-cert").ends_with(cert),
                "{name}"
            );
            assert_eq!(
                answer.header("got-x-forwarded-client-cert").is_empty(),
                cert.is_empty(),
                "{name}"
            );
            assert!(
                answer.header("got-traceparent").starts_with("00-0af7"),
                "{name}"
            );
        }
    });
}

#[test]
fn strict_refuses_the_next_plaintext_request_of_a_live_connection() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let app = echo(Http2, "a").await;
        let mut plain = Client::new(sidecar.caller(app, Security::Plaintext, Http2), Http2).await;
        let mut mesh = Client::new(sidecar.caller(app, mesh_peer(), Http2), Http2).await;
        assert_eq!(plain.get("/").await.status, StatusCode::OK);
        sidecar.change(|snapshot| snapshot.inbound = inbound(false).inbound);
        assert_eq!(plain.get("/").await.status, StatusCode::FORBIDDEN);
        assert_eq!(mesh.get("/").await.status, StatusCode::OK);
        assert!(
            sidecar.records()[1]
                .flags
                .contains(ResponseFlag::Unauthorized)
        );
    });
}

#[test]
fn an_app_cannot_claim_that_it_never_got_a_request() {
    run(async {
        let liar = app(Http1, |_| async {
            let response = Response::builder()
                .status(503)
                .header("x-tulle-unprocessed", "1");
            response.body(Full::default()).unwrap()
        })
        .await;
        let sidecar = Sidecar::new(inbound(true));
        let mut client = Client::new(sidecar.caller(liar, mesh_peer(), Http1), Http1).await;
        let answer = client.send(Method::POST, "/", "x").await;
        assert_eq!(
            (answer.status, answer.header("x-tulle-unprocessed")),
            (StatusCode::SERVICE_UNAVAILABLE, "")
        );
    });
}

#[test]
fn only_mesh_peers_are_told_that_the_app_never_got_it() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        for (security, mark) in [(mesh_peer(), "1"), (Security::Plaintext, "")] {
            let io = sidecar.caller(nobody().await, security, Http1);
            let mut client = Client::new(io, Http1).await;
            let answer = client.send(Method::POST, "/", "body").await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(answer.header("x-tulle-unprocessed"), mark);
            assert_eq!(answer.header("x-tulle-failed-hop"), "destination");
        }
    });
}

#[test]
fn a_websocket_passes_both_sidecars() {
    run(async {
        let app = raw_app(|mut tcp| async move {
            let head = read_head(&mut tcp).await.to_lowercase();
            assert!(head.contains("connection: upgrade\r\n"), "{head}");
            assert!(head.contains("upgrade: websocket\r\n"), "{head}");
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nhello";
            tcp.write_all(switch).await.unwrap();
            let mut echoed = [0; 4];
            tcp.read_exact(&mut echoed).await.unwrap();
            tcp.write_all(&echoed).await.unwrap();
        })
        .await;
        let (client, _server) = pair(app).await;
        let mut io = client.client(Http1);
        io.write_all(b"GET /chat HTTP/1.1\r\nhost: reviews\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        let head = read_head(&mut io).await.to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("upgrade: websocket"), "{head}");
        io.write_all(b"ping").await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"helloping");
        drop(io);
        assert_eq!(
            client.record().await.status,
            StatusCode::SWITCHING_PROTOCOLS
        );
    });
}

#[test]
fn trailers_pass_both_sidecars_both_ways() {
    run(async {
        let app = raw_app(|tcp| async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    assert_eq!(request.headers()["te"], "trailers");
                    let mut body = request.into_body();
                    while let Some(data) = body.data().await {
                        let size = data.unwrap().len();
                        body.flow_control().release_capacity(size).unwrap();
                    }
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream
                        .send_data(Bytes::from_static(b"message"), false)
                        .unwrap();
                    let mut answer = HeaderMap::new();
                    answer.insert("grpc-status", "0".parse().unwrap());
                    answer.insert("x-got", trailers["x-sum"].clone());
                    stream.send_trailers(answer).unwrap();
                });
            }
        })
        .await;
        let (client, _server) = pair(app).await;
        let io = client.client(Http2);
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = http::Request::post("http://reviews/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        stream
            .send_data(Bytes::from_static(b"message"), false)
            .unwrap();
        stream
            .send_trailers(HeaderMap::from_iter([(
                "x-sum".parse().unwrap(),
                "7".parse().unwrap(),
            )]))
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "message");
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-got"]),
            (&"0".parse().unwrap(), &"7".parse().unwrap())
        );
        assert_eq!(client.records()[0].grpc_status, Some(0));
    });
}

#[test]
fn an_upload_streams_through_both_sidecars_with_bounded_memory() {
    run(async {
        let app = app(Http2, |request| async {
            let length = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .len();
            Response::new(Full::new(length.to_string().into()))
        })
        .await;
        let (client, _server) = pair(app).await;
        let mut sender = Client::new(client.client(Http2), Http2).await;
        let body = Full::new(Bytes::from(vec![7; 3_000_000]));
        let request = sender.build(Method::POST, "/").body(body).unwrap();
        assert_eq!(sender.request(request).await.unwrap().body, "3000000");
        assert_eq!(client.records()[0].bytes_received, 3_000_000);
    });
}

#[test]
fn both_ends_of_a_grpc_stream_talk_in_turn_through_both_sidecars() {
    run(async {
        let app = raw_app(|tcp| async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        stream.send_data(data, false).unwrap();
                    }
                    stream.send_trailers(HeaderMap::new()).unwrap();
                });
            }
        })
        .await;
        let (client, server) = pair(app).await;
        let (mut sender, connection) = h2::client::handshake(client.client(Http2)).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = http::Request::post("http://reviews/pkg.Service/Chat")
            .body(())
            .unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        let mut body = response.await.unwrap().into_body();
        for n in 0..20_u8 {
            stream.send_data(Bytes::from(vec![n; 100]), false).unwrap();
            let echoed = body.data().await.unwrap().unwrap();
            assert_eq!(echoed, vec![n; 100]);
            body.flow_control().release_capacity(echoed.len()).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        let record = client.record().await;
        assert_eq!((record.bytes_received, record.bytes_sent), (2_000, 2_000));
        assert!(server.record().await.flags.is_empty());
    });
}

#[test]
fn a_request_that_a_peer_has_given_up_ends_at_the_app_too() {
    const PATIENCE: Duration = Duration::from_millis(50);
    run_still(async {
        let (begun, ended) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let seen = (begun.clone(), ended.clone());
        let app = raw_app(move |mut tcp| {
            let (begun, ended) = seen.clone();
            async move {
                read_head(&mut tcp).await;
                begun.notify_one();
                if matches!(tcp.read(&mut [0; 1]).await, Ok(0) | Err(_)) {
                    ended.notify_one();
                }
            }
        })
        .await;
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
        let mut forward = forward_to("c");
        forward.timeout = Some(PATIENCE);
        let endpoints = meshed(&[server.listen(app).await], "reviews");
        let routes = vec![route("/", RouteAction::Forward(forward))];
        let snapshot = outbound(routes, vec![cluster("c", endpoints)]);
        let client = Sidecar::with_identity(snapshot, ca.identity("client"));
        let mut sender = Client::new(client.client(Http1), Http1).await;
        let late = async {
            begun.notified().await;
            tokio::time::advance(PATIENCE * 2).await;
        };
        let (answer, ()) = tokio::join!(sender.get("/"), late);
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
        ended.notified().await;
        let records = server.records();
        let record = &records[0];
        assert_eq!(
            (record.flags.to_string(), record.status.as_u16()),
            ("DC".to_owned(), 499)
        );
    });
}

#[test]
fn a_stream_that_the_app_ends_early_ends_everywhere_and_costs_no_connection() {
    run(async {
        let app = raw_app(|tcp| async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                respond
                    .send_response(Response::builder().status(413).body(()).unwrap(), true)
                    .unwrap();
            }
        })
        .await;
        let (client, _server) = pair(app).await;
        let (mut sender, connection) = h2::client::handshake(client.client(Http2)).await.unwrap();
        tokio::task::spawn_local(connection);
        for _ in 0..5 {
            let request = http::Request::post("http://reviews/").body(()).unwrap();
            let (response, _stream) = sender.send_request(request, false).unwrap();
            assert_eq!(
                response.await.unwrap().status(),
                StatusCode::PAYLOAD_TOO_LARGE
            );
        }
        assert_eq!(client.worker.upstream.pooled(), 1);
        let endpoint = &client.worker.config.load().clusters["c"].endpoints[0].clone();
        assert_eq!(
            endpoint
                .state
                .active
                .load(std::sync::atomic::Ordering::Relaxed),
            0
        );
    });
}

#[test]
fn row_33_a_connection_that_was_made_with_another_certificate_of_ours_is_not_used() {
    run(async {
        for version in [Http1, Http2] {
            let ca = Ca::new();
            let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let endpoints = meshed(&[server.listen(echo(version, "a").await).await], "reviews");
            let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let identity = ca.identity("client");
            let client = Sidecar::with_identity(snapshot, identity.clone());
            let mut sender = Client::new(client.client(version), version).await;
            for expected in [1, 1] {
                assert_eq!(sender.get("/").await.status, StatusCode::OK);
                assert_eq!(client.worker.upstream.pooled(), expected);
            }
            // It cannot become another account's, so nothing changes ...
            identity.rotate(ca.svid("other")).unwrap_err();
            assert_eq!(sender.get("/").await.status, StatusCode::OK);
            assert_eq!(client.worker.upstream.pooled(), 1);
            // ... and what was replaced is shown to nobody again.
            identity.rotate(ca.svid("client")).unwrap();
            assert_eq!(sender.get("/").await.status, StatusCode::OK);
            assert_eq!(
                client.worker.upstream.pooled(),
                2,
                "{version:?}: the old one ends when it is looked at"
            );
        }
    });
}

#[test]
fn row_33_a_pooled_connection_is_never_used_for_another_identity() {
    run(async {
        for version in [Http1, Http2] {
            let ca = Ca::new();
            let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let address = server.listen(echo(version, "a").await).await;
            let reach = |identity: &str| {
                let endpoints = meshed(&[address], identity);
                outbound(vec![route_to("c")], vec![cluster("c", endpoints)])
            };
            let client = Sidecar::with_identity(reach("reviews"), ca.identity("client"));
            let mut sender = Client::new(client.client(version), version).await;
            assert_eq!(sender.get("/").await.status, StatusCode::OK);
            assert_eq!(client.worker.upstream.pooled(), 1);
            // The address is another service account's now: what stands there has not proven to be that.
            client.change(|snapshot| {
                let generation = snapshot.generation + 1;
                *snapshot = reach("ratings");
                snapshot.generation = generation;
            });
            let refused = sender.get("/").await;
            assert_eq!(
                refused.status,
                StatusCode::SERVICE_UNAVAILABLE,
                "{version:?}"
            );
            assert_eq!(client.worker.upstream.pooled(), 0, "{version:?}");
            client.change(|snapshot| {
                let generation = snapshot.generation + 1;
                *snapshot = reach("reviews");
                snapshot.generation = generation;
            });
            assert_eq!(sender.get("/").await.status, StatusCode::OK, "{version:?}");
        }
    });
}

#[test]
fn row_33_two_clusters_that_expect_different_identities_at_one_address_share_nothing() {
    run(async {
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
        let address = server.listen(echo(Http1, "a").await).await;
        let routes = vec![
            route("/right", RouteAction::Forward(forward_to("right"))),
            route("/wrong", RouteAction::Forward(forward_to("wrong"))),
        ];
        let clusters = vec![
            cluster("right", meshed(&[address], "reviews")),
            cluster("wrong", meshed(&[address], "ratings")),
        ];
        let client = Sidecar::with_identity(outbound(routes, clusters), ca.identity("client"));
        let mut sender = Client::new(client.client(Http1), Http1).await;
        for (path, status) in [
            ("/right", StatusCode::OK),
            ("/wrong", StatusCode::SERVICE_UNAVAILABLE),
            ("/right", StatusCode::OK),
            ("/wrong", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            assert_eq!(sender.get(path).await.status, status, "{path}");
        }
        assert_eq!(client.worker.upstream.pooled(), 1);
    });
}
