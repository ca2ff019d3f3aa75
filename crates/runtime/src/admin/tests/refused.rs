//! What is refused is counted, told with who asked for what, and explained in README.

use std::fmt::{Debug, Write as _};
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::super::refusals::Reason;
use super::*;
use crate::reasons::explained;

const README: &str = include_str!("../../../../../README.md");

/// Everything that this thread logs, a string of `key=value` each.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn listen() -> (Self, (Dispatch, DefaultGuard)) {
        let lines = Self::default();
        // While there is but one, a thread without any decides for all whether a line is of interest.
        let another = Dispatch::new(NoSubscriber::default());
        let guard = set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, (another, guard))
    }

    fn with(&self, text: &str) -> Vec<String> {
        let lines = self.0.lock();
        let with = lines.iter().filter(|line| line.contains(text));
        with.cloned().collect()
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).expect("there is room");
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().push(fields.0);
    }
}

fn times(registry: &Registry, reason: &str) -> u64 {
    let metrics = crate::metrics::encode(registry);
    let of = format!("tulle_admin_refused_total{{server=\"admin\",reason=\"{reason}\"}} ");
    let mut counts = metrics.lines().filter_map(|line| line.strip_prefix(&of));
    counts
        .next()
        .map_or(0, |count| count.parse().expect("a count"))
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /logging HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n{body}")
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_reason_and_told_with_who_asked_for_what() {
    let (lines, _guard) = Lines::listen();
    let mut registry = Registry::with_prefix("tulle");
    let (address, _tasks) = counted(Refusals::register(&mut registry)).await;
    let big = "x".repeat(70_000);
    let table = [
        ("host", get("/ready", "evil.example"), "evil.example"),
        (
            "browser",
            post("Origin: null\r\nContent-Length: 0\r\n", ""),
            "/logging",
        ),
        ("method", get("/logging", "localhost"), "GET"),
        ("not_found", get("/nope", "localhost"), ""),
        (
            "body_too_large",
            post("Content-Length: 70000\r\n", &big),
            "/logging",
        ),
        (
            "bad_body",
            post("Transfer-Encoding: chunked\r\n", "none"),
            "/logging",
        ),
        ("head_too_large", get(&format!("/{big}"), "localhost"), ""),
        ("bad_head", "\u{1}\u{2}\r\n\r\n".to_owned(), ""),
    ];
    // All but those that take time or a want of files.
    let reasons = Reason::ALL.len() - 2;
    assert_eq!(table.len(), reasons);
    for (reason, request, what) in table {
        assert_eq!(times(&registry, reason), 0, "{reason}");
        exchange(address, &request).await;
        assert_eq!(times(&registry, reason), 1, "{reason}");
        let told = lines.with(&format!("reason=\"{reason}\""));
        if reason == "not_found" {
            assert!(told.is_empty(), "{told:?}");
            continue;
        }
        let who = ["client.addr=127.0.0.1:", "server=\"admin\"", what];
        let says = |line: &String| who.iter().all(|part| line.contains(part));
        assert!(told.len() == 1 && says(&told[0]), "{reason}: {told:?}");
    }
    exchange(address, &get("/ready", "localhost")).await;
    let metrics = crate::metrics::encode(&registry);
    let counted = metrics.matches("tulle_admin_refused_total{").count();
    assert_eq!(counted, reasons, "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_counted() {
    let mut registry = Registry::with_prefix("tulle");
    let (address, _tasks) = counted(Refusals::register(&mut registry)).await;
    let answer = exchange(address, &post("Content-Length: 4\r\n", "")).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(times(&registry, "body_timeout"), 1);
}

#[tokio::test]
async fn many_refusals_are_all_counted_and_told_a_few_times_without_hiding_another() {
    let (lines, _guard) = Lines::listen();
    let mut registry = Registry::with_prefix("tulle");
    let (address, _tasks) = counted(Refusals::register(&mut registry)).await;
    for _ in 0..40 {
        exchange(address, &get("/ready", "evil.example")).await;
    }
    assert_eq!(times(&registry, "host"), 40);
    let told = lines.with("reason=\"host\"").len();
    assert!((5..20).contains(&told), "{told} lines");
    let long = format!("/logging/{}", "x".repeat(4_000));
    exchange(address, &get(&long, "other.example\u{7f}")).await;
    exchange(address, &post("Origin: null\r\nContent-Length: 0\r\n", "")).await;
    assert_eq!(lines.with("reason=\"browser\"").len(), 1);
    assert!(lines.with("server=").iter().all(|line| line.len() < 1_000));
}

#[tokio::test(start_paused = true)]
async fn accepting_that_fails_is_counted_each_time_and_told_once_a_second() {
    let (lines, _guard) = Lines::listen();
    let mut registry = Registry::with_prefix("tulle");
    // Of this socket nobody can be accepted, and there is something to read at once.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    socket.send_to(b"x", address).expect("it takes it");
    socket.set_nonblocking(true).expect("it is a socket");
    let socket = std::net::TcpListener::from(OwnedFd::from(socket));
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut server = AdminServer::bind(any).await.expect("a free port");
    server.listener = TcpListener::from_std(socket).expect("it is a socket");
    server.refusals(Refusals::register(&mut registry));
    server.serve("admin", &Tasks::new());
    while times(&registry, "accept") < 40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told = lines.with("cannot accept").len();
    assert!((5..12).contains(&told), "{told} lines");
}

#[test]
fn readme_has_every_reason() {
    let head = "\n`tulle_admin_refused_total{server,reason}`";
    let said = explained(README, head).expect("a table of each once");
    let counted = Reason::ALL.iter().map(|reason| reason.name());
    assert_eq!(said, counted.collect());
}
