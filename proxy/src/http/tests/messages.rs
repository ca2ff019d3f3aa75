//! What a message looks like after it has passed: framing, hop-by-hop headers, odd clients.

use http::{Method, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::config::route::{PathRewrite, RouteAction};
use crate::conn::Direction;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::telemetry::Limit;

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
            "te",
        ] {
            assert_eq!(answer.header(&format!("got-{gone}")), "", "{gone}");
        }
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
                    Some("/both") => b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
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
                "GET /both",
                "",
                "HTTP/1.1 200 OK",
                "transfer-encoding: chunked",
                "\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
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
            refused.starts_with("HTTP/1.1 501") && refused.contains("connection: close"),
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
fn a_request_of_http_1_0_without_host_gets_one() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let answer = raw(sidecar.client(Http1), "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains("got-host: 10.96.0.1:80\r\n"), "{answer}");
    });
}

#[test]
fn messages_that_two_readers_could_read_differently_are_refused() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let smuggled = [
            "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "host: another\r\n\r\n",
            "no colon\r\n\r\n",
            "x: \0\r\n\r\n",
        ];
        for rest in smuggled {
            let request = format!("POST / HTTP/1.1\r\nhost: r\r\n{rest}");
            let answer = raw(sidecar.client(Http1), &request).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{request}\n{answer}");
        }
        assert!(sidecar.records().is_empty(), "no app ever sees them");
        let malformed = || {
            let connections = &sidecar.worker.connections;
            connections.refused(Direction::Outbound, "malformed_http")
        };
        // The last one is counted once its connection has lingered.
        while malformed() < smuggled.len() as u64 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let answer = raw(sidecar.client(Http1), "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert_eq!(malformed(), smuggled.len() as u64);
    });
}

#[test]
fn an_upgrade_that_the_app_declines_leaves_an_ordinary_connection() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let requests = "GET /1 HTTP/1.1\r\nhost: r\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\
                        GET /2 HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n";
        let answers = raw(sidecar.client(Http1), requests).await;
        assert!(
            answers.contains("x-target: /1") && answers.contains("x-target: /2"),
            "{answers}"
        );
    });
}

#[test]
fn a_head_that_does_not_end_is_answered_and_counted() {
    run_paused(async {
        let sidecar = Sidecar::new(service(&[]));
        let begun = tokio::time::Instant::now();
        let answer = raw(sidecar.client(Http1), "GET / HTTP/1.1\r\nhost: a\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert_eq!(begun.elapsed(), std::time::Duration::from_secs(30));
        let connections = &sidecar.worker.connections;
        assert_eq!(connections.refused(Direction::Outbound, "slow_head"), 1);
    });
}

#[test]
fn frames_that_break_http2_end_the_connection_and_are_counted() {
    run(async {
        let sidecar = Sidecar::new(service(&[]));
        let malformed = || {
            let connections = &sidecar.worker.connections;
            connections.refused(Direction::Outbound, "malformed_http")
        };
        let mut client = sidecar.client(Http2);
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        assert_eq!(malformed(), 0);
        // DATA belongs to a stream (RFC 9113, 6.1).
        client.write_all(b"\0\0\x01\0\0\0\0\0\0x").await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        while malformed() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        // A client that just leaves is no offender.
        let (client, server) = tokio::io::duplex(64);
        drop(client);
        let downstream = sidecar.downstream(SERVICE.into());
        let _ = super::super::serve(sidecar.worker.clone(), downstream, server, Http2).await;
        assert_eq!(malformed(), 1);
    });
}

#[test]
fn row_21_a_head_that_is_too_large_is_refused_and_told_who_sent_it() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let reached = || {
            let limits = &sidecar.worker.limits;
            limits.count(Limit::Head, Direction::Outbound)
        };
        let fields = |count: usize| -> String {
            let fields: String = (1..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
            format!("GET / HTTP/1.1\r\nhost: r\r\n{fields}\r\n")
        };
        let large = format!("GET /{} HTTP/1.1\r\nhost: r\r\n\r\n", "a".repeat(66_000));
        for (count, head, status) in [(1, fields(101), 431), (2, large, 414)] {
            let mut io = sidecar.client(Http1);
            io.write_all(head.as_bytes()).await.unwrap();
            let answer = read_head(&mut io).await;
            let status = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&status), "{answer}");
            drop(io);
            // It is counted once its connection has lingered.
            while reached() < count {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        assert_eq!(client.get("/").await.status, StatusCode::OK);
        assert_eq!(reached(), 2);
    });
}

#[test]
fn a_refusal_says_which_sidecar_refuses_and_why() {
    run(async {
        let sidecar = Sidecar::new(service(&[echo(Http1, "a").await]));
        let bad = "GET / HTTP/1.1\r\nhost: r\r\nhost: r\r\n\r\n";
        let answer = raw(sidecar.client(Http1), bad).await;
        for part in [
            "HTTP/1.1 400 Bad Request\r\n",
            "\r\nx-tulle-failed-hop: source\r\n",
            "\r\nconnection: close\r\n",
            "\r\n\r\nmore than one host",
        ] {
            assert!(answer.contains(part), "{part:?} in {answer}");
        }
        let forged = "TULLE-REFUSED / HTTP/1.1\r\nhost: r\r\n\r\n";
        let answer = raw(sidecar.client(Http1), forged).await;
        assert!(answer.contains("a method that is reserved"), "{answer}");
        assert!(sidecar.records().is_empty(), "no app ever sees them");
    });
}

#[test]
fn options_of_the_server_itself_go_by_the_route_of_its_root_and_are_not_rewritten() {
    run(async {
        let mut forward = forward_to("c");
        forward.path_rewrite = Some(PathRewrite::Prefix("/new".into()));
        let routes = vec![route("/", RouteAction::Forward(forward))];
        let clusters = vec![cluster("c", plain(&[echo(Http1, "a").await]))];
        let sidecar = Sidecar::new(outbound(routes, clusters));
        for (target, expected) in [("OPTIONS *", "*"), ("OPTIONS /a", "/new/a")] {
            let request = format!("{target} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n");
            let answer = raw(sidecar.client(Http1), &request).await;
            let line = format!("\r\nx-target: {expected}\r\n");
            assert!(answer.contains(&line), "{answer}");
        }
    });
}
