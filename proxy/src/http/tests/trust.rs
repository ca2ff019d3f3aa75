//! Failure class 12: what clients say that only a proxy, or only a head, may say, in heads and trailers of both versions.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::harness::*;
use crate::config::cluster::UpstreamHttp;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::Security;

const TRAILER: &str = "a trailer that belongs into the head";

fn fields(names: &[&'static str]) -> HeaderMap {
    let field = |name: &&'static str| (HeaderName::from_static(name), HeaderValue::from(1));
    names.iter().map(field).collect()
}

#[test]
fn row_12_an_underscore_makes_no_other_field_of_one_that_a_sidecar_vouches_for() {
    const SAID: [&str; 8] = [
        "x_forwarded_client_cert",
        "x-forwarded_for",
        "x_envoy_internal",
        "x-envoy-internal",
        "x_request_id",
        "x-tulle-failed-hop",
        "x_my_own",
        "x-my-own",
    ];
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let mesh = Security::Mtls {
            peer: id("peer"),
            sidecar: true,
        };
        for (security, left) in [
            (Security::Plaintext, &["x_my_own", "x-my-own"][..]),
            (mesh, &["x-envoy-internal", "x_my_own", "x-my-own"]),
        ] {
            for version in [Http1, Http2] {
                let app = echo(version, "a").await;
                let io = sidecar.caller(app, security.clone(), version);
                let mut client = Client::new(io, version).await;
                let mut request = client.build(Method::GET, "/").body(Full::default());
                let headers = request.as_mut().unwrap().headers_mut();
                headers.extend(fields(&SAID));
                let answer = client.request(request.unwrap()).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK);
                for name in SAID {
                    let got = answer.headers.contains_key(format!("got-{name}"));
                    assert_eq!(got, left.contains(&name), "{name} {version:?}");
                }
                assert_eq!(answer.header("got-x-forwarded-for"), "10.1.0.9");
            }
        }
    });
}

/// An app of HTTP/2 that answers a request with what it ends with, and tells what that was, unless it does not end.
async fn ending(answer: HeaderMap) -> (SocketAddr, mpsc::UnboundedReceiver<HeaderMap>) {
    let (tell, told) = mpsc::unbounded_channel();
    let app = raw_app(move |tcp| {
        let (tell, answer) = (tell.clone(), answer.clone());
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (tell, answer) = (tell.clone(), answer.clone());
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(_)) = body.data().await {}
                    let Ok(trailers) = body.trailers().await else {
                        return;
                    };
                    tell.send(trailers.unwrap_or_default()).unwrap();
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_trailers(answer).unwrap();
                });
            }
        }
    });
    (app.await, told)
}

/// What a client of HTTP/2 is answered whose request ends with these trailers.
async fn ended_with(sidecar: &Sidecar, io: DuplexStream, said: HeaderMap) -> Ended {
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    let request = http::Request::post("http://reviews/").body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"b"), false).unwrap();
    stream.send_trailers(said).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        text.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    assert_eq!(sidecar.record().await.status, head.status);
    Ended {
        status: head.status,
        text: String::from_utf8(text).unwrap(),
        trailers,
    }
}

struct Ended {
    status: StatusCode,
    text: String,
    trailers: HeaderMap,
}

#[test]
fn row_12_a_trailer_of_http2_says_nothing_that_belongs_into_the_head() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let (app, mut told) = ending(HeaderMap::new()).await;
        for refused in [
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x-forwarded-for",
            "x-envoy-internal",
            "x-request-id",
            "x-tulle-failed-hop",
            "host",
            "cookie",
            "expect",
            "content-length",
        ] {
            let io = sidecar.caller(app, Security::Plaintext, Http2);
            let ended = ended_with(&sidecar, io, fields(&["x-sum", refused])).await;
            assert_eq!(
                (ended.status, &*ended.text),
                (StatusCode::BAD_REQUEST, TRAILER),
                "{refused}"
            );
            assert!(told.try_recv().is_err(), "the app was told of {refused}");
        }
        let io = sidecar.caller(app, Security::Plaintext, Http2);
        let said = HeaderMap::from_iter([("x-sum".parse().unwrap(), " 1".parse().unwrap())]);
        let ended = ended_with(&sidecar, io, said).await;
        assert_eq!(ended.status, StatusCode::OK);
        let trimmed = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
        assert_eq!(told.recv().await.unwrap(), trimmed);
        let io = sidecar.caller(app, Security::Plaintext, Http2);
        let said = fields(&["x-sum", "authorization", "x_my_own"]);
        let ended = ended_with(&sidecar, io, said).await;
        assert_eq!(ended.status, StatusCode::OK);
        assert_eq!(told.recv().await.unwrap(), fields(&["x-sum", "x_my_own"]));
    });
}

#[test]
fn row_12_a_trailer_of_http1_says_nothing_that_belongs_into_the_head_and_its_refusal_says_so() {
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let app = echo(Http1, "a").await;
        for (trailer, status) in [
            ("X-Forwarded-Client-Cert", 400),
            ("x_forwarded_client_cert", 400),
            ("x-tulle-failed-hop", 400),
            ("Connection", 400),
            ("cookie", 400),
            ("expect", 400),
            ("upgrade", 400),
            ("x-sum", 200),
            ("authorization", 200),
        ] {
            let mut io = sidecar.caller(app, Security::Plaintext, Http1);
            let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            // Some of it goes on before the rest comes.
            io.write_all(format!("{head}1\r\nb\r\n").as_bytes())
                .await
                .unwrap();
            tokio::task::yield_now().await;
            let answer = raw(io, &format!("0\r\n{trailer}: 1\r\n\r\n")).await;
            let line = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&line), "{trailer}: {answer}");
            assert_eq!(answer.ends_with(TRAILER), status == 400, "{answer}");
        }
        let cut = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n";
        let answer = raw(sidecar.caller(app, Security::Plaintext, Http1), cut).await;
        assert!(answer.ends_with("a chunk without a size"), "{answer}");
    });
}

#[test]
fn an_answer_ends_with_what_the_app_says_but_not_of_the_hop_or_of_a_sidecar() {
    run(async {
        let end = fields(&["x-end", "x-request-id", "x-tulle-failed-hop"]);
        let sidecar = Sidecar::new(inbound(true));
        let (app, _told) = ending(end).await;
        let io = sidecar.caller(app, Security::Plaintext, Http2);
        let ended = ended_with(&sidecar, io, fields(&["x-sum"])).await;
        assert_eq!(ended.trailers, fields(&["x-end", "x-request-id"]));
        // What HTTP/1 can say would make HTTP/2 malformed.
        let app = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nconnection: close\r\nx-end: 1\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.unwrap();
        });
        let mut cluster = cluster("c", plain(&[app.await]));
        cluster.http = UpstreamHttp::Http1;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let mut client = Client::new(sidecar.client(Http2), Http2).await;
        let answer = client.get("/").await;
        assert_eq!(answer.trailers, Some(fields(&["x-end"])));
    });
}
