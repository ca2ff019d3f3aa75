//! An endpoint whose node is gone: nothing answers there, and each attempt takes as long as connecting may take.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::harness::*;
use crate::config::Cluster;
use crate::config::cluster::EndpointState;
use crate::config::listener::TcpRoute;
use crate::conn::HttpVersion::Http1;
use crate::tcp;

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// A port that answers nothing, because its queue is full.
struct Silent {
    listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Silent {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("a port");
        let listener = socket.listen(0).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut queue = Vec::new();
        while let Ok(taken) = timeout(PATIENCE / 4, TcpStream::connect(address)).await {
            queue.push(taken.expect("it is taken"));
        }
        Self {
            listener,
            _queue: queue,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    /// Takes everything from now on.
    fn answer(self) {
        tokio::task::spawn_local(async move {
            let mut taken = Vec::new();
            while let Ok((tcp, _)) = self.listener.accept().await {
                taken.push(tcp);
            }
        });
    }
}

fn of(silent: SocketAddr, others: &[SocketAddr]) -> (Cluster, Arc<EndpointState>) {
    let all: Vec<_> = others.iter().copied().chain([silent]).collect();
    let mut cluster = cluster("c", plain(&all));
    cluster.connect_timeout = PATIENCE;
    cluster.outlier.base_ejection_time = PATIENCE;
    cluster.outlier.max_ejection_time = PATIENCE * 2;
    let mut endpoints = cluster.endpoints.iter();
    let silent = endpoints.find(|it| it.address == silent);
    let state = silent.expect("it is one of them").state.clone();
    (cluster, state)
}

/// Calls one after the other until something is so, and says how many had to wait for the silent endpoint.
async fn late(mut call: impl AsyncFnMut(), until: impl Fn() -> bool) -> usize {
    let mut late = 0;
    while !until() {
        let begun = Instant::now();
        call().await;
        late += usize::from(begun.elapsed() >= PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    late
}

#[test]
fn one_connection_finds_out_that_an_endpoint_is_silent_and_none_that_it_is_back() {
    run(async {
        let live = raw_app(|tcp| async move { drop(tcp) }).await;
        let silent = Silent::new().await;
        let (cluster, state) = of(silent.address(), &[live]);
        let sidecar = Sidecar::new(outbound(vec![], vec![cluster]));
        let route = TcpRoute {
            clusters: vec![("c".into(), 1)],
            by_source: false,
        };
        let call = async || {
            let client = CLIENT.0.into();
            let made = tcp::connect(&sidecar.worker, &route, client).await;
            made.expect("the other one answers");
        };
        // Ejected, looked at in vain, and ejected again.
        let waited = late(call, || state.ejections.load(Relaxed) >= 3).await;
        assert_eq!(waited, 1);
        silent.answer();
        let waited = late(call, || state.ejections.load(Relaxed) == 0).await;
        assert_eq!(waited, 0, "it is back, and nobody had to wait for that");
    });
}

#[test]
fn where_one_endpoint_is_silent_others_are_found_out_before_anybody_meets_them() {
    run(async {
        let mut live = Vec::new();
        for _ in 0..3 {
            live.push(raw_app(|tcp| async move { drop(tcp) }).await);
        }
        let silent = [Silent::new().await, Silent::new().await];
        let silent = silent.each_ref().map(Silent::address);
        let (cluster, _) = of(silent[0], &[live.as_slice(), &silent[1..]].concat());
        let cluster = Arc::new(cluster);
        let mut snapshot = outbound(vec![], vec![]);
        snapshot
            .clusters
            .insert(cluster.name.clone(), cluster.clone());
        let sidecar = Sidecar::new(snapshot);
        let endpoint = |address: &SocketAddr| {
            let mut all = cluster.endpoints.iter();
            all.find(|it| it.address == *address).expect("one of them")
        };
        crate::scout::connect_failed(&sidecar.worker, &cluster, endpoint(&silent[0]), true);
        let ejections = |it| endpoint(it).state.ejections.load(Relaxed);
        while silent.iter().any(|it| ejections(it) == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let failures = |it| endpoint(it).state.consecutive_failures.load(Relaxed);
        assert!(live.iter().all(|it| failures(it) == 0));
    });
}

#[test]
fn one_request_finds_out_that_an_endpoint_is_silent() {
    run(async {
        let live = echo(Http1, "live").await;
        let silent = Silent::new().await;
        let (cluster, state) = of(silent.address(), &[live]);
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let call = async || {
            let answer = client.get("/").await;
            assert_eq!(answer.header("x-app"), "live");
        };
        let waited = late(call, || state.ejections.load(Relaxed) >= 3).await;
        assert_eq!(waited, 1);
    });
}
