//! What a client of the admin server sees, over real sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

mod refused;

async fn server() -> (SocketAddr, Tasks) {
    counted(Refusals::default()).await
}

async fn counted(refusals: Refusals) -> (SocketAddr, Tasks) {
    let mut server = AdminServer::bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    server.get("/ready", |_| async { text(StatusCode::OK, "yes\n") });
    server.get("/app/*", |request| async move {
        text(
            StatusCode::OK,
            format!("{}?{}", request.path, request.query),
        )
    });
    server.post("/logging", |request| async move {
        text(StatusCode::OK, request.body)
    });
    server.refusals(refusals);
    let (address, tasks) = (server.local_addr(), Tasks::new());
    server.serve("admin", &tasks);
    (address, tasks)
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = Vec::new();
    // A reset after the answer is no matter here.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn requests_get_the_status_they_deserve() {
    let (address, _tasks) = server().await;
    let post =
        "POST /logging HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n";
    let big = "x".repeat(70_000);
    let table = [
        ("a known path", "GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_owned(), "200"),
        ("HTTP/1.0 without Host", "GET /ready HTTP/1.0\r\n\r\n".to_owned(), "200"),
        ("HEAD", "HEAD /ready HTTP/1.1\r\nHost: [::1]:1\r\nConnection: close\r\n\r\n".to_owned(), "200"),
        ("a path under a star", "GET /app/x?y HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(), "200"),
        ("an unknown path", "GET /nope HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_owned(), "404"),
        ("a wrong method", "GET /logging HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_owned(), "405"),
        ("DNS rebinding", "GET /ready HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned(), "403"),
        ("no Host", "GET /ready HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "403"),
        (
            "two Hosts",
            "GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_owned(),
            "403",
        ),
        (
            "rebinding by absolute form",
            "GET http://evil.example/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_owned(),
            "403",
        ),
        ("a POST", format!("{post}\r\ninfo"), "200"),
        ("a browser's POST", format!("{post}Origin: null\r\n\r\ninfo"), "403"),
        ("a browser's POST without Origin", format!("{post}Sec-Fetch-Site: cross-site\r\n\r\ninfo"), "403"),
        (
            "a body too large",
            format!("POST /logging HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 70000\r\n\r\n{big}"),
            "413",
        ),
        ("a head too large", format!("GET /ready HTTP/1.1\r\nHost: localhost\r\nX: {big}\r\n\r\n"), "431"),
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), "400"),
        (
            "a body that is none",
            "POST /logging HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nnone".to_owned(),
            "400",
        ),
    ];
    for (name, request, status) in table {
        let answer = exchange(address, &request).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn handlers_see_path_query_and_body() {
    let (address, _tasks) = server().await;
    let answer = exchange(
        address,
        "GET /app/a/b?c=d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.ends_with("/app/a/b?c=d"), "{answer:?}");
    let post = "POST /logging HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\ninfo";
    assert!(exchange(address, post).await.ends_with("\r\n\r\ninfo"));
}

#[tokio::test]
async fn only_loopback_is_bound_unless_told() {
    let everywhere = "0.0.0.0:0".parse().expect("an address");
    assert!(matches!(
        AdminServer::bind(everywhere).await,
        Err(AdminError::Exposed(_))
    ));
    assert!(AdminServer::bind_exposed(everywhere).await.is_ok());
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_its_address() {
    let taken = AdminServer::bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    let error = AdminServer::bind(taken.local_addr())
        .await
        .expect_err("taken")
        .to_string();
    assert!(error.contains(&taken.local_addr().to_string()), "{error}");
}

#[tokio::test]
async fn one_connection_too_many_ends_the_oldest_and_is_served() {
    let (address, _tasks) = server().await;
    a_newcomer_ends_the_oldest(address, CONNECTIONS).await;
}

#[tokio::test]
async fn there_is_as_much_room_as_is_said_and_of_one_too_many_is_told() {
    let mut server = AdminServer::bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    server.get("/ready", |_| async { text(StatusCode::OK, "yes\n") });
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    server.room(5, move |full| told.send(full).expect("somebody listens"));
    let (address, tasks) = (server.local_addr(), Tasks::new());
    server.serve("admin", &tasks);
    for _ in 0..20 {
        // Those that are over are in nobody's way.
        exchange(address, "GET /ready HTTP/1.0\r\n\r\n").await;
    }
    assert!(tells.try_recv().is_err(), "there was room");
    let (oldest, client) = a_newcomer_ends_the_oldest(address, 5).await;
    let full = tells.try_recv().expect("it was told");
    assert_eq!(full, Evicted { client, oldest });
    assert!(tells.try_recv().is_err(), "once");
}

/// Takes all the room, and asks once more: who held the first place, and who came last.
async fn a_newcomer_ends_the_oldest(address: SocketAddr, room: usize) -> (SocketAddr, SocketAddr) {
    let mut idle = Vec::new();
    for _ in 0..room {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream
            .write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .expect("it reads");
        stream.read_u8().await.expect("it is being served");
        idle.push(stream);
    }
    let local = |stream: &TcpStream| stream.local_addr().expect("it is connected");
    let oldest = local(&idle[0]);
    let mut late = TcpStream::connect(address).await.expect("it listens");
    let newest = local(&late);
    let request = b"GET /ready HTTP/1.0\r\n\r\n";
    late.write_all(request).await.expect("it reads");
    let mut answer = String::new();
    let _ = late.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    let ends = |mut stream: TcpStream| async move {
        let mut rest = Vec::new();
        let ending = stream.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_millis(50), ending)
            .await
            .is_ok()
    };
    assert!(ends(idle.remove(0)).await, "the oldest");
    assert!(!ends(idle.remove(0)).await, "the next");
    (oldest, newest)
}

#[tokio::test]
async fn shutdown_finishes_the_request_that_is_being_answered() {
    let mut server = AdminServer::bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    let (entered, mut was_entered) = tokio::sync::mpsc::channel(1);
    let go = Arc::new(tokio::sync::Notify::new());
    let gate = go.clone();
    server.get("/slow", move |_| {
        let (entered, gate) = (entered.clone(), gate.clone());
        async move {
            entered.send(()).await.expect("the test listens");
            gate.notified().await;
            text(StatusCode::OK, "done")
        }
    });
    let (address, tasks) = (server.local_addr(), Tasks::new());
    server.serve("admin", &tasks);
    let client = exchange(address, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let shutdown = async {
        was_entered.recv().await;
        tasks.cancel();
        go.notify_one();
        tasks.shutdown(Duration::from_secs(5)).await
    };
    let (answer, ended) = tokio::join!(client, shutdown);
    assert!(ended);
    assert!(answer.ends_with("done"), "{answer:?}");
}

#[tokio::test]
async fn what_is_for_loopback_is_not_there_for_others() {
    let mut server = AdminServer::bind_exposed(([0, 0, 0, 0], 0).into())
        .await
        .expect("a free port");
    server.get("/ready", |_| async { text(StatusCode::OK, "yes\n") });
    server.inside();
    server.get("/debug", |_| async { text(StatusCode::OK, "secret\n") });
    let served = Server {
        name: "admin",
        routes: server.routes.clone(),
        refusals: Refusals::default(),
    };
    let ask = async |path: &str, inside: bool| {
        let request = http::Request::get(path).header("Host", "127.0.0.1");
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        let answer = serve::answer(&served, server.address, inside, request).await;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await;
        String::from_utf8(body.expect("a body").to_bytes().to_vec()).expect("text")
    };
    assert_eq!(ask("/ready", true).await, "yes\n");
    assert_eq!(ask("/ready", false).await, "yes\n");
    assert_eq!(ask("/debug", true).await, "secret\n");
    let hidden = ask("/debug", false).await;
    assert!(
        hidden.contains("/ready") && !hidden.contains("/debug"),
        "{hidden}"
    );
}
