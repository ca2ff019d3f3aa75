//! The echo workload over real sockets, and the harness by which the other commands are tested against it.

use clap::Parser;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A workload on ports of its own, stopped by its handle.
#[derive(Debug)]
pub(crate) struct Running {
    addresses: Vec<(&'static str, SocketAddr)>,
    stop: Option<oneshot::Sender<()>>,
    done: oneshot::Receiver<()>,
}

impl Running {
    pub(crate) async fn start(args: &[&str]) -> Self {
        let args = [&["serve", "--bind", "127.0.0.1", "--pod", "pod-0"], args].concat();
        let server = Server::bind(&Program::parse_from(args).serve)
            .await
            .expect("ports are free");
        let addresses = server.addresses();
        let (stop, stopped) = oneshot::channel();
        let (ended, done) = oneshot::channel();
        Tasks::new().spawn_connection("app", async move {
            server.serve(async { drop(stopped.await) }).await;
            let _ = ended.send(());
        });
        Self {
            addresses,
            stop: Some(stop),
            done,
        }
    }

    pub(crate) fn address(&self, protocol: &str) -> SocketAddr {
        self.addresses
            .iter()
            .find(|(name, _)| *name == protocol)
            .expect("served")
            .1
    }

    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) async fn ended(self) {
        self.done.await.expect("the app ended by itself");
    }

    /// What comes back for raw bytes, until the server closes.
    async fn exchange(&self, protocol: &str, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address(protocol))
            .await
            .expect("listens");
        stream.write_all(bytes.as_bytes()).await.expect("accepted");
        stream.shutdown().await.expect("half-closed");
        let mut received = String::new();
        stream.read_to_string(&mut received).await.expect("text");
        received
    }

    async fn get(&self, path: &str) -> String {
        self.exchange(
            "http",
            &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
        )
        .await
    }
}

fn body(response: &str) -> Value {
    let (_, body) = response.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).expect("JSON")
}

#[tokio::test]
async fn an_answer_says_who_answered_and_what_arrived() {
    let app = Running::start(&["--http", "0", "--name", "web", "--version", "v2"]).await;
    let request = "POST /a?b=c HTTP/1.1\r\nhost: a\r\nx-one: 1\r\nx-one: 2\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    let response = app.exchange("http", request).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    for line in [
        "x-tulle-app-name: web",
        "x-tulle-app-version: v2",
        "x-tulle-app-pod: pod-0",
    ] {
        assert!(response.contains(line), "{response}");
    }
    let body = body(&response);
    let expected = [
        ("method", "POST"),
        ("path", "/a"),
        ("query", "b=c"),
        ("protocol", "HTTP/1.1"),
        ("version", "v2"),
    ];
    for (field, value) in expected {
        assert_eq!(body[field], value);
    }
    assert_eq!(body["bodyLength"], 5);
    assert_eq!(body["headers"]["x-one"], "1, 2");
}

#[tokio::test]
async fn knobs_change_the_answer_and_bad_ones_are_refused() {
    let app = Running::start(&["--http", "0"]).await;
    let rows = [
        ("/?status=418", "HTTP/1.1 418"),
        ("/?size=10", "\r\n\r\nxxxxxxxxxx"),
        ("/?size=10&chunks=2", "5\r\nxxxxx\r\n5\r\nxxxxx\r\n0\r\n"),
        ("/?status=oops", "HTTP/1.1 400"),
        ("/?status=oops", "expected a whole number from 200 to 599"),
    ];
    for (path, expected) in rows {
        let response = app.get(path).await;
        assert!(response.contains(expected), "{path}: {response}");
    }
    assert_eq!(app.get("/?abort=true").await, "");
}

#[tokio::test]
async fn trailers_are_declared_and_sent_to_those_who_want_them() {
    let app = Running::start(&["--http", "0"]).await;
    let request = "GET /?size=4&trailer=x-sum:1 HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close\r\n\r\n";
    let response = app.exchange("http", request).await;
    assert!(
        response.contains("trailer: x-sum\r\n") && response.ends_with("0\r\nx-sum: 1\r\n\r\n"),
        "{response}"
    );
}

#[tokio::test]
async fn requests_are_counted_by_id() {
    let app = Running::start(&["--http", "0"]).await;
    for path in ["/?id=r-1", "/?id=r-2", "/?id=r-1"] {
        app.get(path).await;
    }
    assert_eq!(body(&app.get("/count?id=r-1").await)["count"], 2);
    assert_eq!(body(&app.get("/count?id=r-3").await)["count"], 0);
    let counts = body(&app.get("/counts?prefix=r-").await)["counts"].clone();
    assert_eq!(counts, serde_json::json!({ "r-1": 2, "r-2": 1 }));
}

#[tokio::test]
async fn behaviour_can_be_changed_while_it_runs_and_back() {
    let app = Running::start(&["--http", "0"]).await;
    assert!(app.get("/ready").await.starts_with("HTTP/1.1 200"));
    app.get("/behave?status=500&ready=false").await;
    assert!(app.get("/ready").await.starts_with("HTTP/1.1 503"));
    assert!(app.get("/").await.starts_with("HTTP/1.1 500"));
    app.get("/behave?probability=0&ready=true").await;
    assert!(app.get("/ready").await.starts_with("HTTP/1.1 200"));
    assert!(app.get("/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_upgrade_is_followed_by_an_echo() {
    let app = Running::start(&["--http", "0"]).await;
    let request =
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\nafterwards";
    let response = app.exchange("http", request).await;
    assert!(
        response.starts_with("HTTP/1.1 101") && response.contains("upgrade: chat\r\n"),
        "{response}"
    );
    assert!(response.ends_with("\r\n\r\nafterwards"), "{response}");
}

#[tokio::test]
async fn tcp_is_echoed_until_the_client_closes_its_side() {
    let app = Running::start(&["--tcp", "0"]).await;
    assert_eq!(app.exchange("tcp", "Hello").await, "Hello");
}

#[tokio::test]
async fn a_server_that_speaks_first_sends_its_banner_unasked() {
    let app = Running::start(&["--tcp-server-first", "0", "--name", "greeter"]).await;
    let received = app.exchange("tcp-server-first", "Hello\n").await;
    assert_eq!(received, "tulle-app greeter v1 pod-0 ready\nHELLO\n");
}

#[tokio::test]
async fn a_drain_finishes_the_request_that_is_open_and_takes_no_other() {
    let mut app = Running::start(&["--http", "0"]).await;
    let mut stream = TcpStream::connect(app.address("http"))
        .await
        .expect("listens");
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
        )
        .await
        .expect("sent");
    let mut interim = [0; 12];
    stream
        .read_exact(&mut interim)
        .await
        .expect("100, so the request has arrived");
    let address = app.address("http");
    app.stop();
    stream.write_all(b"ok").await.expect("sent");
    let mut rest = String::new();
    stream
        .read_to_string(&mut rest)
        .await
        .expect("answered and closed");
    assert!(rest.contains("HTTP/1.1 200"), "{rest}");
    app.ended().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn nothing_to_serve_and_a_taken_port_are_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let rows = [
        (vec!["serve"], "nothing to serve".to_owned()),
        (
            vec!["serve", "--bind", "127.0.0.1", "--tcp", &port],
            format!("cannot listen on port {port} for tcp"),
        ),
    ];
    for (args, expected) in rows {
        let error = Server::bind(&Program::parse_from(args).serve)
            .await
            .expect_err(&expected);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
