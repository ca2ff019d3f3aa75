//! How often the log tells of what is refused: it cannot be filled by whoever is refused.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, registry};

use super::harness::*;
use super::inbound::mesh_peer;
use crate::conn::HttpVersion::{Http1, Http2};
use crate::conn::{Direction, Security};
use crate::net;
use crate::telemetry::{Limit, Limits, Who};

/// Remembers, of each line that an operator sees, how many were left out before it, whom it names, and what it says of the cause.
#[derive(Clone, Debug, Default)]
struct Lines(
    Arc<Mutex<Vec<u64>>>,
    Arc<Mutex<Vec<String>>>,
    Arc<Mutex<Vec<String>>>,
);

impl Visit for Lines {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if ["client.addr", "client.id", "peer.addr"].contains(&field.name()) {
            self.1.lock().push(format!("{value:?}"));
        }
        if field.name() == "cause" {
            self.2.lock().push(format!("{value:?}"));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "unsaid" {
            self.0.lock().push(value);
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Lines {
    /// Hears what this thread logs until the guard is dropped.
    fn listen() -> (Self, (Dispatch, DefaultGuard)) {
        let lines = Self::default();
        // While there is but one, a thread without any decides for all whether a line is of interest.
        let another = Dispatch::new(NoSubscriber::default());
        let guard = set_default(registry().with(lines.clone()));
        (lines, (another, guard))
    }

    /// How many lines came, and how many were left out.
    fn take(&self) -> (usize, u64) {
        let lines = std::mem::take(&mut *self.0.lock());
        (lines.len(), lines.iter().sum())
    }

    /// Whom they name.
    fn names(&self) -> Vec<String> {
        std::mem::take(&mut *self.1.lock())
    }
}

#[test]
fn of_many_malformed_requests_a_few_lines_tell_and_all_are_counted() {
    let (lines, _guard) = Lines::listen();
    run_paused(async {
        let sidecar = Sidecar::new(service(&[]));
        let refused = || {
            let connections = &sidecar.worker.connections;
            connections.refused(Direction::Outbound, "malformed_http")
        };
        let send = async |times: u64| {
            let all = refused() + times;
            for _ in 0..times {
                let request = "GET / HTTP/1.1\r\nhost: r\r\nBad Name: x\r\n\r\n";
                let answer = raw(sidecar.client(Http1), request).await;
                assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
            }
            // The last one is told of once its connection has lingered.
            while refused() < all {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let begun = tokio::time::Instant::now();
        send(100).await;
        // A connection lingers: a little of the clock's time goes by with each.
        let most = 5 + begun.elapsed().as_secs() as usize;
        let told = lines.take();
        assert!((1..=most).contains(&told.0), "{told:?} of {most}");
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        send(1).await;
        let later = lines.take();
        assert_eq!(later.0, 1, "it is told again");
        assert_eq!(told.0 as u64 + told.1 + later.1, 100, "all are told of");
        assert_eq!(refused(), 101);
    });
}

#[test]
fn a_flood_of_one_client_hides_no_other() {
    let (lines, _guard) = Lines::listen();
    let client = |last: u8| SocketAddr::from(([10, 1, 0, last], 40_000));
    let (limits, connections) = (Limits::default(), net::Metrics::default());
    let reached = |last| {
        let (address, id) = (client(last), None);
        limits.reached(
            Limit::Head,
            Direction::Inbound,
            Who { address, id },
            "a head",
        );
    };
    let refused = |last| {
        let unsaid =
            connections.refuse_and_tell(Direction::Inbound, net::Refusal::Tls, client(last));
        if let Some(unsaid) = unsaid {
            tracing::info!(client.addr = %client(last), unsaid, "refused");
        }
    };
    for (name, tell) in [
        ("a limit", &reached as &dyn Fn(u8)),
        ("a refusal", &refused),
    ] {
        (0..100).for_each(|_| tell(1));
        assert!((5..10).contains(&lines.take().0), "{name}");
        let of_one = lines.names();
        assert!(of_one.iter().all(|it| *it == client(1).to_string()));
        (2..=21).for_each(tell);
        let (told, unsaid) = lines.take();
        // One or the other may share a gate.
        assert!(told >= 10 && unsaid > 80, "{name}: {told} and {unsaid}");
        assert!(!lines.names().contains(&client(1).to_string()));
    }
}

#[test]
fn of_many_requests_without_a_cluster_a_few_lines_tell_and_all_are_answered() {
    let (lines, _guard) = Lines::listen();
    run_paused(async {
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        for _ in 0..100 {
            let request = client.build(Method::GET, "/");
            let request = request.body(Full::default()).unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(sidecar.records().len(), 100);
        assert_eq!(lines.take(), (5, 0), "nobody has waited");
        assert_eq!(lines.names(), ["10.1.0.9:40000"; 5]);
    });
}

#[test]
fn of_many_streams_that_http2_s_library_resets_a_few_lines_tell_whose_they_are() {
    let (lines, _guard) = Lines::listen();
    run(async {
        for (security, who) in [
            (Security::Plaintext, &["10.1.0.9:40000"][..]),
            (
                mesh_peer(),
                &["10.1.0.9:40000", "spiffe://cluster.local/ns/shop/sa/client"],
            ),
        ] {
            let sidecar = Sidecar::new(inbound(true));
            let connections = &sidecar.worker.connections;
            let refused = || connections.malformed_streams(Direction::Inbound);
            let mut io = sidecar.caller(nobody().await, security, Http2);
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .unwrap();
            for stream in 0..100 {
                // A request with a field that belongs to a hop.
                let head = [0, 0, 20, 1, 5, 0, 0, 0, 1 + 2 * stream];
                io.write_all(&head).await.unwrap();
                io.write_all(b"\x82\x86\x84\x41\x01a\0\x0aconnection\x01x")
                    .await
                    .unwrap();
            }
            while refused() < 100 {
                tokio::task::yield_now().await;
            }
            let (told, names) = (lines.take().0, lines.names());
            assert!((1..=6).contains(&told), "{told} lines");
            assert_eq!(names, who.repeat(told));
        }
    });
}

#[test]
fn of_a_connection_that_is_broken_for_its_frames_a_line_says_what_was_wrong() {
    let (lines, _guard) = Lines::listen();
    run(async {
        let sidecar = Sidecar::new(inbound(true));
        let connections = &sidecar.worker.connections;
        let refused = || connections.refused(Direction::Inbound, "malformed_http");
        for (broken, cause) in [
            // A frame that is larger than any may be, and a promise, which is no client's to make.
            (&b"\0\xff\xff\0\0\0\0\0\x01"[..], "frame with invalid size"),
            (
                b"\0\0\x05\x05\x04\0\0\0\x01\0\0\0\x02\x82",
                "protocol error",
            ),
        ] {
            let before = refused();
            let mut io = sidecar.caller(nobody().await, Security::Plaintext, Http2);
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .unwrap();
            io.write_all(broken).await.unwrap();
            while refused() == before {
                tokio::task::yield_now().await;
            }
            let said = std::mem::take(&mut *lines.2.lock());
            assert!(said.len() == 1 && said[0].contains(cause), "{said:?}");
        }
    });
}
