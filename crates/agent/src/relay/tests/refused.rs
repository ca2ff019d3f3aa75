//! What the relay refuses is counted, told with whose it was, and explained in README.

use std::os::fd::OwnedFd;

use tracing::subscriber::DefaultGuard;
use tulle_runtime::reasons::explained;

use super::super::refusal::Refusal;
use super::*;

const README: &str = include_str!("../../../../../README.md");

/// Hears what this thread logs until the guard is dropped.
fn listen() -> (Lines, (tracing::Dispatch, DefaultGuard)) {
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || written.clone());
    // While there is but one, a thread without any decides for all whether a line is of interest.
    let another = tracing::Dispatch::new(NoSubscriber::default());
    let guard = tracing::subscriber::set_default(subscriber.finish());
    (lines, (another, guard))
}

#[tokio::test]
async fn a_message_that_is_too_long_is_counted_and_told_whether_it_is_the_first_or_not() {
    let (lines, _guard) = listen();
    let mut stage = Stage::new(4).await;
    let long = || request(&"x".repeat(MAX_REQUEST), "");
    let status = stage.open(long()).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(stage.refused("bad_message"), 1);
    let (requests, mut answers) = stage.open(own("one")).await.unwrap();
    next(&mut answers).await.unwrap();
    requests.send(long()).await.unwrap();
    while stage.refused("bad_message") < 2 {
        tokio::task::yield_now().await;
    }
    let told = lines.count("sends what is no discovery request");
    assert_eq!(told, 2);
    assert_eq!(lines.count("client.addr=127.0.0.1:"), 2);
}

#[tokio::test]
async fn a_first_message_that_is_none_is_counted_and_told() {
    let (lines, _guard) = listen();
    let stage = Stage::new(4).await;
    let garbage = Bytes::from_static(b"\xff\xff\xff");
    let client = Some(([127, 0, 0, 1], 4_711).into());
    for _ in 0..40 {
        let status = stage.relay.check(Method::Full, client, &garbage);
        assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(stage.refused("bad_message"), 40);
    let told = lines.count("client.addr=127.0.0.1:4711");
    assert!((5..20).contains(&told), "{told} lines");
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_first_request_is_counted_and_told() {
    let (lines, _guard) = listen();
    let mut stage = Stage::new(4).await;
    let silence = stream::pending::<DiscoveryRequest>();
    let status = stage.client.stream_aggregated_resources(silence).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(stage.refused("no_request"), 1);
    assert_eq!(lines.count("has asked nothing in 10s"), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_first_request_is_no_refusal() {
    let mut stage = Stage::new(1).await;
    let silence = stream::pending::<DiscoveryRequest>();
    let call = stage.client.stream_aggregated_resources(silence);
    let place = || stage.relay.0.places.available_permits();
    tokio::select! {
        _ = call => panic!("it asks nothing"),
        () = async { while place() > 0 { tokio::task::yield_now().await; } } => {}
    }
    while place() == 0 {
        tokio::task::yield_now().await;
    }
    for refusal in Refusal::ALL {
        assert_eq!(stage.refused(refusal.name()), 0, "{refusal:?}");
    }
}

#[tokio::test]
async fn another_method_is_told_with_its_path() {
    let (lines, _guard) = listen();
    let stage = Stage::new(2).await;
    for _ in 0..40 {
        let request = http::Request::post("/envoy.Other/Stream");
        let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
        stage.relay.call(request, None).await;
    }
    assert_eq!(stage.refused("unknown_method"), 40);
    let told = lines.count("/envoy.Other/Stream");
    assert!((5..20).contains(&told), "{told} lines");
}

#[tokio::test(start_paused = true)]
async fn accepting_that_fails_is_counted_each_time_and_told_once_a_second() {
    let (lines, _guard) = listen();
    let stage = Stage::new(2).await;
    // Of this socket nobody can be accepted, and there is something to read at once.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = std::net::TcpListener::from(OwnedFd::from(socket));
    let listener = Listener::Tcp(TcpListener::from_std(socket).unwrap());
    let tasks = Tasks::new();
    tasks.spawn("relay", listener.serve(stage.relay.clone(), tasks.clone()));
    while stage.metrics.accept_failures.get() < 40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told = lines.count("cannot accept a client of the relay");
    assert!((5..12).contains(&told), "{told} lines");
}

#[test]
fn readme_has_every_reason() {
    let head = "\n`tulle_relay_streams_refused_total{reason}`";
    let said = explained(README, head).expect("a table of each once");
    let counted = Refusal::ALL.iter().map(|refusal| refusal.name());
    assert_eq!(said, counted.collect());
}
