//! Probes against small servers, both outcomes of each kind.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use hyper::service::service_fn;
use tokio::net::TcpListener;

use super::*;

const APP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Serves one connection: HTTP/1 or 2, always with the same status and body.
async fn serve(status: u16, body: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((APP, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| async move {
            let status = if request.headers().contains_key("x-fail") {
                500
            } else {
                status
            };
            Ok::<_, Infallible>(
                Response::builder()
                    .status(status)
                    .body(Full::new(Bytes::from_static(body)))
                    .unwrap(),
            )
        });
        let mut preface = [0; 3];
        tcp.peek(&mut preface).await.unwrap();
        if preface == *b"PRI" {
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tcp), service)
                .await;
        } else {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service)
                .await;
        }
    });
    port
}

async fn check(probe: &str) -> Result<(), String> {
    let probes: Probes = format!("{{\"/p\": {probe}}}").parse().unwrap();
    probes
        .check("/p", APP, &Settings::default())
        .await
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn every_kind_of_probe_tells_a_well_app_from_an_unwell_one() {
    let run = async {
        let http = |port, more: &str| {
            format!(r#"{{"httpGet": {{"path": "/ready", "port": {port}{more}}}}}"#)
        };
        assert_eq!(check(&http(serve(204, b"").await, "")).await, Ok(()));
        assert_eq!(check(&http(serve(302, b"").await, "")).await, Ok(()));
        let error = check(&http(serve(503, b"").await, "")).await.unwrap_err();
        assert_eq!(error, "the app answered 503 Service Unavailable");
        let header = r#", "httpHeaders": [{"name": "X-Fail", "value": "1"}]"#;
        let error = check(&http(serve(200, b"").await, header))
            .await
            .unwrap_err();
        assert_eq!(error, "the app answered 500 Internal Server Error");

        let grpc = |port| {
            format!(r#"{{"grpc": {{"port": {port}, "service": "s"}}, "timeoutSeconds": 2}}"#)
        };
        assert_eq!(
            check(&grpc(serve(200, b"\0\0\0\0\x02\x08\x01").await)).await,
            Ok(())
        );
        let error = check(&grpc(serve(200, b"\0\0\0\0\x02\x08\x02").await))
            .await
            .unwrap_err();
        assert_eq!(error, "the app's health answer is not SERVING");

        let tcp = |port| format!(r#"{{"tcpSocket": {{"port": {port}}}}}"#);
        assert_eq!(check(&tcp(serve(200, b"").await)).await, Ok(()));
        let gone = TcpListener::bind((APP, 0))
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert!(
            check(&tcp(gone))
                .await
                .unwrap_err()
                .starts_with("could not connect to 127.0.0.1:")
        );
    };
    tokio::task::LocalSet::new().run_until(Box::pin(run)).await;
}

/// Serves any number of connections of HTTP/1. A path that is a status is answered so, and another path sends on to what follows
/// its first slash; `/loop` to itself. Each value of `x-many` has to be there.
async fn serve_redirects() -> u16 {
    let listener = TcpListener::bind((APP, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let path = request.uri().path();
                let response = match path[1..].parse::<u16>() {
                    Ok(status) => Response::builder().status(status),
                    Err(_) if path == "/loop" => {
                        Response::builder().status(307).header(LOCATION, "/loop")
                    }
                    Err(_) => Response::builder()
                        .status(302)
                        .header(LOCATION, path.replacen("/to", "", 1)),
                };
                let many = request.headers().get_all("x-many").iter().count();
                let whole = many == 2 && request.headers().get_all(HOST).iter().count() == 1;
                let failed = Response::builder().status(418);
                let response = if whole { response } else { failed };
                Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
            });
            tokio::task::spawn_local(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
    port
}

#[tokio::test]
async fn redirects_within_the_host_are_followed_with_every_header() {
    let run = async {
        let port = serve_redirects().await;
        let probe = |path: &str| {
            let header = |name: &str| format!(r#"{{"name": "{name}", "value": "a"}}"#);
            let headers = [
                header("X-Many"),
                header("Host"),
                header("x-many"),
                header("host"),
            ]
            .join(", ");
            format!(
                r#"{{"httpGet": {{"path": "{path}", "port": {port}, "httpHeaders": [{headers}]}}, "timeoutSeconds": 20}}"#
            )
        };
        assert_eq!(check(&probe("/200")).await, Ok(()));
        assert_eq!(check(&probe("/to/204")).await, Ok(()));
        let error = check(&probe("/to/to/503")).await.unwrap_err();
        assert_eq!(error, "the app answered 503 Service Unavailable");
        let error = check(&probe("/loop")).await.unwrap_err();
        assert_eq!(error, "the app redirected 10 times");
        // Sent on to nowhere, which is for whoever can follow.
        assert_eq!(check(&probe("/302")).await, Ok(()));
    };
    tokio::task::LocalSet::new().run_until(Box::pin(run)).await;
}

#[tokio::test]
async fn a_hook_has_succeeded_if_it_was_heard_whatever_is_answered() {
    let run = async {
        let hook = |port: u16| {
            let get = format!(r#"{{"httpGet": {{"path": "/bye", "port": {port}}}}}"#);
            let json = format!(r#"{{"/app-lifecycle/web/prestopz": {get}}}"#);
            async move {
                let hooks: Probes = json.parse().unwrap();
                let path = "/app-lifecycle/web/prestopz";
                hooks.check(path, APP, &Settings::default()).await
            }
        };
        assert!(hook(serve(500, b"").await).await.is_ok());
        let gone = TcpListener::bind((APP, 0)).await.unwrap();
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let error = hook(port).await.unwrap_err();
        assert!(matches!(error, ProbeError::Connect(..)), "{error}");
    };
    tokio::task::LocalSet::new().run_until(Box::pin(run)).await;
}

#[tokio::test]
async fn a_path_that_stands_for_no_probe_is_unknown() {
    let unknown = Probes::default()
        .check("/p", APP, &Settings::default())
        .await;
    assert!(matches!(unknown, Err(ProbeError::Unknown)));
}
