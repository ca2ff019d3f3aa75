//! Many requests at once to one peer on HTTP/1, where each connection costs a handshake.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::harness::*;
use crate::config::Cluster;
use crate::config::cluster::ClusterState;
use crate::config::route::RouteAction;
use crate::conn::Direction;
use crate::conn::HttpVersion::Http1;
use crate::settings::Settings;
use crate::telemetry::Limit;

const ALL: u32 = 100;
/// Handshakes that there may be at a time.
const AT_A_TIME: u32 = 32;

/// A peer's sidecar that takes part in so many handshakes as it is allowed.
async fn peer(server: &Sidecar, app: SocketAddr, allowed: Arc<Semaphore>) -> SocketAddr {
    let worker = server.worker.clone();
    raw_app(move |tcp| {
        let (worker, allowed) = (worker.clone(), allowed.clone());
        async move {
            allowed.acquire().await.unwrap().forget();
            accept(worker, tcp, CLIENT.into(), app).await;
        }
    })
    .await
}

/// A sidecar in front of a cluster of one peer, which tries nothing again.
fn client(ca: &Ca, peer: SocketAddr, change: impl FnOnce(&mut Cluster)) -> Sidecar {
    let mut cluster = cluster("c", meshed(&[peer], "reviews"));
    change(&mut cluster);
    let mut forward = forward_to("c");
    forward.retry.attempts = 0;
    let route = route("/", RouteAction::Forward(forward));
    let snapshot = outbound(vec![route], vec![cluster]);
    Sidecar::with_identity(snapshot, ca.identity("client"))
}

/// One that waits for connections for as long as a test does, and what is counted of its cluster.
fn patient(ca: &Ca, peer: SocketAddr) -> (Sidecar, Arc<ClusterState>) {
    let mut state = Arc::default();
    let sidecar = client(ca, peer, |cluster| {
        cluster.connect_timeout = Duration::from_secs(60);
        state = cluster.state.clone();
    });
    (sidecar, state)
}

/// Sends all requests at once; what they are answered is counted by the first figure of the status.
fn send_all(sidecar: &Sidecar, answered: &Rc<Cell<[u32; 6]>>) -> Vec<JoinHandle<()>> {
    let send = |_| {
        let (io, answered) = (sidecar.client(Http1), answered.clone());
        tokio::task::spawn_local(async move {
            let answer = Client::new(io, Http1).await.get("/").await;
            let mut counts = answered.get();
            counts[usize::from(answer.status.as_u16() / 100)] += 1;
            answered.set(counts);
        })
    };
    (0..ALL).map(send).collect()
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn no_more_than_32_connections_are_made_at_a_time_and_what_comes_back_serves_those_who_wait() {
    run(async {
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
        let allowed = Arc::new(Semaphore::new(0));
        let peer = peer(&server, echo(Http1, "a").await, allowed.clone()).await;
        let (sidecar, state) = patient(&ca, peer);
        let answered = Rc::default();
        let requests = send_all(&sidecar, &answered);
        until(|| state.pending.load(Relaxed) == ALL).await;
        assert_eq!(state.connections.load(Relaxed), AT_A_TIME);
        // One is made, and somebody else's turn comes; the others take what comes back.
        allowed.add_permits(1);
        until(|| answered.get()[2] == ALL - AT_A_TIME).await;
        assert_eq!(state.connections.load(Relaxed), 1 + AT_A_TIME);
        assert_eq!(state.pending.load(Relaxed), AT_A_TIME);
        allowed.add_permits(ALL as usize);
        for request in requests {
            request.await.unwrap();
        }
        assert_eq!(answered.get()[2], ALL);
    });
}

#[test]
fn how_many_are_made_at_a_time_can_be_set_and_who_waits_for_that_is_counted() {
    run(async {
        for (most, waits) in [(10, u64::from(ALL) - 10), (ALL, 0)] {
            let ca = Ca::new();
            let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let allowed = Arc::new(Semaphore::new(0));
            let peer = peer(&server, echo(Http1, "a").await, allowed.clone()).await;
            let mut cluster = cluster("c", meshed(&[peer], "reviews"));
            cluster.connect_timeout = Duration::from_secs(60);
            let state = cluster.state.clone();
            let mut settings = Settings::default();
            settings.bounds.connecting = most;
            let snapshot = outbound(vec![route_to("c")], vec![cluster]);
            let sidecar = Sidecar::build(snapshot, ca.identity("client"), settings);
            let answered = Rc::default();
            let requests = send_all(&sidecar, &answered);
            until(|| state.pending.load(Relaxed) == ALL).await;
            assert_eq!(state.connections.load(Relaxed), most);
            allowed.add_permits(ALL as usize);
            for request in requests {
                request.await.unwrap();
            }
            assert_eq!(answered.get()[2], ALL);
            let limits = &sidecar.worker.limits;
            // Once each, however often it looks.
            assert_eq!(limits.count(Limit::Connecting, Direction::Outbound), waits);
        }
    });
}

#[test]
fn where_there_may_be_few_connections_nobody_waits_for_one_longer_than_connecting_may_take() {
    run(async {
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
        let silent = raw_app(|mut tcp| async move {
            read_head(&mut tcp).await;
            std::future::pending::<()>().await;
        })
        .await;
        let allowed = Arc::new(Semaphore::new(ALL as usize));
        let peer = peer(&server, silent, allowed).await;
        let most = AT_A_TIME + 8;
        let sidecar = client(&ca, peer, |cluster| {
            cluster.limits.max_connections = most;
            cluster.connect_timeout = Duration::from_secs(2);
        });
        let answered = Rc::default();
        let requests = send_all(&sidecar, &answered);
        until(|| answered.get()[5] == ALL - most).await;
        let records = sidecar.records();
        assert_eq!(records.len(), (ALL - most) as usize);
        assert!(records.iter().all(|it| it.flags.to_string() == "UO"));
        requests.iter().for_each(JoinHandle::abort);
    });
}

#[test]
fn a_handshake_that_fails_now_and_then_fails_nobody_else() {
    run(async {
        let ca = Ca::new();
        let server = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
        let (worker, app) = (server.worker.clone(), echo(Http1, "a").await);
        let (allowed, accepted) = (Arc::new(Semaphore::new(0)), Rc::new(Cell::new(0)));
        let gate = allowed.clone();
        let peer = raw_app(move |tcp| {
            let (worker, gate) = (worker.clone(), gate.clone());
            accepted.set(accepted.get() + 1);
            let fails = accepted.get() == 1;
            async move {
                gate.acquire().await.unwrap().forget();
                if !fails {
                    accept(worker, tcp, CLIENT.into(), app).await;
                }
            }
        })
        .await;
        let (sidecar, state) = patient(&ca, peer);
        let answered = Rc::default();
        let requests = send_all(&sidecar, &answered);
        until(|| state.pending.load(Relaxed) == ALL).await;
        allowed.add_permits(ALL as usize);
        for request in requests {
            request.await.unwrap();
        }
        assert_eq!(answered.get(), [0, 0, ALL - 1, 0, 0, 1]);
    });
}
